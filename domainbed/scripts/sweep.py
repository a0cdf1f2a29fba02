"""Launch many runs: every dataset, algorithm, test environment, draw and trial.

A job is one `train` command; its folder is named by its arguments' digest, so the same
sweep launched again starts only what has not been launched and, with --retry, goes on
with what has not ended well. `status` says how far it is. `@FILE` reads flags from a
file, one flag with its values on a line; `#` begins a comment. `@quickstart` and
`@lfa_paper` ship with the package.
"""

import argparse
import itertools
import json
import os
import shlex
import sys
from collections import Counter
from pathlib import Path

from domainbed import command_launchers, datasets, flags, hparams_registry
from domainbed.arguments import check_numbers
from domainbed.launchers import slurm
from domainbed.lib import shipped, texts
from domainbed.lib.children import in_child
from domainbed.lib.errors import InputError, check_at_least, exits_on_input_error
from domainbed.lib.identity import DECISIVE
from domainbed.lib.paths import output_folder, user_path
from domainbed.lib.progress import JobsProgress, add_quiet, coloured, silenced
from domainbed.lib.query import Q
from domainbed.lib.reporting import first_record
from domainbed.names import REGISTRY, algorithm_names
from domainbed.runs.folder import STATES
from domainbed.runs.jobs import Job, make_args_list, make_few_shot_args_list, stages
from domainbed.tasks import TASKS, class_for, get_task

# Launchers that return when their jobs have ended.
WAITED_FOR = ("local", "multi_gpu", "pool", "ray")
# What each job is given of these, if it is given.
RUN_FLAGS = tuple(vars(flags.run_flags().parse_args([])))
# In the names of folders; the store holds what a run computes without it, but rounded.
DIGESTED = {*DECISIVE} - {"no_feature_store"}
MOST_RUNS = 100_000  # of one method on one target
# Flags that decide, in every task, which runs a sweep has.
COMMON = ("algorithms", "n_hparams_from", "n_hparams", "n_trials")
COMMON += ("steps", "data_dir", "hparams")
# States of runs that another launch goes on with.
AGAIN = ("failed", "stale", "waiting", "cancelled", "lost")


def check_confirmation(args: argparse.Namespace) -> None:
    """InputError where a question would be asked that --quiet hides."""
    if args.quiet and not args.skip_confirmation:
        raise InputError(
            "--quiet asks no question; add --skip_confirmation if what is listed "
            "without it is right."
        )


def ask_for_confirmation() -> None:
    """Go on at "y", else end with exit status 0."""
    try:
        answer = input("Are you sure? (y/n) ")
    except EOFError:  # nobody is there to ask
        answer = "n"
    if answer.lower().strip()[:1] != "y":
        print("Nevermind!")
        raise SystemExit(0)


def with_files(words: list[str], inside: tuple[str, ...] = ()) -> list[str]:
    """The words, each @FILE those in it; the file is there or ships with the package.

    `--hparams @FILE` holds hyperparameters. `inside` are the files that lead here.
    """

    def found(before: str, word: str) -> list[str]:
        if word[:1] != "@":
            return [word]
        if before == "--hparams":
            return [hparams_registry.as_json([word])]
        file = shipped.find(user_path(word[1:]), "*.txt")
        if (real := os.path.realpath(file)) in inside:
            raise InputError(f"the flags in {file} lead to that file again.")
        return with_files(words_in(file), (*inside, real))

    return [*itertools.chain(*map(found, ["", *words[:-1]], words))]


