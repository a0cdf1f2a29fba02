"""Jobs of a sweep: the runs that it consists of, their commands, folders and states."""

import contextlib
import hashlib
import itertools
import json
import os
import random
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from domainbed import datasets
from domainbed.lib import misc
from domainbed.names import runs_after
from domainbed.runs.folder import RunFolder


class Job:
    """One run of a sweep: its command, its folder, and how far it is.

    `train_args` decide what the run finds and are digested in its folder's name.
    """

    NOT_LAUNCHED = "Not launched"
    INCOMPLETE = "Incomplete"
    DONE = "Done"

    def __init__(self, train_args: dict[str, Any], sweep_output_dir: str):
        digest = hashlib.md5(json.dumps(train_args, sort_keys=True).encode("utf-8"))
        # Not a Path, which would tidy "./out" into "out", another name for the job.
        self.output_dir = os.path.join(sweep_output_dir, digest.hexdigest())
        self.train_args = {**train_args, "output_dir": self.output_dir}
        self.folder = RunFolder(self.output_dir)
        # Further flags of the command: where and how it works, not what it finds.
        self.options: dict[str, Any] = {}

    @property
    def command_str(self) -> str:
        """What a launcher runs."""
        script = "train_autolr" if self.train_args.get("auto_lr") else "train"
        words = ["python", "-m", f"domainbed.scripts.{script}"]
        for name, value in sorted({**self.train_args, **self.options}.items()):
            values = value if isinstance(value, list) else [value]
            values = [] if value is True else values  # a flag that takes none
            words += [f"--{name}", *(shlex.quote(str(v)) for v in values)]
        return " ".join(words)

    @property
    def state(self) -> str:
        if (Path(self.output_dir) / "done").exists():
            return Job.DONE
        return Job.INCOMPLETE if Path(self.output_dir).exists() else Job.NOT_LAUNCHED

    def __str__(self) -> str:
        return f"{self.state}: {self.name}"

    @property
    def name(self) -> str:
        """Its folder and, for the reader, what it runs."""
        names = ("dataset", "algorithm", "test_envs", "source", "shots", "hparams_seed")
        own = (self.train_args[name] for name in names if name in self.train_args)
        facts = ", ".join(map(str, own))
        return f"{self.output_dir} ({facts})"

    def claim(self) -> bool:
        """Make the folder; False if another launcher was faster, and runs the job."""
        try:
            Path(self.output_dir).mkdir(parents=True)
        except FileExistsError:
            return False
        return True

    def disclaim(self) -> None:
        """Remove the folder again if nothing has happened in it."""
        with contextlib.suppress(OSError):
            Path(self.output_dir).rmdir()

    @staticmethod
    def launch(
        jobs: list["Job"], launcher_fn: Callable[[list[str]], Any]
    ) -> list["Job"]:
        """Run the jobs in random order; gives those whose command failed.

        All folders are made before the first job starts: they are what says that a job
        is launched. What builds on other runs of the sweep is launched after them.
        """
        print("Launching...")
        jobs = random.sample(jobs, len(jobs))
        print("Making job directories:")
        for job in jobs:
            Path(job.output_dir).mkdir(parents=True, exist_ok=True)
        failed, n_launched = [], 0
        for stage in stages(jobs):
            commands = [job.command_str for job in stage]
            statuses = launcher_fn(commands) or [0] * len(stage)  # of dummies
            n_launched += sum(status is not None for status in statuses)
            ended = zip(stage, statuses, strict=True)
            failed += [job for job, status in ended if job.has_failed(status)]
        print(f"Launched {n_launched} jobs!")
        return failed

    def has_failed(self, status: int | None) -> bool:
        """Whether its command failed; then `failed` says so, also if it was killed.

        It has not if the run is done or another process is at it.
        """
        if not status or self.folder.state in ("done", "running"):
            return False
        if self.folder.state != "failed":
            self.folder.fail(status)
        return True

    @staticmethod
    def delete(jobs: list["Job"]) -> None:
        """Remove the jobs' folders, but none in which a process works."""
        print("Deleting...")
        deleted = [job.folder.delete() for job in jobs]
        print(f"Deleted {sum(deleted)} jobs!")
        if kept := len(jobs) - sum(deleted):
            print(f"{kept} jobs are running; they stay.")


