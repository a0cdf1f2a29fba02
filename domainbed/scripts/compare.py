"""Say whether methods differ, from what their chosen runs answered on every image.

Each pair is compared on the test domain of each run, trial by trial, on the images that
both were tested on. See `domainbed.tables.comparison` for the three questions asked.
"""

import argparse
import itertools
import sys
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

from domainbed import datasets
from domainbed.lib import reporting
from domainbed.lib.errors import InputError, UnknownNameError, exits_on_input_error
from domainbed.lib.mixtures import facts_of
from domainbed.lib.paths import user_path
from domainbed.lib.progress import add_quiet
from domainbed.lib.query import Q
from domainbed.lib.reporting import listed, printable
from domainbed.model_selection import SelectionMethod
from domainbed.scripts.collect_results import (
    few_shot_method,
    read_sweep,
    selection_methods,
)
from domainbed.tables import comparison, few_shot_records, frames, protocol
from domainbed.tables.answers import Told, read
from domainbed.tables.few_shot_records import title_of

RESAMPLES = 1_000_000  # at most: they are all in memory
Cells = dict[tuple[int, int], Told]  # by test environment and trial


class Run(NamedTuple):
    """A chosen run: where it is compared, the names of what it tests, its record."""

    place: Hashable
    algorithm: str
    trial: int
    names: dict[int, str]
    record: dict[str, Any]


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="compare",
        usage="python -m domainbed.scripts.compare --input_dir demo "
        "--algorithms LFA Head2Toe",
        description=__doc__,
    )
    add = parser.add_argument
    add(
        "--input_dir",
        type=user_path,
        nargs="+",
        required=True,
        help="the sweep's folder, or several",
    )
    add("--algorithms", nargs="+", required=True, help="every pair of them is compared")
    add(
        "--versus",
        type=user_path,
        metavar="DIR",
        help="a sweep: each algorithm with itself there",
    )
    add("--selection", help="the method; default: iid, of few shots last_epoch")
    add("--resamples", type=int, default=10_000, help="of each bootstrap")
    add_quiet(parser)
    args = parser.parse_args(argv)
    if not 100 <= args.resamples <= RESAMPLES:
        raise InputError(
            f"--resamples is {args.resamples}; it must be at least 100, at most "
            f"{RESAMPLES}."
        )
    if len({*args.algorithms}) < 2 - bool(args.versus):
        raise InputError("--algorithms needs two names to compare, or --versus.")
    return args


def of_domains(groups: Q, records: Q, method: type[SelectionMethod]) -> Iterator[Run]:
    """What the method chose of runs over test environments; places are datasets."""
    present = groups.select("dataset").unique()
    known = {dataset: frames.environments(dataset, records) for dataset in present}
    for group in groups:
        if accs := method.hparams_accs(group["records"]):
            _, record = method.chosen(accs[0][1])
            place, env = group["dataset"], group["test_env"]
            names = {env: frames.environment_name(known[place], env)}
            yield Run(place, group["algorithm"], group["trial_seed"], names, record)


def of_few_shots(records: Q, method: type[SelectionMethod]) -> Iterator[Run]:
    """The same of few-shot runs; places are tables."""
    for place, label, trial, record in few_shot_records.chosen(records, method):
        tests = few_shot_records.tests_of(record)
        names = {env: name for env, (name, _) in tests.items()}
        yield Run(place, label, trial, names, record)


