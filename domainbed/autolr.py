"""A learning rate found in one run and played back in another that has all data.

    python -m domainbed.scripts.train_autolr

Teterwak et al., 2023, "ERM++", https://arxiv.org/abs/2304.01973. The search, in the
folder's `search`, lowers its rate whenever the validation loss stops falling, until it
has done so often enough. The run of the folder itself holds out nothing and takes the
rates that the search took at the same steps; its accuracies are `fd_env0_in_acc` ("full
data"). Both take batches without replacement.
"""

import argparse
import math
import shutil
from pathlib import Path

from domainbed import algorithms
from domainbed.lib import misc
from domainbed.lib.errors import InputError
from domainbed.lib.fast_data_loader import EpochLoader
from domainbed.runs.records import RunRecords
from domainbed.training import Run


class RateIsZero(Exception):
    """What ends a stage before the record of the checkpoint at which it is found."""


class Stage(Run):
    """A run in passes over the data, whose rate is set at each checkpoint."""

    def loaders(self, role, first=0):
        splits = self.splits_of(role)
        return [
            EpochLoader(
                self.items(split, to_train=True),
                self.hparams["batch_size"],
                self.workers(len(splits)),
                seed=misc.seed_hash(self.args.seed, split.name),
                first=first,
            )
            for split in splits
        ]

    def train(self) -> None:
        try:
            super().train()
        except RateIsZero:
            self.bar.close()
            self.finish()

    def record(self, values):
        rate = self.rate()
        if rate == 0.0:
            raise RateIsZero
        super().record(values | {"lr": rate})

    def rate(self) -> float:
        """The rate from this checkpoint on, which the algorithm has now."""
        raise NotImplementedError


class SearchRun(Stage):
    """The first: the rate falls by the training environments' held-out loss."""

    def rate(self):
        loaders = [*map(self.read_once, self.splits_of("select"))]
        rates = self.algorithm.set_lr(loaders, device=self.device)
        return rates[-1] if rates else self.hparams["lr"]


class FullRun(Stage):
    """The second: all data of every training environment, at the first's rates.

    Its results begin with the first's.
    """

    MARK = "fd_"

    def __init__(self, args: argparse.Namespace, search: SearchRun):
        super().__init__(changed(args, holdout_fraction=0.0, eval="all"))
        self.about = search.about  # the command's, for both
        self.searched = search.records
        records = self.searched.read()
        accuracy = search.validation_accuracy
        self.found = {record["step"]: accuracy(record) for record in records}
        first = self.hparams["linear_steps"]  # the search set no rate before
        # What is left of the rates is a part of the algorithm's state.
        rates = [record["lr"] for record in records if record["step"] >= first]
        if records[-1]["step"] < search.n_steps - 1:
            rates.append(0.0)
        self.algorithm.lr_schedule = rates

    def resume(self):
        first, logged = super().resume()
        if not first:
            before = self.searched.results.read_bytes()
            self.records.write(self.records.results.name, before)
        return first, logged

    def evaluate(self, splits=None):
        results = super().evaluate(splits)
        return {f"{self.MARK}{name}": value for name, value in results.items()}

    def rate(self):
        left = self.algorithm.set_lr(schedule=self.algorithm.lr_schedule)
        self.algorithm.lr_schedule = left
        return self.algorithm.optimizer.param_groups[0]["lr"]

    def validation_accuracy(self, record):
        """The search's at that step; only this run's own records have one."""
        own = any(name.startswith(self.MARK) for name in record)
        return self.found.get(record["step"], math.nan) if own else math.nan


class Records(RunRecords):
    """Those of both stages."""

    @property
    def search(self) -> Path:
        return self.folder / "search"

    def clear(self) -> None:
        super().clear()
        shutil.rmtree(self.search, ignore_errors=True)


class AutoLR:
    """Both stages, one after the other: what `scripts.train` needs of a run."""

    def __init__(self, args: argparse.Namespace):
        check_algorithm(args.algorithm)
        args.auto_lr = True  # what makes it another run than train's
        self.args, self.records = args, Records(Path(args.output_dir))
        self.run = SearchRun(changed(args, output_dir=str(self.records.search)))
        args.test_envs = self.run.args.test_envs  # as numbers
        self.hparams, self.device = self.run.hparams, self.run.device
        self.about = self.run.about
        if self.hparams["class_balanced"]:
            raise InputError(
                "auto lr takes each item once a pass; set hyperparameter "
                "class_balanced to false."
            )
        if not self.run.splits_of("select"):
            raise InputError(
                f"--holdout_fraction {args.holdout_fraction} leaves nothing to find a "
                "learning rate with; raise it."
            )

    @property
    def stepping(self) -> bool:
        return self.run.stepping

    @property
    def stopping(self) -> bool:
        return self.run.stopping

    @stopping.setter
    def stopping(self, value: bool) -> None:
        self.run.stopping = value

    def train(self) -> None:
        self.records.search.mkdir(parents=True, exist_ok=True)
        if not self.run.records.done.exists():
            self.run.train()
            if self.stopping:
                return
        self.run = FullRun(self.args, self.run)
        self.run.train()


def check_algorithm(name: str) -> None:
    """InputError for an algorithm that lets no schedule set its rate."""
    if not hasattr(algorithms.get_algorithm_class(name), "set_lr"):
        raise InputError(
            f"auto lr is for algorithms that have a set_lr, ERMPlusPlus; not {name}."
        )


def changed(args: argparse.Namespace, **values: object) -> argparse.Namespace:
    """A copy of the arguments with these values."""
    return argparse.Namespace(**vars(args) | values)
