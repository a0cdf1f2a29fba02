"""What is shown while a script works, and that --quiet shows none of it."""

import importlib
import io
import json
import pkgutil
import re
import sys
from pathlib import Path

import pytest
from helpers import unpacked_sweep

from domainbed import command_launchers, scripts
from domainbed.lib import progress
from domainbed.runs.folder import RunFolder
from domainbed.scripts import collect_results, features, save_images, sweep, train

pytestmark = pytest.mark.filterwarnings("ignore:no class names")
TRAIN = ["--dataset", "Debug28", "--algorithm", "LFA", "--num_workers", "0"]
TRAIN += ["--steps", "5", "--checkpoint_freq", "2", "--hparams", '{"batch_size": 4}']
EMOJI = '{"clip_backbone": "emoji", "batch_size": 4}'
SWEEP = ["--datasets", "PACS", "--algorithms", "LFA", "--single_test_envs"]
SWEEP += ["--n_hparams", "1", "--n_trials", "1", "--data_dir", "data"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def on_terminal(monkeypatch):
    """Make standard error a terminal; gives what is written to it."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stderr", Terminal())
    return sys.stderr


def shown_rows(text):
    return re.findall(r"^\d\.\d{10}  .*$", text, re.MULTILINE)


def test_train_has_a_bar_on_a_terminal_only(tmp_path, monkeypatch, capsys):
    terminal = on_terminal(monkeypatch)
    train.main([*TRAIN, "--output_dir", str(tmp_path)])
    bar = terminal.getvalue()
    assert "5/5" in bar
    last = json.loads((tmp_path / "results.jsonl").read_text().splitlines()[-1])
    assert re.findall(r"loss=([\d.]+)", bar)[-1].startswith(f"{last['loss']:.3g}"[:4])
    accuracy = (last["env1_out_acc"] + last["env2_out_acc"]) / 2
    assert float(re.findall(r"val_acc=([\d.]+)", bar)[-1]) == pytest.approx(
        accuracy, abs=1e-3
    )
    assert (tmp_path / "err.txt").read_text() == ""
    assert len(shown_rows((tmp_path / "out.txt").read_text())) == 3
    assert "\r" not in capsys.readouterr().out


def test_train_prints_plain_lines_elsewhere(tmp_path, capsys):
    train.main([*TRAIN, "--output_dir", str(tmp_path)])
    printed = capsys.readouterr()
    assert len(shown_rows(printed.out)) == 3
    assert printed.err == ""


def test_a_bar_changes_no_number(tmp_path, monkeypatch):
    def accuracies(name):
        train.main([*TRAIN, "--output_dir", str(tmp_path / name)])
        lines = (tmp_path / name / "results.jsonl").read_text().splitlines()
        return [(r["loss"], r["env0_in_acc"]) for r in map(json.loads, lines)]

    plain = accuracies("plain")
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert accuracies("bar") == plain


def make_jobs(folder):
    """Folders of a done, a failed, a formerly failed and a waiting run."""
    folders = [RunFolder(folder / name) for name in ("a", "b", "c", "d")]
    for job in folders:
        job.path.mkdir()
    folders[2].fail(1, "earlier")
    jobs = progress.JobsProgress(folders)
    (folders[0].path / "done").write_text("done")
    folders[1].fail(1, "now")
    return folders, jobs


def test_jobs_are_counted_by_what_has_become_of_them(tmp_path):
    folders, jobs = make_jobs(tmp_path)
    with folders[3].held():
        jobs.look()
        assert jobs.line(io.StringIO()) == "1 of 4 jobs done, 1 failed, 1 running"
        assert jobs.n_ended == 2
        assert jobs.time_left() != "?"


def test_nothing_ended_tells_no_time(tmp_path):
    assert progress.JobsProgress([RunFolder(tmp_path)]).time_left() == "?"


def test_a_sweep_says_how_far_it_is(tmp_path, capsys):
    _, jobs = make_jobs(tmp_path)
    with jobs.shown():
        pass
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("1 of 4 jobs done, 1 failed, 0 running, ")
    assert line.endswith(" left")
    with jobs.shown():  # nothing has ended since
        pass
    assert capsys.readouterr().err == ""


def test_a_sweep_has_a_bar_on_a_terminal(tmp_path, monkeypatch):
    terminal = on_terminal(monkeypatch)
    _, jobs = make_jobs(tmp_path)
    with jobs.shown():
        pass
    shown = terminal.getvalue()
    assert "\x1b[32m1 of 4 jobs done\x1b[0m, \x1b[31m1 failed\x1b[0m" in shown
    assert " left" in shown


def test_a_broken_launcher_is_not_hidden_by_its_progress(tmp_path):
    jobs = progress.JobsProgress([RunFolder(tmp_path)])
    with pytest.raises(ZeroDivisionError), jobs.shown():
        raise ZeroDivisionError


@pytest.mark.parametrize("launcher, shows", [("local", True), ("dummy", False)])
def test_launch_shows_progress_of_what_it_waits_for(
    tmp_path, monkeypatch, capsys, launcher, shows
):
    def run_command(command, **environment):
        folder = command.split("--output_dir ")[1].split()[0]
        (Path(folder) / "done").write_text("done")
        return 0

    monkeypatch.setattr(command_launchers, "run_command", run_command)
    flags = [*SWEEP, "--output_dir", str(tmp_path), "--skip_confirmation"]
    sweep.main(["launch", *flags, "--command_launcher", launcher])
    assert ("4 of 4 jobs done, 0 failed" in capsys.readouterr().err) == shows


@pytest.mark.parametrize("bar", [True, False])
def test_jobs_print_only_where_no_bar_is(tmp_path, monkeypatch, bar):
    commands = []
    monkeypatch.setattr(sys, "stderr", Terminal() if bar else io.StringIO())
    monkeypatch.setattr(
        command_launchers, "run_command", lambda c: commands.append(c) or 0
    )
    flags = [*SWEEP, "--output_dir", str(tmp_path), "--skip_confirmation"]
    sweep.main(["launch", *flags, "--command_launcher", "local"])
    assert len(commands) == 4
    assert all(("--quiet" in c.split()) == bar for c in commands)


def test_colours_are_for_terminals_that_want_them(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert progress.coloured("x", "red", Terminal()) == "\x1b[31mx\x1b[0m"
    assert progress.coloured("x", None, Terminal()) == "x"
    assert progress.coloured("x", "red", io.StringIO()) == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert progress.coloured("x", "red", Terminal()) == "x"


def test_listings_are_coloured_on_a_terminal_only(tmp_path, monkeypatch, capsys):
    flags = [*SWEEP, "--output_dir", str(tmp_path)]
    job = sweep.jobs_of(sweep.parse_args(["status", *flags]))[0]
    job.folder.path.mkdir()
    job.folder.fail(1, "broken")
    sweep.main(["status", *flags])
    assert "\nfailed: " in capsys.readouterr().out
    stream = Terminal()
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", stream)
    sweep.main(["status", *flags])
    assert "\x1b[31mfailed\x1b[0m: " in stream.getvalue()


def test_quiet_train_prints_nothing_but_keeps_its_log(tmp_path, monkeypatch, capsys):
    terminal = on_terminal(monkeypatch)
    train.main([*TRAIN, "--output_dir", str(tmp_path / "quiet"), "--quiet"])
    assert capsys.readouterr().out == terminal.getvalue() == ""
    assert len(shown_rows((tmp_path / "quiet" / "out.txt").read_text())) == 3
    train.main([*TRAIN, "--output_dir", str(tmp_path / "quiet")])  # no other run
    assert "holds this run, finished" in capsys.readouterr().out


def test_quiet_train_still_says_what_is_wrong(tmp_path, capsys):
    with pytest.raises(SystemExit):
        train.main([*TRAIN, "--output_dir", str(tmp_path), "--quiet", "--steps", "-1"])
    printed = capsys.readouterr()
    assert "--steps is -1" in printed.err
    assert printed.out == ""


def test_quiet_launch_prints_nothing_and_asks_nothing(tmp_path, monkeypatch, capsys):
    commands = []
    monkeypatch.setattr(
        command_launchers, "run_command", lambda c: commands.append(c) or 0
    )
    flags = ["launch", *SWEEP, "--output_dir", str(tmp_path), "--quiet"]
    flags += ["--command_launcher", "local"]
    with pytest.raises(SystemExit) as ended:
        sweep.main(flags)
    assert ended.value.code == 2
    assert "--skip_confirmation" in capsys.readouterr().err
    assert not commands
    sweep.main([*flags, "--skip_confirmation"])
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""
    assert len(commands) == 4
    assert all("--quiet" in command.split() for command in commands)


def test_quiet_keeps_the_result(tmp_path, capsys):
    folder = str(unpacked_sweep("sweep_single", tmp_path))
    collect_results.main(["--input_dir", folder])
    loud = capsys.readouterr()
    assert loud.err
    collect_results.main(["--input_dir", folder, "--quiet"])
    quiet = capsys.readouterr()
    assert quiet.err == ""
    assert quiet.out == loud.out


def test_quiet_scripts_print_nothing(pacs, tmp_path, capsys):
    """Each does its work and has nothing that it was asked to tell."""
    data = ["--data_dir", str(pacs)]
    build = ["build", *data, "--dataset", "PACS", "--hparams", EMOJI]
    saved = ["--output_dir", str(tmp_path / "images"), "--datasets", "PACS", "--n", "1"]
    features.main([*build, "--quiet"])
    save_images.main([*data, *saved, "--quiet"])
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""
    assert len(list((tmp_path / "images").iterdir())) == 4
    features.main(["list", *data, "--quiet"])
    assert "4 entries" in capsys.readouterr().out
    flags = ["prune", *data, "--older_than", "0", "--quiet"]
    with pytest.raises(SystemExit):
        features.main(flags)
    assert "--skip_confirmation" in capsys.readouterr().err
    features.main([*flags, "--skip_confirmation"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "name", [module.name for module in pkgutil.iter_modules(scripts.__path__)]
)
def test_every_script_has_the_flag(name, capsys):
    command = {"features": ["list"], "board": ["verify"]}.get(name, [])
    with pytest.raises(SystemExit):
        importlib.import_module(f"domainbed.scripts.{name}").main([*command, "--help"])
    assert "--quiet" in capsys.readouterr().out