def words_in(file: str) -> list[str]:
    """The file's words, line by line as a shell has them, comments left out."""
    words: list[str] = []
    for line in texts.lines(file):
        try:
            words += shlex.split(line, comments=True)
        except ValueError as error:  # a quote that is not closed
            raise InputError(f"cannot read the flags {line}: {error}.") from None
    return words


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    of_runs = flags.run_flags()
    of_runs.set_defaults(**dict.fromkeys(RUN_FLAGS))  # passed on only when given
    parser = argparse.ArgumentParser(
        prog="sweep",
        usage="python -m domainbed.scripts.sweep launch @quickstart \\\n"
        "           --output_dir demo --data_dir data --command_launcher pool",
        description=__doc__,
        parents=[of_runs],
    )
    add = parser.add_argument
    add("command", choices=["launch", "status", "delete_incomplete"])
    add("--datasets", nargs="+", help="default: all but Debug")
    add("--algorithms", nargs="+", help="default: all")
    add("--task", default="domain_generalization", choices=[*TASKS])
    add("--n_hparams_from", type=int, default=0)
    add("--n_hparams", type=int, default=20, help="draws; number 0 is the defaults")
    add("--output_dir", type=user_path, required=True)
    add("--data_dir", type=user_path, required=True)
    add("--seed", type=int, default=0, help="unused: a job's seed is of its arguments")
    add("--n_trials", type=int, default=3)
    add("--command_launcher", help=", ".join(command_launchers.REGISTRY))
    add("--jobs", type=int, help="at a time, of the launcher pool")
    add("--slurm", nargs="+", metavar="KEY=VALUE", help="partition, time, gpus, ...")
    add("--ray", nargs="+", metavar="KEY=VALUE", help="gpus, cpus, mem, address")
    add("--jobs_per_task", type=int, help="one after another, of the launcher slurm")
    add(
        "--dry_run", action="store_const", const=True, help="print Slurm's scripts only"
    )
    add("--retry", action="store_true", help="go on with failed and interrupted jobs")
    add("--steps", type=int)
    add("--hparams", nargs="+", help=f"{flags.HPARAMS_HELP}; LFA.lr is LFA's alone")
    add("--holdout_fraction", type=float, default=0.2)
    add("--single_test_envs", action="store_true")
    add("--shots", nargs="+", type=int, help="few_shot: K of each class, one or more")
    add("--classes", choices=["all", "base"], help="few_shot: classes that train")
    add("--transfer_to", nargs="+", help="few_shot: further datasets to test on")
    add("--auto_lr", action="store_true", help="ERM++'s: find the rate, then all data")
    add("--skip_confirmation", action="store_true")
    add_quiet(parser)
    args = parser.parse_args(with_files(sys.argv[1:] if argv is None else argv))
    args.hparams = hparams_registry.as_json(args.hparams)
    if args.datasets is None:
        known = datasets.of_task(args.task)
        args.datasets = [n for n in known if not n.startswith("Debug")]
    if args.algorithms is None:
        args.algorithms = algorithm_names()
    return args


def check(args: argparse.Namespace) -> None:
    """InputError for whatever would make every job of some kind fail."""
    if args.seed != 0:
        raise InputError(
            f"--seed {args.seed} would change nothing: a job's seed is made from its "
            "dataset, algorithm, test environments, draw and trial."
        )
    for name in hparams_registry.parse_hparams(args.hparams):
        if "." in name:
            REGISTRY.find(name.partition(".")[0])
    check_few_shot(args)
    for dataset in args.datasets:
        environments = len(class_for(dataset, args.task).ENVIRONMENTS)
        if environments < 2 and args.task != "few_shot":
            raise InputError(
                f"{dataset} has a single environment; none is left to train on."
            )
    for algorithm in args.algorithms:
        REGISTRY.find(algorithm)
    check_at_least(args, n_trials=1, n_hparams_from=0, n_hparams=1)
    if args.n_hparams_from >= args.n_hparams:
        raise InputError(
            f"--n_hparams_from is {args.n_hparams_from}, and draws end before "
            f"--n_hparams, {args.n_hparams}: there is none."
        )
    runs = args.n_trials * (args.n_hparams - args.n_hparams_from)
    if runs > MOST_RUNS:
        raise InputError(
            f"--n_trials and --n_hparams ask for {runs} runs of each method on each "
            f"target; at most {MOST_RUNS} are allowed."
        )
    check_at_least(args, jobs=1, jobs_per_task=1)
    if args.command != "status" and not args.dry_run:
        check_confirmation(args)


def remember_absent(args: argparse.Namespace) -> None:
    """Let a dataset of the user's whose place is gone be as the records know it."""
    for name in filter(datasets.is_own, args.datasets):
        try:
            datasets.get_dataset_class(name)
        except InputError as error:
            from domainbed.tables import frames  # pandas takes half a second

            folders = sorted(Path(args.output_dir).glob("*"))
            own = Q(map(first_record, folders)).filter_not_none()
            frames.remember(own.filter_equals("args.dataset", name))
            if name not in datasets.AWAY:
                sentence = f"{error} Nor has {args.output_dir} records of its runs."
                raise InputError(sentence) from None


