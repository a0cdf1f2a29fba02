"""One run: its records, its files, its determinism, and what wrong input gets."""

import functools
import json
import re
import subprocess
import sys

import pytest
import torch

from domainbed import (
    algorithms,
    arguments,
    datasets,
    hparams_registry,
    model_selection,
    training,
)
from domainbed.lib import misc
from domainbed.lib.errors import InputError
from domainbed.lib.query import Q
from domainbed.scripts import train

pytestmark = pytest.mark.filterwarnings("ignore:no class names")
TIMINGS = ("step_time", "mem_gb")


def run(folder, *flags, algorithm="LFA", dataset="Debug28"):
    """Run the command in this process; its records without the timings."""
    command = ["--dataset", dataset, "--algorithm", algorithm]
    train.main([*command, "--output_dir", str(folder), *flags])
    return records_of(folder)


def records_of(folder):
    lines = (folder / "results.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        for name in TIMINGS:
            assert record.pop(name, 1) > 0
    return records


def test_a_run_leaves_what_the_contract_says(tmp_path):
    records = run(tmp_path, "--steps", "5", "--checkpoint_freq", "2")
    assert [record["step"] for record in records] == [0, 2, 4]
    accuracies = {f"env{i}_{part}_acc" for i in range(3) for part in ("in", "out")}
    keys = accuracies | {"step", "epoch", "loss", "hparams", "args"}
    assert records[0].keys() == keys
    line = (tmp_path / "results.jsonl").read_text().splitlines()[0]
    assert list(json.loads(line)) == sorted(json.loads(line))
    assert records[1]["epoch"] == 2 / (13 / 64)  # 16 images, 3 held out, batch 64
    assert records[0]["args"]["test_envs"] == [0]
    assert records[0]["hparams"]["beta"] == 0.9
    assert (tmp_path / "done").read_text() == "done"
    out = (tmp_path / "out.txt").read_text()
    assert "beta: 0.9" in out
    assert "env0_in_acc" in out
    saved = torch.load(tmp_path / "model.pkl", weights_only=True)
    assert saved.keys() == {
        "args",
        "model_input_shape",
        "model_num_classes",
        "model_num_domains",
        "model_hparams",
        "model_dict",
    }
    assert saved["model_num_domains"] == 2


def test_equal_arguments_give_equal_records(tmp_path):
    flags = ["--steps", "3", "--hparams", '{"rank": 2}']  # dropout draws numbers too
    first = run(tmp_path / "a", *flags)
    again = run(tmp_path / "b", *flags)
    other = run(tmp_path / "c", *flags, "--seed", "1")
    for records in (first, again, other):
        for record in records:
            del record["args"]
    assert first == again
    assert first != other


def test_the_saved_model_answers_as_the_trained_one(tmp_path):
    flags = ["--dataset", "Debug28", "--algorithm", "LFA", "--steps", "2"]
    args = train.parse_args([*flags, "--output_dir", str(tmp_path)])
    trained = training.Run(args)
    trained.train()
    loaded = training.load_algorithm(tmp_path)
    x = torch.randn(3, 3, 28, 28)
    with torch.no_grad():
        assert torch.equal(loaded.predict(x), trained.algorithm.eval().predict(x))


@pytest.mark.parametrize("algorithm, n_steps", [("LFA", 7), ("ZeroShotCLIP", 1)])
def test_an_algorithm_is_told_how_many_steps_there_are(algorithm, n_steps, tmp_path):
    flags = ["--dataset", "Debug28", "--algorithm", algorithm, "--steps", "7"]
    told = training.Run(train.parse_args([*flags, "--output_dir", str(tmp_path)]))
    assert told.algorithm.n_steps == n_steps


def test_zero_shot_takes_one_step(tmp_path):
    records = run(tmp_path, "--steps", "50", algorithm="ZeroShotCLIP")
    assert [record["step"] for record in records] == [0]


def test_models_can_be_left_out_or_kept_at_every_checkpoint(tmp_path):
    flags = ["--steps", "3", "--checkpoint_freq", "2"]
    run(tmp_path / "none", *flags, "--skip_model_save")
    assert not list((tmp_path / "none").glob("*.pkl"))
    run(tmp_path / "all", *flags, "--save_model_every_checkpoint")
    names = {path.name for path in (tmp_path / "all").glob("*.pkl")}
    assert names == {"model.pkl", "model_step0.pkl", "model_step2.pkl"}


def test_each_step_draws_from_its_own_seed(tmp_path, monkeypatch):
    """What an update draws is a function of --seed and of the step, nothing else."""
    drawn = []

    def update(self, minibatches, unlabeled=None):
        drawn.append((self.step, torch.rand(()).item()))
        return {"loss": 0.0}

    monkeypatch.setattr(algorithms.ERM, "update", update)
    flags = ["--steps", "4", "--checkpoint_freq", "2"]
    for folder, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        run(tmp_path / folder, *flags, "--seed", seed, algorithm="ERM")
    assert [step for step, _ in drawn] == [0, 1, 2, 3] * 3
    first, again, other = drawn[:4], drawn[4:8], drawn[8:]
    assert first == again
    assert len({*first, *other}) == 8
    for step, value in first:
        misc.seed_everything(misc.seed_hash(0, "step", step))
        assert value == torch.rand(()).item()


def test_a_draw_is_of_its_number_and_trial():
    """Upstream: random_hparams of seed_hash(hparams_seed, trial_seed)."""
    drawn = {}
    for number in (1, 2):
        for trial in (0, 1):
            flags = ["--hparams_seed", str(number), "--trial_seed", str(trial)]
            args = train.parse_args(["--algorithm", "LFA", *flags])
            drawn[number, trial] = arguments.resolve_hparams(args)
            assert drawn[number, trial] == hparams_registry.random_hparams(
                "LFA", args.dataset, misc.seed_hash(number, trial)
            )
    assert len({hparams["lr"] for hparams in drawn.values()}) == 4


def test_evaluated_is_told_before_the_state_is_saved(tmp_path, monkeypatch):
    told = []

    class Averaging(algorithms.ERM):
        def evaluated(self, step, accuracies):
            told.append((step, accuracies))
            self.best = max(accuracies.values())

    monkeypatch.setattr(algorithms, "get_algorithm_class", lambda name: Averaging)
    saved = []
    save = training.RunRecords.save_state
    monkeypatch.setattr(
        training.RunRecords,
        "save_state",
        lambda self, state: (saved.append(state), save(self, state)),
    )
    flags = ["--steps", "5", "--checkpoint_freq", "2"]
    records = run(tmp_path, *flags, algorithm="ERM")
    assert [step for step, _ in told] == [0, 2, 4]
    for (_, accuracies), record, state in zip(told, records, saved, strict=True):
        assert accuracies == {k: v for k, v in record.items() if k.endswith("_acc")}
        assert state["algorithm"]["plain"]["", "best"] == max(accuracies.values())


def test_evaluating_what_is_chosen_chooses_the_same(tmp_path):
    """Fewer accuracies, the same ones; every selection method finds its own."""
    flags = ["--steps", "12", "--checkpoint_freq", "2", "--hparams", "batch_size=4"]
    whole = run(tmp_path / "all", *flags, algorithm="ERM")
    part = run(tmp_path / "chosen", *flags, "--eval", "chosen", algorithm="ERM")
    assert len(part) == len(whole)
    for record, full in zip(part, whole, strict=True):
        names = {name for name in record if name.endswith("_acc")}
        assert {n: record[n] for n in names} == {n: full[n] for n in names}
        assert {"env1_out_acc", "env2_out_acc"} <= names
        assert not {"env1_in_acc", "env2_in_acc"} & names
    assert sum("env0_in_acc" in record for record in part) < len(part)
    for method in (
        model_selection.IIDAccuracySelectionMethod,
        model_selection.OracleSelectionMethod,
    ):
        assert method.run_acc(Q(part)) == method.run_acc(Q(whole))


def test_the_last_line_says_what_was_reached(tmp_path, capsys):
    records = run(tmp_path, "--steps", "5", "--checkpoint_freq", "2")
    means = [(r["env1_out_acc"] + r["env2_out_acc"]) / 2 for r in records]
    best = records[means.index(max(means))]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (
        f"target 0: {100 * best['env0_in_acc']:.1f} % at step {best['step']}, chosen "
        "by training-domain validation"
    )


def test_no_steps_means_none(tmp_path):
    (record,) = run(tmp_path, "--steps", "0")
    assert record["step"] == 0
    assert "loss" not in record
    start = run(tmp_path / "b", "--steps", "1", "--hparams", "lr=0.0")[0]
    assert record["env0_in_acc"] == start["env0_in_acc"]


def test_hparams_mean_the_same_in_every_form(tmp_path):
    file = tmp_path / "hparams.json"
    file.write_text('{"lr": 0.01,\n "rank": 2, "prompt": "art of a {name}"}')
    text = '{"lr": 0.01, "rank": 2, "prompt": "art of a {name}"}'
    pairs = ["lr=0.01", "rank=2", "prompt=art of a {name}"]
    for words in ([text], [f"@{file}"], pairs):
        assert train.parse_args(["--hparams", *words]).hparams == text
    assert train.parse_args([]).hparams is None


@pytest.mark.parametrize(
    "wanted, numbers",
    [(["2"], [2]), (["P", "0"], [2, 0]), ([3, "C"], [3, 1]), (["Sketch"], [3])],
)
def test_test_envs_are_given_by_number_or_name(wanted, numbers):
    known_as = datasets.PACS.KNOWN_AS
    assert arguments.environment_numbers(wanted, "ACPS", known_as) == numbers


def test_a_number_counts_before_a_name():
    degrees = ("0", "15", "30")
    assert arguments.environment_numbers(["2", "15"], degrees) == [2, 1]


def test_a_number_that_is_another_environments_name_is_said(capsys):
    assert arguments.environment_numbers(["0", "3"], ("0", "2", "3", "1")) == [0, 3]
    said = "--test_envs 3 is the environment number 3, 1; the one called 3 is number 2."
    assert capsys.readouterr().err == f"warning: {said}\n"


def test_domain_adaptation_sees_test_domains_unlabeled(tmp_path, monkeypatch):
    seen = []
    update = algorithms.ERM.update

    def watch(self, minibatches, unlabeled=None):
        seen.append((len(minibatches), [tuple(x.shape) for x in unlabeled]))
        return update(self, minibatches, unlabeled)

    monkeypatch.setattr(algorithms.ERM, "update", watch)
    flags = ["--steps", "2", "--task", "domain_adaptation", "--test_envs", "1"]
    flags += ["--uda_holdout_fraction", "0.5", "--hparams", "batch_size=4"]
    records = run(tmp_path, *flags, algorithm="ERM")
    assert seen == [(2, [(4, 3, 28, 28)])] * 2
    assert "env1_uda_acc" in records[0]


@pytest.mark.parametrize("given, expected", [([], False), (["1"], True)])
def test_validation_is_augmented_only_as_upstream_does_it_on_request(
    given, expected, pacs, monkeypatch
):
    flags = ["--dataset", "PACS", "--data_dir", str(pacs), "--algorithm", "ERM"]
    hparams = ["pretrained=false", "resnet18=true"]
    hparams += ["augment_validation=true"] if given else []
    prepared = training.Run(train.parse_args([*flags, "--hparams", *hparams]))
    split = next(s for s in prepared.splits if s.name == "env1_out")
    for to_train in (True, False):
        items = prepared.items(split, to_train)
        draws = {items[0][0].sum().item() for _ in range(3)}
        assert (len(draws) > 1) == (to_train or expected)


@pytest.mark.parametrize(
    "cores, loaders, expected", [(2, 3, 0), (4, 3, 1), (64, 3, 8), (64, 11, 5)]
)
def test_worker_processes_never_outnumber_the_cores(
    cores, loaders, expected, monkeypatch
):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    flags = ["--dataset", "Debug28", "--algorithm", "LFA"]
    prepared = training.Run(train.parse_args(flags))
    assert prepared.workers(loaders) == expected
    asked = training.Run(train.parse_args([*flags, "--num_workers", "3"]))
    assert asked.workers(loaders) == 3


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--algorithm", "LFAA"], "Unknown algorithm 'LFAA'; known: .* mean 'LFA'?"),
        (["--dataset", "PACX"], "Unknown dataset 'PACX'; known: .* mean 'PACS'?"),
        (["--hparams", "{lr: 1}"], "--hparams '{lr: 1}' is not JSON"),
        (["--hparams", "[1]"], "--hparams '[1]' must be a JSON object"),
        (["--hparams", '{"lrr": 1}'], "no hyperparameter 'lrr'. Did you mean 'lr'?"),
        (
            ["--algorithm", "LST", "--hparams", "lst_reduction=48"],
            "lst_reduction is 48; it must divide 64, and the nearest .* is 32",
        ),
        (["--dataset", "ImageFolder:"], "'' names no place of a dataset's"),
        (["--hparams", "feature_dtype=float8"], "'float8'; known: float16, float32"),
        (["--hparams", 'class_names=["a", 5]'], "['a', 5]; each must be a string"),
        (["--test_envs", "-1"], "--test_envs -1 is no environment"),
        (["--test_envs", "7"], "--test_envs 7 is no environment; there are 0"),
        (["--test_envs", "0", "1", "2"], "--test_envs 0 1 2 leaves none to train on"),
        (["--dataset", "PACS"], "PACS needs --data_dir"),
        (["--dataset", "VLCS", "--data_dir", "/nowhere"], "VLCS is not at /nowhere"),
        (["--hparams", '{"clip_backbone": "emojii"}'], "Unknown CLIP backbone"),
        (["--hparams", '{"prompt": "a dog"}'], "prompt 'a dog' has no {name}"),
        (["--checkpoint_freq", "0"], "--checkpoint_freq is 0; it must be at least 1"),
        (["--steps", "-1"], "--steps is -1; it must be at least 0"),
        (["--holdout_fraction", "1.0"], "--holdout_fraction is 1.0"),
        (["--task", "domain_adaptation"], "needs --uda_holdout_fraction above 0"),
        (["--hparams", "@/nowhere.json"], "cannot read /nowhere.json: No such file"),
        (["--hparams", "betta=1"], "no hyperparameter 'betta'. Did you mean 'beta'?"),
    ],
)
def test_wrong_input_gets_one_sentence_and_harms_nothing(flags, says, tmp_path, capsys):
    folder = tmp_path / "run"
    base = ["--dataset", "Debug28", "--algorithm", "LFA", "--steps", "1"]
    base += ["--output_dir", str(folder)]
    with pytest.raises(SystemExit) as ended:
        train.main([*base, *flags])
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert re.search(says.replace("[", "\\[").replace("{", "\\{"), error), error
    assert not folder.exists()


