"""What differs between tasks: splits and their roles, batches, steps, learning rate.

A task is an object of these few methods; nothing else asks which task it is. Who only
asks for names and checks arguments, as a sweep does, needs no torch.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from domainbed.arguments import environment_numbers
from domainbed.datasets import MultipleDomainDataset, get_dataset_class
from domainbed.datasets_few_shot import Shots
from domainbed.lib import misc
from domainbed.lib.bounds import at_least
from domainbed.lib.errors import InputError, UnknownNameError, check_choice
from domainbed.lib.shots import batches_per_epoch, cosine, rate, scores

if TYPE_CHECKING:
    import torch

    from domainbed.algorithms import Algorithm, HparamRows, Minibatches

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
        given = [name for name in OF_FEW_SHOT if hasattr(args, name)]
        if given:
            raise InputError(f"--{given[0]} is of --task few_shot, not of {args.task}.")

    def check_algorithm(
        self, args: argparse.Namespace, hparams: dict[str, Any]
    ) -> None:
        """InputError for an algorithm or hyperparameters that it cannot take."""

    def check_made(self, run: Any) -> None:
        """InputError for a run that is made and cannot be tested."""

    def hparam_rows(self, args: argparse.Namespace) -> HparamRows:
        """Rows that go before the algorithm's own."""
        return {}

    def dataset(
        self, args: argparse.Namespace, hparams: dict[str, Any]
    ) -> MultipleDomainDataset:
        """The run's environments; `args.test_envs` become their numbers."""
        dataset_class = class_for(args.dataset, args.task)
        args.test_envs = environment_numbers(
            args.test_envs, dataset_class.ENVIRONMENTS, dataset_class.KNOWN_AS
        )
        return dataset_class(args.data_dir, args.test_envs, hparams)

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

    def measures(
        self, run: Any, split: Split, network: Any, loader: Iterable
    ) -> dict[str, float]:
        """What a record says of a split, `acc` among it; the network answers."""
        return {"acc": misc.accuracy(network, loader, None, run.device)}

    def chosen(self, run: Any, records: list[dict]) -> tuple[dict, str]:
        """The record that stands for the run, and why."""
        if not any(split.role == "select" for split in run.splits):
            return records[-1], "the last, for nothing was held out to choose by"
        best = max(records, key=run.validation_rank)
        return best, "chosen by training-domain validation"


class DomainAdaptation(DomainGeneralization):
    """A share of each test environment is seen in training, without its labels."""

    def check(self, args):
        super().check(args)
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


