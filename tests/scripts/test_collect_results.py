"""The tables, byte for byte, and what is said of folders that have none."""

import functools
import io
import json
import re
import shutil

import pandas as pd
import pytest
from helpers import (
    CONTRACT,
    make_image_folder,
    status_of,
    unpacked_sweep,
    write_run,
)

from domainbed import datasets
from domainbed.scripts import collect_results, list_top_hparams

run_main = functools.partial(status_of, collect_results.main)
ERM_ON_PACS = ["--dataset", "PACS", "--algorithm", "ERM", "--test_env", "1"]


@pytest.mark.parametrize("sweep", ["single", "pairs"])
@pytest.mark.parametrize("flag, kind", [(None, "txt"), ("--latex", "tex")])
def test_tables_are_upstreams(sweep, flag, kind, tmp_path, capsys):
    folder = unpacked_sweep(f"sweep_{sweep}", tmp_path)
    flags = [flag] if flag else []
    collect_results.main(["--input_dir", str(folder), *flags])
    expected = (CONTRACT / f"table_{sweep}.{kind}").read_text()
    assert capsys.readouterr().out == expected
    assert (folder / f"results.{kind}").read_text() == expected


def test_top_hparams_are_upstreams(tmp_path, capsys):
    folder = unpacked_sweep("sweep_single", tmp_path)
    of = ["--dataset", "TerraIncognita", "--algorithm", "ERM", "--test_env", "1"]
    list_top_hparams.main(["--input_dir", str(folder), *of])
    name = "list_top_single_TerraIncognita_ERM_1.txt"
    assert capsys.readouterr().out == (CONTRACT / name).read_text()


def test_a_tables_columns_are_those_of_its_rows(capsys):
    table = [["1", 2], ["3", 4.25]]
    collect_results.print_table(table, "Title", ["R1", "R2"], ["C1", "C2"])
    assert capsys.readouterr().out.splitlines() == [
        "",
        r"\begin{center}",
        r"\adjustbox{max width=\textwidth}{%",
        r"\begin{tabular}{lcc}",
        r"\toprule",
        r"\textbf{C1 & \textbf{C2 \\",
        r"\midrule",
        r"R1         & 1          & 2          \\",
        r"R2         & 3          & 4.2        \\",
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{center}",
    ]
    collect_results.print_table(table, "Title", ["R1", "R2"], ["C1", "C2"], latex=False)
    assert capsys.readouterr().out.splitlines() == [
        "",
        "-------- Title",
        "C1          C2         ",
        "R1          1           2          ",
        "R2          3           4.2        ",
    ]
    assert table == [["1", 2], ["3", 4.25]]  # as it was given


def rows(text, title):
    """The rows of the table whose header line holds the title, cells stripped."""
    _, after = text.split(title, 1)
    lines = after.split("\n\n")[0].splitlines()[1:]
    return [line.split("  ") for line in lines]


def test_algorithms_stand_in_the_registrys_order_then_unknown_ones(tmp_path, capsys):
    for name in ("Theirs", "LFA", "ERM"):
        write_run(tmp_path, name, algorithm=name)
    collect_results.main(["--input_dir", str(tmp_path)])
    out = capsys.readouterr().out
    table = rows(out, "Dataset: PACS, model selection method: training-domain")
    assert [row[0] for row in table] == ["Algorithm", "ERM", "LFA", "Theirs"]


def test_a_missing_environment_is_an_x(tmp_path, capsys):
    write_run(tmp_path, "run")
    collect_results.main(["--input_dir", str(tmp_path)])
    out = capsys.readouterr().out
    table = rows(out, "Dataset: PACS, model selection method: test-domain")
    cells = [cell.strip() for cell in table[1] if cell.strip()]
    assert cells == ["ERM", "50.0 +/- 0.0", "X", "X", "X", "X"]


def test_a_dataset_that_is_not_registered_is_named(tmp_path, capsys):
    write_run(tmp_path, "a", dataset="Mine")
    write_run(tmp_path, "b")
    collect_results.main(["--input_dir", str(tmp_path)])
    captured = capsys.readouterr()
    assert "no tables for Mine" in captured.err
    assert "Mine" not in captured.out