def test_a_pretrained_download_that_fails_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    hparams = '{"pretrained": true, "resnet18": true, "freeze_bn": true}'
    with pytest.raises(SystemExit) as ended:
        run(
            tmp_path,
            "--steps",
            "1",
            "--hparams",
            hparams,
            algorithm="ERM",
            dataset="Debug224",
        )
    assert ended.value.code == 2
    assert "cannot get pretrained ResNet weights" in capsys.readouterr().err


def test_an_unreadable_image_ends_the_run_with_its_path(pacs, tmp_path, capsys):
    path = pacs / "PACS" / "photo" / "dog" / "3.png"
    path.write_bytes(b"no picture")
    flags = ["--data_dir", str(pacs), "--steps", "1"]
    hparams = ["--hparams", '{"clip_backbone": "emoji"}']
    with pytest.raises(SystemExit) as ended:
        run(tmp_path / "run", *flags, *hparams, dataset="PACS")
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert f"cannot read the image {path}" in error
    assert (tmp_path / "run" / "err.txt").read_text() == error
    assert not (tmp_path / "run" / "done").exists()


def test_in_a_sweeps_folder_wrong_input_is_logged(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, "--data_dir", "/nowhere", dataset="VLCS")
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: VLCS is not at /nowhere/VLCS")
    assert (tmp_path / "err.txt").read_text() == error


