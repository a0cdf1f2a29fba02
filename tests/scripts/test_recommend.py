"""`recommend`: from a folder of pictures to a ranking and a command."""

import shlex
import subprocess
from types import SimpleNamespace

import pytest
import torch
from helpers import make_image_folder

from domainbed import command_launchers
from domainbed.recommend import trials
from domainbed.scripts import collect_results, features, train
from domainbed.scripts.recommend import main

METHODS = ["GDA", "LinearProbeCLIP"]


@pytest.fixture
def here(monkeypatch):
    """Everything runs in this process, a few steps; gives the commands that ran."""
    ran = []

    def launch(commands):
        for command in commands:
            ran.append(command)
            train.main(shlex.split(command)[3:])
        return [0] * len(commands)

    def build(command, timeout):
        features.main(command[3:])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(command_launchers, "get_launcher", lambda *_, **__: launch)
    replaced(monkeypatch, build)
    monkeypatch.setattr(trials, "ROUNDS", ((0, (0,)), (0, (1,)), (1, (0, 1))))
    monkeypatch.setattr(trials, "STEPS", 5)
    monkeypatch.setattr(trials, "CHECKPOINT_FREQ", 2)
    return ran


def replaced(monkeypatch, run):
    """Let the process that stores features be that function."""
    own = SimpleNamespace(run=run, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(trials, "subprocess", own)


def recommend(folder, tmp_path, *flags):
    out = ["--output_dir", str(tmp_path / "out"), "--clip_backbone", "emoji"]
    main(["--data", str(folder), *out, "--algorithms", *METHODS, *flags])


def test_domains_are_left_out_and_the_command_trains_on_all(here, tmp_path, capsys):
    folder = make_image_folder(tmp_path / "data", ["a", "b", "c"], ["cat", "dog"])
    recommend(folder, tmp_path, "--quiet")
    said = capsys.readouterr().out
    assert len(here) == 3 * 2 * (1 + 1 + 2)
    assert "30 pictures, 2 classes; left out in turn: a, b, c; trials: 2, dr" in said
    rounds = [str(tmp_path / "out" / f"round{n}") for n in (1, 2, 3)]
    collect_results.main(["--input_dir", *rounds, "--selection", "iid", "--quiet"])
    table = capsys.readouterr().out.split("Averages")[0].splitlines()
    averages = {line.split()[0]: line.split()[-1] for line in table if "+/-" in line}
    assert averages.keys() == {*METHODS}
    rows = (line.split() for line in said.splitlines())
    own = {words[0]: words[4] for words in rows if {*words[:1]} & {*METHODS}}
    assert own == averages
    del here[:]
    recommend(folder, tmp_path, "--quiet")
    assert not here
    assert capsys.readouterr().out == said
    (command,) = (line for line in said.splitlines() if line.startswith("    python"))
    train.main([*shlex.split(command)[3:], "--quiet"])
    saved = torch.load(tmp_path / "out" / "model" / "model.pkl", weights_only=True)
    assert (saved["args"]["test_envs"], saved["model_num_domains"]) == ([], 3)


def test_folds_stand_for_domains(here, tmp_path, capsys, monkeypatch):
    folder = make_image_folder(tmp_path / "data", ["."], ["cat", "dog"], n=15)
    monkeypatch.setattr(trials, "ROUNDS", trials.ROUNDS[:1])
    recommend(folder, tmp_path, "--algorithms", "ZeroShotCLIP", "GDA")
    said = capsys.readouterr().out
    assert "left out in turn: fold 1, fold 2, fold 3, fold 4, fold 5;" in said
    assert "--dataset Folds:" in said


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--budget", "soon"], "--budget is 'soon'"),
        (["--jobs", "0"], "--jobs is 0"),
        (["--algorithms", "LFA"], "needs two names"),
        (["--algorithms", "LFA", "CLIP_LFA"], "needs two names"),
        (["--algorithms", "LFA", "FineTuneCLIP"], "does not train on stored features"),
        (["--algorithms", "LFA", "LFB"], "Unknown algorithm 'LFB'"),
        (["--data", "nowhere"], "--data nowhere is no folder"),
    ],
)
def test_wrong_input_is_a_sentence_and_runs_nothing(
    here, tmp_path, capsys, flags, says
):
    folder = make_image_folder(tmp_path / "data", ["a", "b"], ["cat", "dog"])
    with pytest.raises(SystemExit) as ended:
        recommend(folder, tmp_path, *flags)
    assert ended.value.code == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert says in sentence
    assert not here and not (tmp_path / "out").exists()


def test_a_budget_that_ends_while_features_are_stored(tmp_path, capsys, monkeypatch):
    def slow(command, timeout):
        raise subprocess.TimeoutExpired(command, timeout)

    replaced(monkeypatch, slow)
    folder = make_image_folder(tmp_path / "data", ["a", "b"], ["cat", "dog"])
    with pytest.raises(SystemExit) as ended:
        recommend(folder, tmp_path, "--budget", "1s")
    assert ended.value.code == 2
    assert "ended while the pictures' features were stored" in capsys.readouterr().err


def test_a_budget_for_less_than_two_methods(here, tmp_path, capsys, monkeypatch):
    folder = make_image_folder(tmp_path / "data", ["a", "b"], ["cat", "dog"])
    monkeypatch.setattr(trials.Budget, "left", -1.0)
    with pytest.raises(SystemExit) as ended:
        recommend(folder, tmp_path, "--budget", "1s")
    assert ended.value.code == 2
    assert "the budget of 1s was too small" in capsys.readouterr().err