class FewShot(DomainGeneralization):
    """CoOp's protocol: K shots of each class train, the last epoch is tested.

    The dataset's environments are those of `Shots`. Zhou et al., 2022,
    https://arxiv.org/abs/2109.01134
    """

    def check(self, args):
        vars(args).update(OF_FEW_SHOT | vars(args))
        if args.shots is None or args.shots < 1:
            raise InputError(f"--shots is {args.shots}; the task needs at least 1.")
        if args.test_envs != [0] or args.holdout_fraction != 0.2:
            raise InputError(
                "--test_envs and --holdout_fraction are not of --task few_shot: it "
                "tests on the dataset's test lists and holds out its own."
            )
        sources = class_for(args.dataset, args.task).SOURCES
        args.source = args.source or (sources[0] if sources else None)
        if args.source is not None and not sources:
            raise InputError(
                f"{args.dataset} has no domains that --source could name; leave it out."
            )
        if args.source is not None and args.source not in sources:
            raise UnknownNameError(f"source in {args.dataset}", args.source, sources)
        tested = [args.dataset]
        for name in args.transfer_to or ():
            class_for(name, args.task)
            if name in tested:
                raise InputError(f"--transfer_to {name} is tested already.")
            tested.append(name)

    def check_algorithm(self, args, hparams):
        check_views(args.algorithm, hparams)
        if not has_schedule(args.algorithm, args.dataset):
            check_choice(hparams, "schedule", SCHEDULES)
        if args.classes == "base" and algorithm_for(args.algorithm).FIXED_CLASSES:
            raise of_fixed_classes(args.algorithm, "new")

    def check_made(self, run):
        for environment in run.dataset:
            others = environment.classes != run.dataset.class_names
            if others and run.algorithm.FIXED_CLASSES:
                raise of_fixed_classes(run.args.algorithm, environment.name)

    def hparam_rows(self, args):
        dataset_class = class_for(args.dataset, args.task)
        algorithm_class = algorithm_for(args.algorithm)
        own = algorithm_class.hparam_rows(args.dataset)
        rows = {
            "prompt": (dataset_class.TEMPLATE, None),
            "augment": (dataset_class.AUGMENT, None),
            "views": at_least(0, 0),
            "train_on_val": (dataset_class.TRAIN_ON_VAL, None),
        }
        if "prompt" not in own:
            del rows["prompt"]
        further = algorithm_class.few_shot_rows(args.dataset, args.shots)
        return rows | further

    def dataset(self, args, hparams):
        self.check_algorithm(args, hparams)
        dataset = Shots(class_for(args.dataset, args.task), args, hparams)
        args.test_envs = [*range(1, len(dataset))]
        return dataset

    def splits(self, dataset, args):
        n, n_train = len(dataset[0]), dataset.n_train
        splits = [Split(0, "in", "train", [*range(n_train)])]
        for i in args.test_envs:
            splits.append(Split(i, "in", "test", [*range(len(dataset[i]))]))
        if n > n_train:
            splits.append(Split(0, "out", "select", [*range(n_train, n)]))
        return splits

    def batches(self, run, first=0):
        from domainbed.lib.fast_data_loader import EpochLoader

        loader = EpochLoader(
            run.items(run.splits[0], to_train=True),
            run.hparams["batch_size"],
            run.workers(1),
            misc.seed_hash(run.args.seed, run.splits[0].name),
            first,
            run.hparams["views"] or 1,
        )
        for x, y in loader:
            yield [(x, y)], None

    def n_steps(self, run):
        if run.args.steps is not None:
            return run.args.steps
        return run.hparams["epochs"] * int(self.steps_per_epoch(run))

    def is_checkpoint(self, run, step):
        return bool(run.args.checkpoint_freq) and super().is_checkpoint(run, step)

    def steps_per_epoch(self, run):
        return batches_per_epoch(run.dataset.n_train, run.hparams["batch_size"])

    def learning_rate(self, run, step):
        if has_schedule(run.args.algorithm, run.args.dataset):
            return None
        lr, epochs = (run.hparams[name] for name in ("lr", "epochs"))
        per_epoch = self.steps_per_epoch(run)
        schedules = {
            "constant": lambda: None,
            "cosine": lambda: cosine(step, lr, epochs * per_epoch),
            "warm_cosine": lambda: rate(step // per_epoch, lr, epochs),
        }
        return schedules[run.hparams["schedule"]]()

    def measures(self, run, split, network, loader):
        algorithm, environment = run.algorithm, run.dataset[split.env]
        others = environment.classes != run.dataset.class_names
        if others:
            algorithm.ask(environment.classes, environment.template)
        guesses, labels = misc.guesses(network, loader, run.device)
        if others:
            algorithm.ask(run.dataset.class_names)
        return scores(guesses, labels)

    def chosen(self, run, records):
        return records[-1], "the last epoch's model"


@functools.lru_cache
def has_schedule(algorithm: str, dataset: str) -> bool:
    """Whether the algorithm has a schedule of its own, and follows it."""
    return "schedule" in algorithm_for(algorithm).hparam_rows(dataset)


def of_fixed_classes(algorithm: str, test: str) -> InputError:
    """That it cannot be tested there."""
    return InputError(
        f"{algorithm} has weights for each of its classes and cannot be tested on the "
        f"other ones of {test}; a method on CLIP's texts can, such as LFA."
    )


def check_views(algorithm: str, hparams: dict[str, Any]) -> None:
    """InputError if the method does not train on what a frozen tower makes of them."""
    from domainbed.algorithms import reads_stored

    if hparams["views"] and not reads_stored(algorithm_for(algorithm), hparams):
        raise InputError(
            f"hyperparameter views is {hparams['views']}, but {algorithm} trains on "
            "images, not on what a frozen CLIP makes of them; augment=true crops them "
            "anew at each step."
        )


def class_for(dataset: str, task: str) -> type[MultipleDomainDataset]:
    """The dataset of that name; InputError if it is none of the task's."""
    dataset_class = get_dataset_class(dataset)
    if task not in dataset_class.TASKS:
        raise InputError(
            f"{dataset} is no dataset of --task {task}; it is one of "
            f"{' and '.join(dataset_class.TASKS)}."
        )
    return dataset_class


def algorithm_for(name: str) -> type[Algorithm]:
    """The algorithm of that name."""
    from domainbed.algorithms import get_algorithm_class

    return get_algorithm_class(name)


SCHEDULES = ("constant", "cosine", "warm_cosine")  # of few-shot runs
# What arguments of few-shot runs alone are, if nobody says so.
OF_FEW_SHOT = {"shots": None, "classes": "all", "source": None, "transfer_to": None}
TASKS = {
    "domain_generalization": DomainGeneralization(),
    "domain_adaptation": DomainAdaptation(),
    "few_shot": FewShot(),
}


def get_task(name: str) -> DomainGeneralization:
    """The task of that name; UnknownNameError if there is none."""
    if name not in TASKS:
        raise UnknownNameError("task", name, TASKS)
    return TASKS[name]