def test_any_folders_results_have_their_table(tmp_path, capsys, monkeypatch):
    folder = make_image_folder(tmp_path / "my data", ["left", "right"], ["x"], n=1)
    name = f"ImageFolder:{folder}"
    for env in (0, 1):
        write_run(tmp_path / "sweep", f"run{env}", dataset=name, test_envs=[env])
    write_run(tmp_path / "sweep", "pacs")
    collect_results.main(["--input_dir", str(tmp_path / "sweep")])
    captured = capsys.readouterr()
    table = rows(captured.out, f"Dataset: {name}, model selection method: test-domain")
    header = [cell.strip() for cell in table[0] if cell.strip()]
    assert header == ["Algorithm", "left", "right", "Avg"]
    assert "50.0 +/- 0.0" in table[1]
    assert captured.out.index("Dataset: PACS") < captured.out.index(f"Dataset: {name}")
    assert "warning" not in captured.err
    averages = rows(captured.out, "Averages, model selection method: test-domain")
    heads = [cell.strip() for cell in averages[0] if cell.strip()]
    assert heads == ["Algorithm", "PACS", "my data", "Avg"]
    shutil.rmtree(folder)
    monkeypatch.setattr(datasets, "AWAY", {})  # as in a process of its own
    collect_results.main(["--input_dir", str(tmp_path / "sweep")])
    table = rows(capsys.readouterr().out, f"Dataset: {name}, model")
    assert [c.strip() for c in table[0] if c.strip()][:3] == [
        "Algorithm",
        "env0",
        "env1",
    ]


def test_an_own_datasets_records_name_its_environments(tmp_path, capsys):
    places = [
        f"ImageFolder:/gone/{place}" for place in ("a/birds", "b/birds", "b/cars")
    ]
    for i, name in enumerate(places):
        for env in (0, 1):
            more = {"environments": ["left", "right", "x", "y"]}
            args = {"dataset": name, "test_envs": [env], "more": more}
            write_run(tmp_path, f"run{i}{env}", **args)
    assert run_main("--input_dir", tmp_path, "--selection", "iid") == 0
    out, err = capsys.readouterr()
    table = rows(out, f"Dataset: {places[0]}, model")
    assert [cell.strip() for cell in table[0] if cell.strip()][1:3] == ["left", "right"]
    assert "not registered" not in err
    assert run_main("--input_dir", tmp_path, "--format", "markdown") == 0
    out = capsys.readouterr().out
    assert "| Algorithm | left | right |" in out
    assert f"| {places[0]} | {places[1]} | cars | Avg |" in out


def test_only_what_is_not_registered_leaves_results_txt_alone(tmp_path, capsys):
    write_run(tmp_path, "a", dataset="Mine")
    (tmp_path / "results.txt").write_text("of another day")
    assert run_main("--input_dir", tmp_path) == 2
    assert "no tables of Mine: not registered here; --format" in capsys.readouterr().err
    assert (tmp_path / "results.txt").read_text() == "of another day"


def test_cells_that_latex_cannot_read_are_named(tmp_path, capsys):
    write_run(tmp_path, "a", dataset="SpawriousO2O_medium")
    assert run_main("--input_dir", tmp_path, "--latex") == 0
    err = capsys.readouterr().err
    assert r"\textbf{SpawriousO2O\_medium}" in err
    assert "--paper cuts none" in err
    assert run_main("--input_dir", tmp_path) == 0
    assert "--paper" not in capsys.readouterr().err


def test_runs_that_held_nothing_out_are_named(tmp_path, capsys):
    write_run(tmp_path, "a")
    file = tmp_path / "a" / "results.jsonl"
    file.write_text(file.read_text().replace("_out_acc", "_loss"))
    assert run_main("--input_dir", tmp_path) == 0
    assert "warning: PACS: no run held images out" in capsys.readouterr().err


