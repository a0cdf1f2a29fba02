"""Tasks: which images a run trains, selects and tests on, and in which batches."""

import pytest
import torch

from domainbed import datasets, training
from domainbed.lib import misc
from domainbed.lib.errors import InputError
from domainbed.lib.fast_data_loader import draw_indices
from domainbed.scripts import train
from domainbed.tasks import TASKS, get_task

UDA = ["--task", "domain_adaptation", "--uda_holdout_fraction", "0.5"]


def splits_of(*flags):
    args = train.parse_args(["--dataset", "Debug28", *flags])
    args.test_envs = [int(env) for env in args.test_envs]
    dataset = datasets.Debug28("", args.test_envs, {})
    return get_task(args.task).splits(dataset, args), dataset


def run_of(tmp_path, *flags, hparams=("batch_size=4",)):
    command = ["--dataset", "Debug28", "--output_dir", str(tmp_path)]
    command += [*flags, "--hparams", *hparams]
    return training.Run(train.parse_args(command))


@pytest.mark.parametrize("trial", [0, 2])
def test_splits_follow_the_contract(trial):
    flags = ["--trial_seed", str(trial), "--test_envs", "1"]
    splits, dataset = splits_of(*flags, *UDA)
    names = [split.name for split in splits]
    parts = [f"env{i}_{part}" for part in ("in", "out") for i in range(3)]
    assert names == [*parts, "env1_uda"]
    keys = {split.name: split.keys for split in splits}
    for i in range(3):
        seed = misc.seed_hash(trial, i)
        out, in_ = misc.split_dataset(dataset[i], 3, seed)
        assert keys[f"env{i}_out"] == out.indices
        if i == 1:
            uda, rest = misc.split_dataset(in_, 6, seed)
            assert keys["env1_uda"] == [in_.indices[k] for k in uda.indices]
            assert keys["env1_in"] == [in_.indices[k] for k in rest.indices]
        else:
            assert keys[f"env{i}_in"] == in_.indices


def test_a_trial_has_splits_of_its_own():
    (first, _), (second, _) = (splits_of("--trial_seed", t) for t in "01")
    assert all(a.keys != b.keys for a, b in zip(first, second, strict=True))


def test_each_split_has_its_role():
    splits, _ = splits_of("--test_envs", "1", *UDA)
    assert {split.name: split.role for split in splits} == {
        "env0_in": "train",
        "env1_in": "test",
        "env2_in": "train",
        "env0_out": "select",
        "env1_out": "test",
        "env2_out": "select",
        "env1_uda": "unlabeled",
    }


def test_only_what_is_to_train_on_is_in_a_batch(tmp_path):
    """Batch t of an environment: its `in` split at `draw_indices` of seed and name."""
    run = run_of(tmp_path, "--test_envs", "1", "--seed", "3")
    batches = run.task.batches(run, first=2)
    for t in (2, 3):
        minibatches, unlabeled = next(batches)
        assert unlabeled is None
        for (x, y), env in zip(minibatches, (0, 2), strict=True):
            (split,) = (s for s in run.splits if s.name == f"env{env}_in")
            seed = misc.seed_hash(3, split.name)
            keys = [
                split.keys[i] for i in draw_indices(len(split.keys), None, 4, seed, t)
            ]
            items = [run.dataset[env][key] for key in keys]
            assert torch.equal(x, torch.stack([x for x, _ in items]))
            assert y.tolist() == [int(y) for _, y in items]


def test_no_two_batches_are_one_and_a_seed_has_its_own(tmp_path):
    first, again, other = (
        [
            x
            for step in zip(range(3), run.task.batches(run), strict=False)
            for x, _ in step[1][0]
        ]
        for run in (run_of(tmp_path, "--seed", seed) for seed in "001")
    )
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))
    for i, x in enumerate(first):
        assert not any(torch.equal(x, later) for later in first[i + 1 :])