def check_algorithms(args: argparse.Namespace) -> None:
    """InputError for hyperparameters and a rate search that an algorithm lacks.

    Only the algorithms know, and to import them takes seconds and memory that a
    launcher keeps while its jobs run: a process of its own does.
    """
    if not (args.hparams or args.auto_lr or args.classes == "base"):
        return
    if "torch" in sys.modules:
        ask_algorithms(args)
    elif answer := in_child(ask_algorithms, args):
        raise InputError(answer["error"])


def ask_algorithms(args: argparse.Namespace) -> None:
    """The same, asked here."""
    from domainbed.autolr import check_algorithm

    hparams = hparams_registry.parse_hparams(args.hparams)
    for dataset, algorithm in itertools.product(args.datasets, args.algorithms):
        run = {"dataset": dataset, "algorithm": algorithm, "task": args.task}
        run |= {"shots": args.shots and args.shots[0], "classes": args.classes}
        task = get_task(args.task)
        rows = task.hparam_rows(argparse.Namespace(**run))
        own = hparams_registry.given_to(algorithm, hparams)
        hparams_registry.check_hparams(algorithm, dataset, own, rows)
        whole = hparams_registry.default_hparams(algorithm, dataset, rows) | own
        task.check_algorithm(argparse.Namespace(**run), whole)
        if args.auto_lr:
            check_algorithm(algorithm)


def check_few_shot(args: argparse.Namespace) -> None:
    """InputError for flags of another task than the sweep's."""
    if args.task != "few_shot":
        for name in ("shots", "classes", "transfer_to"):
            if getattr(args, name):
                raise InputError(f"--{name} is of --task few_shot, not of {args.task}.")
        return
    if not args.shots or min(args.shots) < 1:
        raise InputError(
            f"--task few_shot needs --shots, numbers of at least 1, not {args.shots}."
        )
    if args.single_test_envs or args.holdout_fraction != 0.2:
        raise InputError(
            "--single_test_envs and --holdout_fraction are not of --task few_shot."
        )


def args_list_of(args: argparse.Namespace) -> list[dict]:
    """The arguments of every run of the sweep."""
    common = {name: getattr(args, name) for name in COMMON}
    common["dataset_names"] = args.datasets
    if args.task == "few_shot":
        return make_few_shot_args_list(
            shots=args.shots,
            classes=args.classes or "all",
            transfer_to=args.transfer_to,
            **common,
        )
    return make_args_list(
        task=args.task,
        holdout_fraction=args.holdout_fraction,
        single_test_envs=args.single_test_envs,
        **common,
    )


def jobs_of(args: argparse.Namespace) -> list[Job]:
    """Every job that the flags describe."""
    args_list = args_list_of(args)
    hparams = hparams_registry.parse_hparams(args.hparams)
    if any("." in name for name in hparams):
        for run in args_list:
            own = hparams_registry.given_to(run["algorithm"], hparams)
            run["hparams"] = json.dumps(own)
    given = {name: getattr(args, name) for name in RUN_FLAGS}
    given = {name: value for name, value in given.items() if value is not None}
    digested = {name: value for name, value in given.items() if name in DIGESTED}
    digested |= {"auto_lr": True} if args.auto_lr else {}
    jobs = [Job(train_args | digested, args.output_dir) for train_args in args_list]
    for job in jobs:
        job.options = {n: value for n, value in given.items() if n not in DIGESTED}
    return jobs


def check_run(job: Job) -> None:
    """InputError for what no run of the sweep could take."""
    words = [w for w in shlex.split(job.command_str)[3:] if w != "--auto_lr"]
    args = flags.parse_args(words)
    check_numbers(args)
    get_task(args.task).check(args)


def launcher_of(args: argparse.Namespace) -> command_launchers.Launcher:
    """The launcher that runs the jobs."""
    if args.command_launcher is None:
        known = ", ".join(command_launchers.REGISTRY)
        raise InputError(f"launch needs --command_launcher, one of {known}.")
    names = ("jobs", "slurm", "ray", "jobs_per_task", "dry_run")
    options = {name: getattr(args, name) for name in names}
    return command_launchers.get_launcher(args.command_launcher, **options)


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.command != "launch":
        remember_absent(args)
    check(args)
    launcher = launcher_of(args) if args.command == "launch" else None
    jobs = jobs_of(args)
    for job in jobs[:1]:  # they have these in common
        check_run(job)
    if launcher:
        check_algorithms(args)
    if args.command == "status":
        print_status(jobs)
        return
    with silenced(args.quiet, result=args.dry_run or args.command_launcher == "dummy"):
        by_state = listed(jobs)
        if args.command == "launch":
            launch(by_state, launcher, args)
        else:
            delete(by_state[Job.INCOMPLETE], args)


