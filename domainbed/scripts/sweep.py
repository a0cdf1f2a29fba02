"""Launch many runs: every dataset, algorithm, test environment, draw and trial.

A job is one `train` command; its folder is named by its arguments' digest, so the same
sweep launched again starts only what has not been launched. `@FILE` reads flags from a
file, one flag with its values on a line; `#` begins a comment.
"""

import argparse
import hashlib
import itertools
import json
import os
import random
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from domainbed import algorithms, command_launchers, datasets, hparams_registry
from domainbed.lib import misc
from domainbed.lib.errors import InputError, check_at_least, exits_on_input_error
from domainbed.scripts.train import HPARAMS_HELP


class Job:
    """One run of a sweep: its command, its folder, and how far it is."""

    NOT_LAUNCHED = "Not launched"
    INCOMPLETE = "Incomplete"
    DONE = "Done"

    def __init__(self, train_args: dict[str, Any], sweep_output_dir: str):
        digest = hashlib.md5(json.dumps(train_args, sort_keys=True).encode("utf-8"))
        # Not a Path, which would tidy "./out" into "out", another name for the job.
        self.output_dir = os.path.join(sweep_output_dir, digest.hexdigest())
        self.train_args = {**train_args, "output_dir": self.output_dir}
        words = ["python", "-m", "domainbed.scripts.train"]
        for name, value in sorted(self.train_args.items()):
            values = value if isinstance(value, list) else [value]
            words += [f"--{name}", *(shlex.quote(str(v)) for v in values)]
        self.command_str = " ".join(words)

    @property
    def state(self) -> str:
        if (Path(self.output_dir) / "done").exists():
            return Job.DONE
        return Job.INCOMPLETE if Path(self.output_dir).exists() else Job.NOT_LAUNCHED

    def __str__(self) -> str:
        names = ("dataset", "algorithm", "test_envs", "hparams_seed")
        facts = ", ".join(str(self.train_args[name]) for name in names)
        return f"{self.state}: {self.output_dir} ({facts})"

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
        failed = []
        for stage in stages(jobs):
            statuses = launcher_fn([job.command_str for job in stage])
            failed += itertools.compress(stage, statuses or [])
        print(f"Launched {len(jobs)} jobs!")
        return failed

    @staticmethod
    def delete(jobs: list["Job"]) -> None:
        """Remove the jobs' folders."""
        print("Deleting...")
        for job in jobs:
            shutil.rmtree(job.output_dir)
        print(f"Deleted {len(jobs)} jobs!")


def stages(jobs: list[Job]) -> list[list[Job]]:
    """The jobs that build on no other, then those that do."""
    names = {job.train_args.get("algorithm") for job in jobs} - {None}
    waiting = {
        name
        for name in names
        if not names.isdisjoint(algorithms.get_algorithm_class(name).AFTER)
    }
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


def ask_for_confirmation() -> None:
    """Go on at "y", else end with exit status 0."""
    try:
        answer = input("Are you sure? (y/n) ")
    except EOFError:  # nobody is there to ask
        answer = "n"
    if answer.lower().strip()[:1] != "y":
        print("Nevermind!")
        raise SystemExit(0)


class ArgumentParser(argparse.ArgumentParser):
    """argparse with `@FILE` read line by line as a shell would, comments left out."""

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        try:
            words = shlex.split(arg_line, comments=True)
        except ValueError as error:  # a quote that is not closed
            raise InputError(f"cannot read the flags {arg_line}: {error}.") from None
        return with_hparams_read(words)