def stages(jobs: list[Job]) -> list[list[Job]]:
    """The jobs that build on no other, then those that do."""
    names = {job.train_args.get("algorithm") for job in jobs} - {None}
    waiting = {name for name in names if not names.isdisjoint(runs_after(name))}
    first = [job for job in jobs if job.train_args.get("algorithm") not in waiting]
    second = [job for job in jobs if job.train_args.get("algorithm") in waiting]
    return [first, second] if second else [first]


def all_test_env_combinations(n: int) -> Iterator[list[int]]:
    """For each environment i of n: [i], then [i, j] for each j after it.

    Only those that leave an environment to train on.
    """
    for i in range(n):
        if n > 1:
            yield [i]
        if n > 2:
            yield from ([i, j] for j in range(i + 1, n))


def make_args_list(
    n_trials: int,
    dataset_names: list[str],
    algorithms: list[str],
    n_hparams_from: int,
    n_hparams: int,
    steps: int | None,
    data_dir: str | None,
    task: str,
    holdout_fraction: float,
    single_test_envs: bool,
    hparams: str | None,
) -> list[dict[str, Any]]:
    """The arguments of every run, trials outermost, hyperparameter draws innermost."""
    optional = {"steps": steps, "hparams": hparams}
    given = {name: value for name, value in optional.items() if value is not None}

    def runs() -> Iterator[tuple]:
        for trial_seed, dataset in itertools.product(range(n_trials), dataset_names):
            combinations = all_test_env_combinations(datasets.num_environments(dataset))
            choices = [c for c in combinations if len(c) == 1 or not single_test_envs]
            draws = range(n_hparams_from, n_hparams)
            for algorithm, *rest in itertools.product(algorithms, choices, draws):
                yield dataset, algorithm, *rest, trial_seed

    return [
        {
            "dataset": dataset,
            "algorithm": algorithm,
            "test_envs": test_envs,
            "holdout_fraction": holdout_fraction,
            "hparams_seed": hparams_seed,
            "data_dir": data_dir,
            "task": task,
            "trial_seed": trial_seed,
            "seed": misc.seed_hash(
                dataset, algorithm, test_envs, hparams_seed, trial_seed
            ),
            **given,
        }
        for dataset, algorithm, test_envs, hparams_seed, trial_seed in runs()
    ]


def make_few_shot_args_list(
    shots: list[int],
    classes: str,
    transfer_to: list[str] | None,
    n_trials: int,
    dataset_names: list[str],
    algorithms: list[str],
    n_hparams_from: int,
    n_hparams: int,
    steps: int | None,
    data_dir: str | None,
    hparams: str | None,
) -> list[dict[str, Any]]:
    """The same of a few-shot sweep; of a dataset's domains each in turn is the source.

    What they hold beside the others' arguments is theirs alone, and no other job has.
    """
    optional = {"steps": steps, "hparams": hparams, "transfer_to": transfer_to}
    given = {name: value for name, value in optional.items() if value is not None}

    def runs() -> Iterator[tuple]:
        for trial_seed, dataset in itertools.product(range(n_trials), dataset_names):
            sources = datasets.get_dataset_class(dataset).SOURCES or [None]
            draws = range(n_hparams_from, n_hparams)
            for run in itertools.product(algorithms, sources, shots, draws):
                yield dataset, *run, trial_seed

    return [
        {
            "dataset": dataset,
            "algorithm": algorithm,
            **({"source": source} if source else {}),
            "shots": k,
            "classes": classes,
            "hparams_seed": hparams_seed,
            "data_dir": data_dir,
            "task": "few_shot",
            "trial_seed": trial_seed,
            "seed": misc.seed_hash(
                dataset, algorithm, source, k, classes, hparams_seed, trial_seed
            ),
            **given,
        }
        for dataset, algorithm, source, k, hparams_seed, trial_seed in runs()
    ]
