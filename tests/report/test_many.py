"""What the page says of many datasets, and of few."""

import json

import pandas as pd
import pytest
from pages import make

from domainbed.report.many import over_datasets

pytest.importorskip("scikit_posthocs")
METHODS = {"ZeroShotCLIP": 0.5, "LFA": 0.7, "MIRO": 0.6, "CLIPAdapter": 0.65}


def test_six_datasets_have_ranks_and_interquartile_means():
    rows = [
        (f"d{i}", name, trial, acc)
        for i in range(6)
        for name, acc in METHODS.items()
        for trial in range(2)
    ]
    rows.append(("d0", "LST", 0, 0.9))
    columns = ["dataset", "algorithm", "trial_seed", "acc"]
    words, (diagram, spread) = over_datasets(pd.DataFrame(rows, columns=columns))
    assert words == ["Not ranked, for want of a dataset: LST."]
    assert diagram.numbers.rows == [
        ["LFA", "1.00", "70.0", "70.0 to 70.0"],
        ["CLIPAdapter", "2.00", "65.0", "65.0 to 65.0"],
        ["MIRO", "3.00", "60.0", "60.0 to 60.0"],
        ["ZeroShotCLIP", "4.00", "50.0", "50.0 to 50.0"],
    ]
    assert "over 6 datasets" in diagram.caption
    assert "the ranks are not all alike (p = 0.0" in diagram.caption
    assert "LFA 1.00" in diagram.svg
    assert "4.00 ZeroShotCLIP" in diagram.svg
    assert spread.numbers == diagram.numbers


def test_the_page_says_that_two_datasets_are_few(tmp_path):
    for dataset in ("PACS", "VLCS"):
        for method, acc in METHODS.items():
            args = {"dataset": dataset, "algorithm": method, "trial_seed": 0}
            args |= {"hparams_seed": 0}
            accs = {f"env{i}_{p}_acc": acc for i in range(4) for p in ("in", "out")}
            lines = [
                json.dumps({"step": 0, "args": args | {"test_envs": [env]}} | accs)
                for env in range(4)
            ]
            folder = tmp_path / "s" / f"{dataset}{method}"
            folder.mkdir(parents=True)
            (folder / "results.jsonl").write_text("\n".join(lines) + "\n")
    page = make(tmp_path / "s")
    assert "No ranks over datasets: there are 2, and below 6" in page.text
    assert "average rank" not in page.text
