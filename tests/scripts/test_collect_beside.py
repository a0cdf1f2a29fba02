"""What stands beside the measured rows: published ones, protocols, differences."""

import functools
import io
import json

import pandas as pd
from helpers import status_of, write_run

from domainbed.scripts import collect_results

run_main = functools.partial(status_of, collect_results.main)


def test_published_figures_stand_below_a_rule(tmp_path, capsys):
    write_run(tmp_path / "sweep", "run")
    file = tmp_path / "theirs.csv"
    file.write_text("method,PACS,VLCS,source\nLFA,96.1,80,their paper\nProbe,,70,\n")
    flags = (
        "--input_dir",
        tmp_path / "sweep",
        "--selection",
        "iid",
        "--baseline",
        file,
    )
    assert run_main(*flags) == 0
    averages = capsys.readouterr().out.split("-------- Averages")[1]
    rows = [line.split("  ") for line in averages.splitlines()[1:]]
    found = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert found == [
        ["Algorithm", "PACS", "Avg"],
        ["ERM", "50.0 +/- 0.0", "50.0"],
        ["-" * 25] * 3,
        ["LFA", "96.1"],
    ]
    assert run_main(*flags, "--latex") == 0
    latex = capsys.readouterr().out.split("subsubsection{Averages}")[1]
    assert latex.index("ERM") < latex.rindex("\\midrule") < latex.index("LFA")
    assert run_main(*flags, "--format", "csv") == 0
    rows = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert rows["source"].tolist() == ["this sweep", "their paper"]
    file.write_text("method,VLCS\nLFA,80\n")
    assert run_main(*flags) == 2
    assert "has no figures for PACS" in capsys.readouterr().err
    assert run_main(*flags[:4], "--baseline", "clip_vit_b16") == 0
    assert "SBGen" in capsys.readouterr().out
    assert run_main(*flags[:4], "--baseline", "clip_vit_b32") == 2
    said = capsys.readouterr().err
    assert "there is no file clip_vit_b32; what ships with the package is" in said
    assert "Did you mean 'clip_vit_b16'?" in said


def test_rows_of_another_protocol_are_not_ranked_in_any_format(tmp_path, capsys):
    for name in ("LFA", "MIRO", "CLIPAdapter", "LinearERM"):
        for env in range(4):
            folder = tmp_path / f"{name}{env}"
            own = {"clip_backbone": "ViT-B/16"}
            args = {"algorithm": name, "test_envs": [env]}
            write_run(tmp_path, folder.name, more={"hparams": own}, **args)
            about = {"args": {"dataset": "PACS", "trial_seed": 0, "test_envs": [env]}}
            about |= {"versions": {"torch": "2", "domainbed": "1"}, "git": None}
            about |= {"device": "cpu", "dataset": "d", "split": f"s{env}"}
            about |= {"backbone": ("e" if name == "LFA" else "f") * 16}
            (folder / "run.json").write_text(json.dumps(about))
    why = "LFA (backbone CLIP ViT-B/16 eeeeeeee); what is ranked has backbone CLIP"
    for form in ("--paper", "--format markdown", "--format html"):
        flags = ["--selection", "iid", *form.split()]
        assert run_main("--input_dir", tmp_path, *flags, "--quiet") == 0
        text = capsys.readouterr().out.replace("**", "")
        assert why in text, form
    assert run_main("--input_dir", tmp_path, *flags[:2], "--format", "csv") == 0
    rows = pd.read_csv(io.StringIO(capsys.readouterr().out))
    digests = rows.groupby("algorithm")["protocol_digest"].unique().map(list)
    assert digests["MIRO"] == digests["LinearERM"] != digests["LFA"]


def test_a_reference_brings_differences_beside_each_table(tmp_path, capsys):
    for name, accs in {"LFA": (0.5, 0.75), "MIRO": (0.25, 1.0)}.items():
        for trial, acc in enumerate(accs):
            for env in range(4):
                own = {f"env{env}_in_acc": acc}
                args = {"algorithm": name, "test_envs": [env], "trial_seed": trial}
                write_run(tmp_path / "s", f"{name}{env}{trial}", more=own, **args)
    flags = ["--input_dir", tmp_path / "s", "--selection", "iid"]
    assert run_main(*flags) == 0
    plain = capsys.readouterr().out
    assert run_main(*flags, "--reference", "LFA") == 0
    text = capsys.readouterr().out
    kept = [block for block in text.split("\n\n") if ", less LFA" not in block]
    assert "\n\n".join(kept).strip() == plain.strip()
    table = text.split("-------- Dataset: PACS, less LFA, model selection")[1]
    row = table.splitlines()[2].split("  ")
    cells = [cell.strip() for cell in row if cell.strip()]
    assert cells == ["MIRO", *["0.0 +/- 17.7"] * 4, "0.0"]  # of -25 and 25
    assert "-------- Averages, less LFA" in text
    for form in ("markdown", "html"):
        assert run_main(*flags, "--reference", "LFA", "--format", form) == 0
        text = capsys.readouterr().out
        assert "PACS, less LFA" in text
        assert "+0.0 ± 17.7" in text
    assert run_main(*flags, "--reference", "LFA", "--paper") == 0
    text = capsys.readouterr().out.split("less LFA")[1]
    assert "Differences to LFA in points, trial by trial" in text
    assert "textbf" not in text
    assert run_main(*flags, "--reference", "LFA", "--format", "csv") == 0
    rows = pd.read_csv(io.StringIO(capsys.readouterr().out)).set_index("algorithm")
    assert rows.loc["MIRO", "difference_error"].round(1).tolist() == [17.7] * 5
    assert rows.loc["LFA", "difference"].tolist() == [0.0] * 5
    assert run_main(*flags, "--latex", "--reference", "LFA") == 0
    assert "\\subsubsection{PACS, less LFA}" in capsys.readouterr().out
    assert run_main(*flags, "--reference", "MIRA") == 2
    assert "Did you mean 'MIRO'?" in capsys.readouterr().err
