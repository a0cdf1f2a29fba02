"""Auto lr: the rates that a search found are those of the run on all data."""

import json
import math

import pytest
import torch
from helpers import command, lines

from domainbed import algorithms, hparams_registry, model_selection, networks
from domainbed.autolr import AutoLR
from domainbed.lib import reporting
from domainbed.scripts import collect_results, sweep, train, train_autolr

HPARAMS = '{"batch_size": 4, "linear_steps": 2}'
STEPS = ["--steps", "20", "--checkpoint_freq", "1", "--hparams", HPARAMS]
STEPS += ["--no_tensorboard", "--no_predictions"]


def flags(folder, *more):
    return command(folder, *STEPS, *more, algorithm="ERMPlusPlus")


def records(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").open()]


class Tiny(torch.nn.Sequential):
    n_outputs = 8

    def __init__(self, input_shape):
        n = math.prod(input_shape)
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(n, self.n_outputs))


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(networks, "MNIST_CNN", Tiny)


@pytest.fixture
def falling(monkeypatch):
    """The held-out loss stands still from the start: the rate falls every 2nd time."""
    cls = algorithms.get_algorithm_class("ERMPlusPlus")
    monkeypatch.setattr(cls, "held_out_loss", lambda *args: 1.0)


def test_the_second_run_takes_the_firsts_rates(tmp_path, falling):
    train_autolr.main(flags(tmp_path / "run", "--auto_lr"))
    both = records(tmp_path / "run")
    first = [r for r in both if "env1_out_acc" in r]
    second = [r for r in both if "fd_env0_in_acc" in r]
    assert first == records(tmp_path / "run" / "search")
    assert [r["args"]["holdout_fraction"] for r in (first[0], second[0])] == [0.2, 0.0]
    # Steps 2, 3, ... set it; the third fall would be at step 8.
    rates = [1e-3] * 4 + [1e-4] * 2 + [1e-5] * 2
    for run in (first, second):
        assert [r["step"] for r in run] == [*range(8)]
        assert [r["lr"] for r in run] == pytest.approx(rates)
    names = {name for name in second[0] if name.endswith("_acc")}
    assert names == {f"fd_env{i}_in_acc" for i in range(3)}
    assert (tmp_path / "run" / "done").exists()


def test_a_search_that_is_never_cut_short_ends_too(tmp_path):
    train_autolr.main(flags(tmp_path / "run", "--steps", "4"))
    both = records(tmp_path / "run")
    assert [r["step"] for r in both] == [0, 1, 2, 3] * 2
    saved = torch.load(tmp_path / "run" / "model.pkl", weights_only=True)
    assert saved["args"]["holdout_fraction"] == 0.0


@pytest.mark.parametrize("n", [5, 15])  # updates: in the search, in the run on all data
def test_interrupted_it_goes_on(tmp_path, interrupt, n, falling):
    train_autolr.main(flags(tmp_path / "whole"))
    repair = interrupt("update", n)
    with pytest.raises(SystemExit):
        train_autolr.main(flags(tmp_path / "broken"))
    repair()
    train_autolr.main(flags(tmp_path / "broken"))
    ours, theirs = (
        [line.replace("broken", "whole") for line in lines(tmp_path / name)]
        for name in ("broken", "whole")
    )
    assert ours == theirs


def test_stopped_in_either_stage_it_goes_on(tmp_path, falling):
    train_autolr.main(flags(tmp_path / "whole"))
    (tmp_path / "stopped").mkdir()
    for _ in range(15):
        run = AutoLR(train.parse_args(flags(tmp_path / "stopped")))
        run.run.stopping = True
        run.train()
    train_autolr.main(flags(tmp_path / "stopped"))
    assert lines(tmp_path / "stopped") == lines(tmp_path / "whole")


def test_a_sweep_starts_it_and_the_tables_select_by_it(tmp_path, falling):
    own = ["launch", "--datasets", "Debug28", "--algorithms", "ERMPlusPlus"]
    own += ["--n_hparams", "1", "--n_trials", "1", "--single_test_envs", "--auto_lr"]
    own += ["--data_dir", "none", "--output_dir", str(tmp_path), "--steps", "4"]
    jobs = sweep.jobs_of(sweep.parse_args([*own, "--hparams", HPARAMS]))
    assert len(jobs) == 3
    for job in jobs:
        words = job.command_str.split(" ")
        assert words[2] == "domainbed.scripts.train_autolr"
        assert "--auto_lr" in words
        train_autolr.main(flags(job.output_dir, *job_words(job), "--auto_lr"))
    read = reporting.records_of(collect_results.read_sweep(str(tmp_path)))
    merged = collect_results.merge_auto_lr(read)
    method = model_selection.IIDAutoLRAccuracySelectionMethod
    for _, own_records in merged.group("args.test_envs"):
        assert method.sweep_acc(own_records) is not None


def job_words(job):
    """What of its command its test does not give."""
    env = str(job.train_args["test_envs"][0])
    return ["--test_envs", env, "--data_dir", "none", "--steps", "4"]


@pytest.mark.parametrize(
    "more, says",
    [
        (["--algorithm", "ERM"], "auto lr is for algorithms that have a set_lr"),
        (["--holdout_fraction", "0"], "leaves nothing to find a learning rate with"),
        (["--hparams", '{"class_balanced": true}'], "class_balanced to false"),
    ],
)
def test_what_it_cannot_do_is_refused(tmp_path, capsys, more, says):
    with pytest.raises(SystemExit) as ended:
        train_autolr.main(flags(tmp_path / "run", *more))
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_set_lr_before_the_whole_network_trains_changes_nothing():
    hparams = hparams_registry.default_hparams("ERMPlusPlus", "Debug28")
    algorithm = algorithms.get_algorithm_class("ERMPlusPlus")((4,), 2, 2, hparams)
    assert algorithm.set_lr(schedule=[0.5]) == [0.5]
    assert algorithm.set_lr([]) == []
    assert algorithm.optimizer.param_groups[0]["lr"] == hparams["lr"]
