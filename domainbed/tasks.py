"""What differs between tasks: splits and their roles, batches, steps, learning rate.

A task is an object of these few methods; nothing else asks which task it is.
"""

import argparse
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from domainbed.algorithms import Minibatches
from domainbed.datasets import MultipleDomainDataset
from domainbed.lib import misc
from domainbed.lib.errors import InputError, UnknownNameError

Batches = Iterator[tuple[Minibatches, list[torch.Tensor] | None]]


class Split(NamedTuple):
    """A part of an environment: `in`, `out` (held out) or `uda` (unlabeled).

    Its role is what it is for: to train, select or test on, or to be seen unlabeled.
    `keys` are its items' numbers in the environment.
    """

    env: int
    part: str
    role: str
    keys: list[int]

    @property
    def name(self) -> str:
        return f"env{self.env}_{self.part}"


class DomainGeneralization:
    """DomainBed's protocol: train on some environments, test on the others.

    Of each a share is held out; the training environments' is selected on.
    Gulrajani & Lopez-Paz, 2021, https://arxiv.org/abs/2007.01434
    """

    def check(self, args: argparse.Namespace) -> None:
        """InputError for arguments that the task cannot take."""

    def splits(
        self, dataset: MultipleDomainDataset, args: argparse.Namespace
    ) -> list[Split]:
        """Every environment's parts, all `in` first, then all `out`, then all `uda`."""
        splits: dict[str, list[Split]] = {"in": [], "out": [], "uda": []}
        for i, env in enumerate(dataset):
            seed = misc.seed_hash(args.trial_seed, i)
            n_out = int(len(env) * args.holdout_fraction)
            out, in_ = misc.split_dataset(env, n_out, seed)
            parts = {"in": in_.indices, "out": out.indices}
            roles = {"in": "train", "out": "select"}
            if i in args.test_envs:
                n_uda = int(len(in_) * args.uda_holdout_fraction)
                uda, rest = misc.split_dataset(in_, n_uda, seed)
                parts["in"] = [in_.indices[k] for k in rest.indices]
                parts["uda"] = [in_.indices[k] for k in uda.indices]
                roles = {"in": "test", "out": "test", "uda": "unlabeled"}
            for part, keys in parts.items():
                if keys or part == "in":
                    splits[part].append(Split(i, part, roles[part], keys))
        return [*splits["in"], *splits["out"], *splits["uda"]]

    def batches(self, run: Any, first: int = 0) -> Batches:
        """What each step from number `first` on takes: `update`'s two arguments."""
        for minibatches in zip(*run.loaders("train", first), strict=True):
            yield list(minibatches), None

    def n_steps(self, run: Any) -> int:
        asked = run.args.steps
        return run.dataset.N_STEPS if asked is None else asked

    def is_checkpoint(self, run: Any, step: int) -> bool:
        """Whether the run is evaluated after that step, its last one aside."""
        return step % (run.args.checkpoint_freq or run.dataset.CHECKPOINT_FREQ) == 0

    def steps_per_epoch(self, run: Any) -> float:
        """Of the smallest `in` split, as upstream counts: the test ones among them."""
        smallest = min(len(split.keys) for split in run.splits if split.part == "in")
        return smallest / run.hparams["batch_size"]

    def learning_rate(self, run: Any, step: int) -> float | None:
        """The rate to take that step at; None leaves it to the algorithm."""
        return None


class DomainAdaptation(DomainGeneralization):
    """A share of each test environment is seen in training, without its labels."""

    def check(self, args):
        if not args.uda_holdout_fraction:
            raise InputError(
                "--task domain_adaptation needs --uda_holdout_fraction above 0: the "
                "share of a test environment that is seen unlabeled."
            )

    def splits(self, dataset, args):
        splits = super().splits(dataset, args)
        seen = {split.env for split in splits if split.role == "unlabeled"}
        for env in args.test_envs:
            if env not in seen:
                raise InputError(
                    f"--uda_holdout_fraction {args.uda_holdout_fraction} leaves no "
                    f"unlabeled image of environment {dataset.environment_name(env)}."
                )
        return splits

    def batches(self, run, first=0):
        unlabeled = zip(*run.loaders("unlabeled", first), strict=True)
        for (minibatches, _), targets in zip(
            super().batches(run, first), unlabeled, strict=True
        ):
            yield minibatches, [x for x, _ in targets]


TASKS = {
    "domain_generalization": DomainGeneralization(),
    "domain_adaptation": DomainAdaptation(),
}


def get_task(name: str) -> DomainGeneralization:
    """The task of that name; UnknownNameError if there is none."""
    if name not in TASKS:
        raise UnknownNameError("task", name, TASKS)
    return TASKS[name]