def test_a_crash_leaves_its_trace(tmp_path, monkeypatch, capsys):
    def crash(self, minibatches, unlabeled=None):
        raise RuntimeError("a defect")

    monkeypatch.setattr(algorithms.LFA, "update", crash)
    with pytest.raises(SystemExit) as ended:
        run(tmp_path / "run", "--steps", "1")
    assert ended.value.code == 1
    trace = (tmp_path / "run" / "err.txt").read_text()
    assert trace.endswith("RuntimeError: a defect\n")
    assert capsys.readouterr().err == trace


def test_the_command_itself(tmp_path):
    """The one test that starts a process: exit status, streams, a crash's trace."""
    command = [sys.executable, "-m", "domainbed.scripts.train", "--dataset", "Debug28"]
    command += ["--algorithm", "ZeroShotCLIP", "--output_dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "env0_in_acc" in done.stdout
    assert "Warning" not in done.stderr.replace("UserWarning: no class names", "")
    assert len(records_of(tmp_path)) == 1


@pytest.mark.parametrize("value, n", [("", 1), ("4,2", 4), (" 3 ", 3)])
def test_threads_are_what_the_variable_says(value, n, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert misc.threads() == n


@pytest.mark.parametrize("value", ["0", "many", "-1", "2.5", "99999999999"])
def test_threads_that_are_no_number_are_refused(value, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    with pytest.raises(InputError, match="OMP_NUM_THREADS is"):
        misc.threads()


def test_an_environments_name_may_be_spelled_in_any_way():
    """But for one that could be two, or a number that is none's name."""
    own = ("Real World", "sketch", "Sketch", "2")
    number = functools.partial(arguments.environment_number, environments=own)
    assert [number("real_world"), number("sketch"), number("Sketch")] == [0, 1, 2]
    for env in ("SKETCH", "-2", "sketsh"):
        with pytest.raises(InputError, match=f"--test_envs {env} is no environment"):
            number(env)
    with pytest.raises(InputError, match=r"Did you mean 'Sketch'\?"):
        number("sketsh")


@pytest.mark.parametrize("wanted", [[0, 0], ["P", "2"]])
def test_an_environment_is_named_once(wanted):
    with pytest.raises(InputError, match="twice; name each once"):
        arguments.environment_numbers(wanted, ("A", "C", "P", "S"))


@pytest.mark.parametrize("flag", ["--seed", "--trial_seed", "--hparams_seed"])
def test_seeds_are_not_negative(flag):
    with pytest.raises(InputError, match="is -1; it must be at least 0"):
        arguments.check_numbers(train.parse_args([flag, "-1"]))


def test_a_seed_is_below_numpys():
    arguments.check_numbers(train.parse_args(["--seed", str(2**32 - 1)]))
    with pytest.raises(InputError, match="--seed is 4294967296; it must be below"):
        arguments.check_numbers(train.parse_args(["--seed", str(2**32)]))


def test_a_home_folder_is_meant_by_its_sign(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    args = train.parse_args(["--data_dir=~/new", "--output_dir", "~"])
    assert (args.data_dir, args.output_dir) == ("/home/me/new", "/home/me")