def test_remarks_say_what_is_missing(tmp_path, capsys):
    for trial in (0, 1):
        for env in (0, 1):
            if (trial, env) != (1, 1):
                of = {"trial_seed": trial, "test_envs": [env]}
                write_run(tmp_path, f"{trial}{env}", **of)
    collect_results.main(["--input_dir", str(tmp_path)])
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "PACS: 3 of 4 expected runs",
        "warning: PACS, ERM, test environment [1]: 1 trials, others have 2",
        "leave-one-domain-out was not run: it needs pairs of test environments",
    ]
    assert captured.out == (tmp_path / "results.txt").read_text()
    write_run(tmp_path, "pair", test_envs=[0, 1])
    collect_results.main(["--input_dir", str(tmp_path)])
    assert "leave-one-domain-out" not in capsys.readouterr().err


def test_auto_lr_merges_runs_that_differ_in_their_split(tmp_path, capsys):
    write_run(tmp_path, "searched", more={"env1_out_acc": 0.9})
    full = {"fd_env0_in_acc": 0.75}
    write_run(tmp_path, "full", holdout_fraction=0.0, more=full)
    collect_results.main(["--input_dir", str(tmp_path), "--auto_lr"])
    out = capsys.readouterr().out
    assert "model selection method: auto lr" in out
    assert "75.0 +/- 0.0" in out
    assert "oracle" not in out


@pytest.mark.parametrize("form", ["csv", "json", "markdown", "html", "paper"])
def test_every_format_says_what_the_text_says(form, tmp_path, capsys):
    folder = unpacked_sweep("sweep_pairs", tmp_path)
    flags = ["--paper"] if form == "paper" else ["--format", form]
    assert run_main("--input_dir", folder, *flags) == 0
    out = capsys.readouterr().out
    for method in collect_results.SELECTION_METHODS:
        assert method.name.replace("(", r"\(" if 0 else "(") in out
    if form in ("csv", "json"):
        read = {"csv": pd.read_csv, "json": pd.read_json}[form]
        frame = read(io.StringIO(out)).query("environment != 'Avg'")
        cells = [
            f"{m:.1f} {e:.1f}" for m, e in frame[["mean", "standard_error"]].values
        ]
    else:
        cells = re.findall(r"(\d+\.\d) (?:±|\$\\pm\$) (\d+\.\d)", out)
        cells = [" ".join(pair) for pair in cells]
    text = (CONTRACT / "table_pairs.txt").read_text()
    tables = text.split("-------- Dataset: ")[1:]
    for table in tables:
        expected = re.findall(r"(\d+\.\d) \+/- (\d+\.\d)", table.split("\n\n")[0])
        assert {" ".join(pair) for pair in expected} <= {*cells}
    assert not (folder / "results.txt").exists()


@pytest.mark.parametrize("kind, flags", [("txt", "text"), ("tex", "latex")])
def test_text_and_latex_are_formats_too(kind, flags, tmp_path, capsys):
    folder = unpacked_sweep("sweep_single", tmp_path)
    assert run_main("--input_dir", folder, "--format", flags) == 0
    expected = (CONTRACT / f"table_single.{kind}").read_text()
    assert capsys.readouterr().out == expected


def test_an_unknown_format_or_selection_names_the_nearest(tmp_path, capsys):
    write_run(tmp_path, "run")
    assert run_main("--input_dir", tmp_path, "--format", "cvs") == 2
    assert "Did you mean 'csv'?" in capsys.readouterr().err
    assert run_main("--input_dir", tmp_path, "--selection", "orcale") == 2
    captured = capsys.readouterr()
    assert "Did you mean 'oracle'?" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    "name", ["oracle", "OracleSelectionMethod", "test-domain validation set (oracle)"]
)
def test_one_selection_method_alone(name, tmp_path, capsys):
    write_run(tmp_path, "run")
    assert run_main("--input_dir", tmp_path, "--selection", name) == 0
    out = capsys.readouterr().out
    assert out.count("--------") == 2
    assert out.count("model selection method: test-domain validation set") == 2