def listed(jobs: list[Job]) -> dict[str, list[Job]]:
    """Print every job and how many are in which state; gives those of each."""
    by_state = {Job.DONE: [], Job.INCOMPLETE: [], Job.NOT_LAUNCHED: []}
    for job in jobs:
        state = job.state
        by_state[state].append(job)
        colour = "green" if state == Job.DONE else None
        print(f"{coloured(state, colour, sys.stdout)}: {job.name}")
    counts = [f"{len(own)} {state.lower()}" for state, own in by_state.items()]
    print(f"{len(jobs)} jobs: {', '.join(counts)}.")
    return by_state


def delete(incomplete: list[Job], args: argparse.Namespace) -> None:
    """Remove their folders, if the user says so."""
    print(f"About to delete {len(incomplete)} jobs.")
    if not args.skip_confirmation:
        ask_for_confirmation()
    Job.delete(incomplete)


def launch(
    by_state: dict[str, list[Job]],
    launcher: command_launchers.Launcher,
    args: argparse.Namespace,
) -> None:
    """Run what has not been launched and, with --retry, what has not ended well."""
    not_launched, incomplete = by_state[Job.NOT_LAUNCHED], by_state[Job.INCOMPLETE]
    again = [j for j in incomplete if args.retry and j.folder.state != "running"]
    retried = f", and to go on with {len(again)}" if args.retry else ""
    print(f"About to launch {len(not_launched)} jobs{retried}.")
    if args.dry_run:
        for stage in stages(not_launched + again):
            launcher([job.command_str for job in stage])
        return
    if not args.skip_confirmation:
        ask_for_confirmation()
    output_folder(args.output_dir)
    own: list[Job] = []
    try:
        for job in not_launched:
            if job.claim():
                own.append(job)
        if taken := len(not_launched) - len(own):
            print(f"{taken} jobs were launched by another process in the meantime.")
        jobs = own + again
        if args.command_launcher in WAITED_FOR:
            if args.quiet or sys.stderr.isatty():
                for job in jobs:
                    job.options["quiet"] = True
            if not args.quiet:
                launcher = with_progress(launcher, jobs)
        failed = Job.launch(jobs, launcher)
    except BaseException:
        for job in own:
            job.disclaim()
        raise
    report_failures(failed)


def with_progress(
    launcher: command_launchers.Launcher, jobs: list[Job]
) -> command_launchers.Launcher:
    """The launcher; while it works, stderr shows how far the jobs are."""
    progress = JobsProgress([job.folder for job in jobs])

    def launch(commands: list[str]) -> list[int]:
        with progress.shown():
            return launcher(commands)

    return launch


def print_status(jobs: list[Job]) -> None:
    """Print how many jobs are in which state, and why some do not go on."""
    states = {job: job.folder.state for job in jobs}
    idle = [job.folder for job in jobs if states[job] in ("stale", "waiting")]
    queue = slurm.in_queue(idle)
    states |= {job: queue[job.folder][0] for job in jobs if job.folder in queue}
    counts = Counter(states.values())
    known = [*STATES, *(state for state in slurm.IN_QUEUE if counts[state])]
    in_words = ", ".join(f"{counts[state]} {state}" for state in known)
    print(f"{len(jobs)} jobs: {in_words}.")
    for job, state in states.items():
        if state in ("failed", "stale", "held", "cancelled", "lost"):
            _, why = queue.get(job.folder, ("", job.folder.last_error()))
            print(f"{coloured(state, 'red', sys.stdout)}: {job.name}: {why}")
    if any(counts[state] for state in AGAIN):
        print(
            f"launch --retry goes on with what is {', '.join(AGAIN[:-1])} or "
            f"{AGAIN[-1]}, but for what is in Slurm's queue."
        )


def report_failures(failed: list[Job]) -> None:
    """Name each failed job with its last error line, and exit 1; if there is any."""
    if not failed:
        return
    print(f"{len(failed)} jobs failed:", file=sys.stderr)
    for job in failed:
        print(f"{job}: {job.folder.last_error()}", file=sys.stderr)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