def test_class_balance_draws_every_class_alike(tmp_path, monkeypatch):
    """Of a class that is a tenth of the items half of a batch is."""
    hparams = ["class_balanced=true", "batch_size=400"]
    plain = run_of(tmp_path, hparams=hparams[1:])
    balanced = run_of(tmp_path, hparams=hparams)
    labels = torch.zeros(16, dtype=torch.long)
    labels[::10] = 1
    for run in (plain, balanced):
        for environment in run.dataset:
            environment.tensors = (environment.tensors[0], labels)
    share = {
        run: torch.cat([y for _, y in next(run.task.batches(run))[0]]).float().mean()
        for run in (plain, balanced)
    }
    assert share[plain] < 0.3
    assert 0.4 < share[balanced] < 0.6


def test_class_balance_weighs_no_evaluation(tmp_path):
    """Upstream weighs sampling alone."""
    balanced = run_of(tmp_path, hparams=["class_balanced=true", "batch_size=4"])
    labels = torch.ones(16, dtype=torch.long)
    labels[0] = 0
    for environment in balanced.dataset:
        environment.tensors = (environment.tensors[0], labels)
    balanced.algorithm.predict = lambda x: torch.tensor([[0.0, 1.0]]).expand(len(x), -1)
    for split in balanced.splits:
        share = sum(key != 0 for key in split.keys) / len(split.keys)
        assert balanced.evaluate()[f"{split.name}_acc"] == pytest.approx(share)


def test_the_smallest_environment_has_the_epochs(tmp_path):
    run = run_of(tmp_path, "--test_envs", "1")
    (smallest, *_) = (split for split in run.splits if split.part == "in")
    del smallest.keys[6:]
    assert run.task.steps_per_epoch(run) == 6 / 4


def test_adaptation_adds_unlabeled_batches_and_changes_no_other(tmp_path):
    flags = ["--test_envs", "0", "2", "--uda_holdout_fraction", "0.5"]
    plain = run_of(tmp_path, *flags)
    adapting = run_of(tmp_path, *flags, "--task", "domain_adaptation")
    assert plain.splits == adapting.splits
    (minibatches, none), (same, unlabeled) = (
        next(run.task.batches(run, 4)) for run in (plain, adapting)
    )
    assert none is None
    assert torch.equal(minibatches[0][0], same[0][0])
    assert [x.shape for x in unlabeled] == [(4, 3, 28, 28)] * 2


def test_adaptation_needs_something_unlabeled(tmp_path):
    flags = ["--task", "domain_adaptation"]
    with pytest.raises(InputError, match="needs --uda_holdout_fraction above 0"):
        run_of(tmp_path, *flags)
    with pytest.raises(InputError, match=r"0\.01 leaves no unlabeled image of env"):
        run_of(tmp_path, *flags, "--uda_holdout_fraction", "0.01")


def test_an_unknown_task_is_named(tmp_path):
    with pytest.raises(InputError, match="Did you mean 'domain_adaptation'"):
        get_task("domain_adaptatoin")
    assert all(get_task(name) is task for name, task in TASKS.items())


def test_a_support_set_is_of_the_training_domains_alone(pacs, tmp_path):
    flags = ["--dataset", "PACS", "--data_dir", str(pacs), "--num_workers", "0"]
    hparams = ["clip_backbone=emoji", "support_shots=2"]
    run = run_of(tmp_path, *flags, "--algorithm", "GDA", hparams=hparams)
    domains = [[y.tolist() for _, y in domain] for domain in run.support_set()]
    assert len(domains) == 3 and all(
        sorted(labels) == [0, 0, 1, 1] for (labels,) in domains
    )
    again = run_of(tmp_path, *flags, "--algorithm", "GDA", hparams=hparams)
    for own, other in zip(run.support_set(), again.support_set(), strict=True):
        (x, _), (z, _) = next(iter(own)), next(iter(other))
        assert torch.equal(x, z)
    held = sum(len(y) for _, y in run.examples_to_choose_by())
    assert held == 3 * 2  # a fifth of ten, of each training domain