def test_selection_auto_lr_merges_as_the_flag_does(tmp_path, capsys):
    write_run(tmp_path, "searched", more={"env1_out_acc": 0.9})
    write_run(tmp_path, "full", holdout_fraction=0.0, more={"fd_env0_in_acc": 0.75})
    assert run_main("--input_dir", tmp_path, "--auto_lr") == 0
    flag = capsys.readouterr().out
    assert run_main("--input_dir", tmp_path, "--selection", "auto_lr") == 0
    assert capsys.readouterr().out == flag


def test_several_folders_make_one_table(tmp_path, capsys):
    for env in (0, 1):
        write_run(tmp_path / "one", f"run{env}", test_envs=[env])
    for env in (1, 2, 3):
        write_run(tmp_path / "two", f"run{env}", test_envs=[env], data_dir="elsewhere")
    folders = [tmp_path / "one", tmp_path / "two"]
    assert run_main("--input_dir", *folders, "--selection", "iid") == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("Total records: 4\n")
    assert "PACS: 4 of 4 expected runs" in captured.err
    assert "1 runs stand in several folders and count once" in captured.err
    assert not [*tmp_path.glob("*/results.txt")]
    (tmp_path / "three").write_text("")
    assert run_main("--input_dir", *folders, tmp_path / "three") == 2
    assert f"{tmp_path / 'three'} is no folder" in capsys.readouterr().err


def test_output_takes_what_would_be_printed(tmp_path, capsys):
    write_run(tmp_path / "sweep", "run")
    assert run_main("--input_dir", tmp_path / "sweep") == 0
    printed = capsys.readouterr().out
    (tmp_path / "sweep" / "results.txt").unlink()
    assert run_main("--input_dir", tmp_path / "sweep", "--output", tmp_path / "t") == 0
    assert capsys.readouterr().out == ""
    assert (tmp_path / "t").read_text() == printed
    assert not (tmp_path / "sweep" / "results.txt").exists()
    for wrong in (tmp_path / "no" / "t", tmp_path, "."):
        assert run_main("--input_dir", tmp_path / "sweep", "--output", wrong) == 2
        assert f"--output {wrong} cannot be written" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"sweep", "t"}


def test_an_environment_that_the_dataset_has_not_is_named(tmp_path, capsys):
    write_run(tmp_path, "a")
    write_run(tmp_path, "b", test_envs=[0, 9])
    assert run_main("--input_dir", tmp_path) == 0
    warning = "warning: 1 records of PACS test on environment 9, which it has not"
    assert warning in capsys.readouterr().err


@pytest.mark.parametrize("envs", [[0, 1, 2], [1, 1]])
def test_runs_that_no_table_has_are_said(envs, tmp_path, capsys):
    write_run(tmp_path, "a")
    write_run(tmp_path, "b", test_envs=envs)
    assert run_main("--input_dir", tmp_path) == 0
    assert f"1 records of PACS test on {envs} and the like" in capsys.readouterr().err


@pytest.mark.parametrize("env", ["0", "A", "a"])
def test_a_methods_runs_are_asked_for_by_an_environments_name(env, tmp_path, capsys):
    write_run(tmp_path, "run")
    flags = [*ERM_ON_PACS[:-1], env]
    list_top_hparams.main(["--input_dir", str(tmp_path), *flags])
    assert "trial_seed: 0" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        list_top_hparams.main(["--input_dir", str(tmp_path), *flags[:-1], "9"])
    assert ended.value.code == 2
    assert "--test_env 9 is no environment; there are 0 (A)" in capsys.readouterr().err


def test_a_dataset_that_is_not_registered_is_in_the_frames(tmp_path, capsys):
    write_run(tmp_path, "a", dataset="Mine")
    assert run_main("--input_dir", tmp_path, "--format", "markdown") == 0
    captured = capsys.readouterr()
    assert "| Algorithm | env0 | Avg |" in captured.out
    assert "Mine is not registered here: its columns have numbers" in captured.err


def test_records_without_accuracies_are_one_sentence(tmp_path, capsys):
    write_run(tmp_path, "run")
    file = tmp_path / "run" / "results.jsonl"
    file.write_text(file.read_text().replace("_acc", "_loss"))
    assert run_main("--input_dir", tmp_path, "--format", "html") == 2
    assert capsys.readouterr().err.endswith(
        "error: no run has the accuracies that training-domain validation set, "
        "leave-one-domain-out cross-validation, test-domain validation set (oracle) "
        "needs.\n"
    )