class Sweep:
    """The chosen runs of a sweep and their answers; `without` are those without.

    They are compared at a place: a dataset, of few shots a table's. `titles` say what
    stands above what is said of each.
    """

    def __init__(
        self, folders: list[str], selection: str | None, flag: str = "--input_dir"
    ):
        runs, made = read_sweep(*folders, flag=flag), facts_of(*folders)
        self.folders = {id(record): folder for folder, run in runs for record in run}
        self.records = reporting.records_of(runs)
        self.without: list[str] = []
        self.names: dict[int, str] = {}  # of test environments
        if few_shot_records.all_few_shot(self.records):
            self.method = few_shot_method(selection)
            self.rows = few_shot_records.protocols(runs, made, self.method)
            self.titles = {place: title_of(place, True) for place in sorted(self.rows)}
            self.chosen = [*of_few_shots(self.records, self.method)]
        else:
            (self.method,) = selection_methods(selection or "iid")
            self.rows = protocol.of_rows(runs, made)
            names = frames.in_order({*self.rows}, datasets.DATASETS)
            self.titles = dict(zip(names, names, strict=True))
            self.groups = reporting.get_grouped_records(self.records)
            self.chosen = [*of_domains(self.groups, self.records, self.method)]

    def answers(self, place: Hashable, algorithm: str) -> Cells:
        """Of the runs that were chosen there, on their test domains' in-splits."""
        known = [*dict.fromkeys(name for rows in self.rows.values() for name in rows)]
        if algorithm not in known:
            raise UnknownNameError("algorithm", algorithm, known)
        found = {}
        for run in self.chosen:
            if (run.place, run.algorithm) != (place, algorithm):
                continue
            folder, step = self.folders[id(run.record)], run.record["step"]
            for env, name in run.names.items():
                own = read(folder, env, step)
                if own is None:
                    self.without.append(f"{folder} (step {step})")
                else:
                    found[env, run.trial] = own
                    self.names[env] = name
        return found


def paired(
    first: Cells, second: Cells, names: str
) -> dict[int, dict[int, comparison.Cell]]:
    """The cells of both, by environment and trial; InputError if images differ."""
    cells: dict[int, dict[int, comparison.Cell]] = {}
    for env, trial in sorted({*first} & {*second}):
        a, b = first[env, trial], second[env, trial]
        if a.items != b.items:
            raise InputError(
                f"{names} were tested on other images, or in another order, in test "
                f"environment {env}, trial {trial}: {a.items} and {b.items}."
            )
        cell = comparison.Cell(a.answers.place, a.right, b.right)
        cells.setdefault(env, {})[trial] = cell
    return cells


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    sweep = Sweep(args.input_dir, args.selection)
    other, pairs = sweep, [*itertools.combinations(dict.fromkeys(args.algorithms), 2)]
    if args.versus:
        other = Sweep([args.versus], args.selection, flag="--versus")
        pairs = [(name, name) for name in dict.fromkeys(args.algorithms)]
    compared = 0
    for place, title in sweep.titles.items():
        own = {a: sweep.answers(place, a) for a, _ in pairs}
        theirs = {b: other.answers(place, b) for _, b in pairs}
        for a, b in pairs:
            first, second = (a, f"{b} of {args.versus}") if args.versus else (a, b)
            cells = paired(own[a], theirs[b], f"{first} and {second}")
            if not cells:
                continue
            compared += 1
            named = {sweep.names[env]: trials for env, trials in cells.items()}
            print(f"\n-------- {printable(title)}: {printable(first)} and", end=" ")
            print(f"{printable(second)}, chosen by {sweep.method.name}")
            protocols = sweep.rows[place][a], other.rows[place][b]
            if changes := protocol.differences(*protocols):
                print(printable(f"Their protocols differ: {changes}."))
            for text in comparison.sentences(named, first, second, args.resamples):
                print(printable(text))
    without = [*dict.fromkeys(sweep.without + other.without)]
    if without and not args.quiet:
        print(
            f"warning: {len(without)} chosen runs have no predictions of the step that "
            f"counts and are left out: {listed(without)}",
            file=sys.stderr,
        )
    if not compared:
        raise InputError("no two runs have predictions of one test domain and trial.")
    if compared > 1:
        print(
            f"\n{compared} comparisons, each on its own: 1 in 20 of equal methods errs."
        )


if __name__ == "__main__":
    main()
