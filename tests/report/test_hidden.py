"""What accuracy hides is in the report, from answers of chosen runs alone."""

import json

import numpy as np
import pandas as pd
import pytest
from pages import make

from domainbed.report import data
from domainbed.runs import predictions

pytest.importorskip("matplotlib")
CLASSES = ["cat", "dog", "owl"]
N = 60
LABELS = np.arange(N) % 3


def write_run(root, algorithm, env, trial, right, confidence=0.9, hparams=None):
    """A run whose answers to its test domain are right or the next class."""
    folder = root / f"{algorithm}{env}{trial}"
    folder.mkdir(parents=True)
    answer = np.where(right, LABELS, (LABELS + 1) % 3)
    sure = np.full(N, np.log(confidence))
    label_logp = np.where(right, sure, np.log(1 - confidence))
    noted = predictions.Answers(
        env, "in", np.arange(N), LABELS, answer, sure, label_logp
    )
    facts = {"data": "d", "classes": 3, "names": np.array(CLASSES)}
    predictions.keep(folder / predictions.NAME, [noted], [N] * 4, facts, 5, 5)
    args = {"dataset": "PACS", "algorithm": algorithm, "test_envs": [env]}
    args |= {"trial_seed": trial, "hparams_seed": 0}
    record = {"step": 5, "args": args, "hparams": hparams or {"clip_backbone": "B"}}
    accs = {f"env{i}_{part}_acc": 0.5 for i in range(4) for part in ("in", "out")}
    accs[f"env{env}_in_acc"] = float(np.mean(right))
    (folder / "results.jsonl").write_text(json.dumps(record | accs) + "\n")


@pytest.fixture
def sweep(tmp_path):
    """Zero-shot errs on owls. LFA is wrong on a cat in four and, in env 1, on dogs."""
    owls, cats, dogs = (c == LABELS for c in (2, 0, 1))
    some = cats & (np.arange(N) % 12 == 0)
    for env in range(4):
        for trial in range(2):
            write_run(tmp_path / "s", "ZeroShotCLIP", env, trial, ~owls)
            wrong = some | (dogs if env == 1 else False)
            write_run(tmp_path / "s", "LFA", env, trial, ~wrong, 0.75)
    return tmp_path / "s"


LOST = "lost of what ZeroShotCLIP has right, %"


def test_worst_domains_classes_calibration_and_losses(sweep):
    page = make(sweep)
    rows = {row["method"]: row for row in page.table("method", "worst domain")}
    zero, lfa = rows["ZeroShotCLIP"], rows["LFA"]
    assert zero["worst class"] == "owl"
    assert zero["its %"] == "0.0"
    assert zero["calibration error %"] == f"{100 * abs(2 / 3 - 0.9):.1f}"
    loss = -(2 / 3 * np.log(0.9) + 1 / 3 * np.log(0.1))
    assert zero["log-loss"] == f"{loss:.2f}"
    assert zero[LOST] == "0.0"
    assert lfa["worst domain"] == "C"
    assert lfa["there %"] == f"{100 * 35 / 60:.1f}"
    assert (lfa["worst class"], lfa["its %"]) == ("cat", "75.0")
    at_c, elsewhere = 25 / 40, 5 / 40  # of 40 that zero-shot has right
    assert lfa[LOST] == f"{100 * (at_c + 3 * elsewhere) / 4:.1f}"
    pairs = page.table("class", "taken for", "share of it")
    assert {"class": "owl", "taken for": "cat", "share of it": "100.0 %"}.items() <= (
        pairs[0].items()
    )
    by_class = {row["class"]: row for row in page.table("class", "ZeroShotCLIP", "LFA")}
    assert by_class["cat"]["LFA"] == "75.0"
    assert by_class["owl"] == {"class": "owl", "ZeroShotCLIP": "0.0", "LFA": "100.0"}


def test_runs_without_answers_are_counted_and_the_rest_stands(sweep):
    (sweep / "LFA10" / predictions.NAME).unlink()
    page = make(sweep)
    assert "1 chosen run kept no predictions of the step that counts" in page.text
    rows = {row["method"]: row for row in page.table("method", "worst domain")}
    assert rows["LFA"]["worst domain"] == "C"  # from the records
    for file in sweep.glob(f"*/{predictions.NAME}"):
        file.unlink()
    page = make(sweep)
    assert "16 chosen runs kept no predictions" in page.text
    rows = page.table("method", "worst domain", "there %")
    assert [*rows[0]] == ["method", "worst domain", "there %"]


def test_what_stands_on_another_backbone_loses_nothing_of_zero_shots(sweep):
    hparams = {"resnet18": True}
    for env in range(4):
        write_run(sweep, "ERM", env, 0, LABELS < 1, hparams=hparams)
    rows = {row["method"]: row for row in make(sweep).table("method", LOST)}
    assert rows["ERM †"][LOST] == "–"
    assert rows["LFA"][LOST] != "–"


def test_other_images_are_not_held_against_a_method(sweep):
    file = sweep / "LFA00" / predictions.NAME
    arrays = predictions.load(file)
    np.savez(file, **arrays | {"data": np.array("other")})
    rows = {row["method"]: row for row in make(sweep).table("method", LOST)}
    assert rows["LFA"][LOST] == f"{100 * (25 / 40 + 3 * 5 / 40) / 4:.1f}"  # trial 1's


def test_a_reference_brings_differences_trial_by_trial(sweep):
    page = make(sweep, None, "--reference", "ZeroShotCLIP")
    assert "Difference to ZeroShotCLIP in points" in page.text
    heads = [t for t in page.tables if t[0] == ["method", *"ACPS", "Avg"]]
    less = next(t for t in heads if len(t) == 2)
    gain = 100 * (55 - 40) / 60
    assert less[1] == [
        "LFA",
        *(f"+{gain:.1f} ± 0.0", f"−{100 * 5 / 60:.1f} ± 0.0"),
        *[f"+{gain:.1f} ± 0.0"] * 2,
        f"+{(3 * gain - 100 * 5 / 60) / 4:.1f} ± 0.0",
    ]
    with pytest.raises(SystemExit) as ended:
        make(sweep, None, "--reference", "ZeroShotClip")
    assert ended.value.code == 2


def test_a_method_is_dominated_where_another_is_no_worse_in_anything():
    costs = pd.DataFrame(
        {
            "algorithm": ["best", "cheap", "twin", "beaten", "unknown"],
            "accuracy": [80.0, 60.0, 60.0, 60.0, 50.0],
            "parameters": [10.0, 0.0, 0.0, 20.0, np.nan],
            "step_time": [3.0, 2.0, 2.0, np.nan, np.nan],
        }
    )
    both = ["parameters", "step_time"]
    assert data.dominated_by(costs, both).tolist() == ["", "", "", "best", ""]
    assert data.dominated_by(costs, ["step_time"]).tolist() == [""] * 5
    costs.loc[0, "parameters"] = 0.0
    assert data.dominated_by(costs, both[:1]).tolist()[:4] == ["", *["best"] * 3]