def with_hparams_read(words: list[str]) -> list[str]:
    """The words with `--hparams @FILE` read here: argparse takes @ for more flags."""
    pairs = zip(["", *words], words, strict=False)
    return [
        hparams_registry.as_json([word])
        if (before, word[:1]) == ("--hparams", "@")
        else word
        for before, word in pairs
    ]


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="sweep", description=__doc__, fromfile_prefix_chars="@"
    )
    add = parser.add_argument
    add("command", choices=["launch", "delete_incomplete"])
    add("--datasets", nargs="+", help="default: all but Debug")
    add("--algorithms", nargs="+", help="default: all")
    add(
        "--task",
        default="domain_generalization",
        choices=["domain_generalization", "domain_adaptation"],
    )
    add("--n_hparams_from", type=int, default=0)
    add("--n_hparams", type=int, default=20, help="draws; number 0 is the defaults")
    add("--output_dir", required=True)
    add("--data_dir", required=True)
    add("--seed", type=int, default=0, help="unused: a job's seed is of its arguments")
    add("--n_trials", type=int, default=3)
    add("--command_launcher", required=True, help=", ".join(command_launchers.REGISTRY))
    add("--jobs", type=int, help="at a time, of the launcher pool")
    add("--steps", type=int)
    add("--hparams", nargs="+", help=HPARAMS_HELP)
    add("--holdout_fraction", type=float, default=0.2)
    add("--single_test_envs", action="store_true")
    add("--skip_confirmation", action="store_true")
    args = parser.parse_args(with_hparams_read(sys.argv[1:] if argv is None else argv))
    args.hparams = hparams_registry.as_json(args.hparams)
    if args.datasets is None:
        args.datasets = [n for n in datasets.DATASETS if not n.startswith("Debug")]
    if args.algorithms is None:
        args.algorithms = list(algorithms.ALGORITHMS)
    return args


def check(args: argparse.Namespace) -> None:
    """InputError for whatever would make every job of some kind fail."""
    if args.seed != 0:
        raise InputError(
            f"--seed {args.seed} would change nothing: a job's seed is made from its "
            "dataset, algorithm, test environments, draw and trial."
        )
    hparams = hparams_registry.parse_hparams(args.hparams)
    for dataset in args.datasets:
        if datasets.num_environments(dataset) < 2:
            raise InputError(
                f"{dataset} has a single environment; none is left to train on."
            )
        for algorithm in args.algorithms:
            hparams_registry.check_hparams(algorithm, dataset, hparams)
    check_at_least(args, n_trials=1, n_hparams_from=0, n_hparams=1, jobs=1)


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check(args)
    launcher = command_launchers.get_launcher(args.command_launcher, jobs=args.jobs)
    args_list = make_args_list(
        n_trials=args.n_trials,
        dataset_names=args.datasets,
        algorithms=args.algorithms,
        n_hparams_from=args.n_hparams_from,
        n_hparams=args.n_hparams,
        steps=args.steps,
        data_dir=args.data_dir,
        task=args.task,
        holdout_fraction=args.holdout_fraction,
        single_test_envs=args.single_test_envs,
        hparams=args.hparams,
    )
    jobs = [Job(train_args, args.output_dir) for train_args in args_list]
    for job in jobs:
        print(job)
    by_state = {
        state: [job for job in jobs if job.state == state]
        for state in (Job.DONE, Job.INCOMPLETE, Job.NOT_LAUNCHED)
    }
    done, incomplete, not_launched = by_state.values()
    print(
        f"{len(jobs)} jobs: {len(done)} done, {len(incomplete)} incomplete, "
        f"{len(not_launched)} not launched."
    )
    if args.command == "delete_incomplete":
        print(f"About to delete {len(incomplete)} jobs.")
        if not args.skip_confirmation:
            ask_for_confirmation()
        Job.delete(incomplete)
        return
    print(f"About to launch {len(not_launched)} jobs.")
    if not args.skip_confirmation:
        ask_for_confirmation()
    report_failures(Job.launch(not_launched, launcher))


def report_failures(failed: list[Job]) -> None:
    """Name each failed job with its last error line, and exit 1; if there is any."""
    if not failed:
        return
    print(f"{len(failed)} jobs failed:", file=sys.stderr)
    for job in failed:
        log = Path(job.output_dir) / "err.txt"
        text = log.read_text(errors="replace") if log.exists() else ""
        lines = text.split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "no log")
        print(f"{job}: {last.strip()}", file=sys.stderr)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