def test_runs_from_different_worlds_are_named(tmp_path, capsys):
    for env in (0, 1):
        args = {"dataset": "PACS", "trial_seed": 0, "test_envs": [env]}
        write_run(tmp_path, f"run{env}", **args)
        about = {"args": args, "git": None, "device": "cpu", "split": "s"}
        about |= {"versions": {"torch": "2.4", "domainbed": "0.1"}, "dataset": str(env)}
        (tmp_path / f"run{env}" / "run.json").write_text(json.dumps(about))
    assert run_main("--input_dir", tmp_path) == 0
    mixed = "warning: runs differ in data of PACS: 0 (1 runs), 1 (1 runs)"
    assert mixed in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("script", [collect_results, list_top_hparams])
def test_a_folder_that_is_not_there_is_named(script, tmp_path, capsys):
    missing = tmp_path / "nowhere"
    flags = ERM_ON_PACS if script is list_top_hparams else []
    with pytest.raises(SystemExit) as ended:
        script.main(["--input_dir", str(missing), *flags])
    assert ended.value.code == 2
    assert f"--input_dir {missing} is no folder" in capsys.readouterr().err
    assert not missing.exists()


@pytest.mark.parametrize("script", [collect_results, list_top_hparams])
def test_an_empty_folder_leaves_no_table_behind(script, tmp_path, capsys):
    flags = ERM_ON_PACS if script is list_top_hparams else []
    with pytest.raises(SystemExit) as ended:
        script.main(["--input_dir", str(tmp_path), *flags])
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert f"--input_dir {tmp_path} holds no results.jsonl" in captured.err
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_folder_too_low_or_too_high_is_told(tmp_path, capsys):
    write_run(tmp_path / "sweep", "run")
    assert run_main("--input_dir", tmp_path / "sweep" / "run") == 2
    sentence = f"is a run's own folder; give its sweep's, {tmp_path / 'sweep'}."
    assert sentence in capsys.readouterr().err
    assert run_main("--input_dir", tmp_path) == 2
    sentence = f"holds sweeps; give them: --input_dir {tmp_path / 'sweep'}."
    assert sentence in capsys.readouterr().err


def test_a_table_that_cannot_be_written_is_printed_still(tmp_path, capsys):
    write_run(tmp_path, "run")
    (tmp_path / "results.txt").mkdir()  # root may write anywhere, but not to a folder
    collect_results.main(["--input_dir", str(tmp_path)])
    captured = capsys.readouterr()
    assert captured.out.startswith("Total records: 1\n")
    assert "Averages, model selection method: test-domain" in captured.out
    assert f"warning: cannot write {tmp_path / 'results.txt'}" in captured.err


def test_top_hparams_of_an_algorithm_that_is_not_registered(tmp_path, capsys):
    write_run(tmp_path, "theirs", algorithm="Theirs")
    of = ["--input_dir", str(tmp_path), "--dataset", "PACS", "--test_env", "0"]
    list_top_hparams.main([*of, "--algorithm", "Theirs"])
    assert "\t\t\ttheirs\n" in capsys.readouterr().out
    for name, word in (("algorithm", "Thiers"), ("dataset", "PACT")):
        with pytest.raises(SystemExit) as ended:
            list_top_hparams.main([*of, "--algorithm", "Theirs", f"--{name}", word])
        assert ended.value.code == 2
        assert f"Unknown {name} '{word}'" in capsys.readouterr().err


def test_a_mean_has_the_error_of_the_mean():
    mean, err, text = collect_results.format_mean([0.1, 0.2, 0.3, 0.4], latex=False)
    assert (round(mean, 6), round(err, 4)) == (25.0, 5.5902)
    assert text == "25.0 +/- 5.6"
    assert collect_results.format_mean([0.5], latex=True)[2] == "50.0 $\\pm$ 0.0"
    assert collect_results.format_mean([], latex=True) == (None, None, "X")
