"""The tables, byte for byte, and what is said of folders that have none."""

import json
import shutil

import pytest
from conftest import CONTRACT, make_image_folder, unpacked_sweep

from domainbed.scripts import collect_results, list_top_hparams

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


def write_run(folder, name, **args):
    args = {
        "trial_seed": 0,
        "dataset": "PACS",
        "algorithm": "ERM",
        "hparams_seed": 0,
        "test_envs": [0],
        "holdout_fraction": 0.2,
        "output_dir": name,
    } | args
    accs = {f"env{i}_{part}_acc": 0.5 for i in range(4) for part in ("in", "out")}
    (folder / name).mkdir(parents=True, exist_ok=True)
    record = {"step": 0, "args": args, "hparams": {}, **accs}
    with open(folder / name / "results.jsonl", "a") as file:
        file.write(json.dumps(record | args.pop("more", {})) + "\n")


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


def test_any_folders_results_have_their_table(tmp_path, capsys):
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
    shutil.rmtree(folder)
    collect_results.main(["--input_dir", str(tmp_path / "sweep")])
    assert f"no tables for {name}" in capsys.readouterr().err


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
