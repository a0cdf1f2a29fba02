"""Say whether methods differ, from what their chosen runs answered on every image.

Each pair is compared on the test domain of each run, trial by trial, on the images that
both were tested on. See `domainbed.tables.comparison` for the three questions asked.
"""

import argparse
import itertools
import sys
from pathlib import Path

from domainbed import datasets, model_selection
from domainbed.lib import reporting
from domainbed.lib.errors import InputError, UnknownNameError, exits_on_input_error
from domainbed.lib.mixtures import facts_of
from domainbed.lib.progress import add_quiet
from domainbed.lib.reporting import listed, printable
from domainbed.scripts.collect_results import selection_methods
from domainbed.tables import comparison, frames, protocol
from domainbed.tables.answers import Told, read

Cells = dict[tuple[int, int], Told]  # by test environment and trial


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="compare",
        usage="python -m domainbed.scripts.compare --input_dir demo "
        "--algorithms LFA Head2Toe",
        description=__doc__,
    )
    add = parser.add_argument
    add("--input_dir", nargs="+", required=True, help="the sweep's folder, or several")
    add("--algorithms", nargs="+", required=True, help="every pair of them is compared")
    add("--versus", metavar="DIR", help="a sweep: each algorithm with itself there")
    add("--selection", default="iid", help="the method of model selection")
    add("--resamples", type=int, default=10_000, help="of each bootstrap")
    add_quiet(parser)
    args = parser.parse_args(argv)
    if args.resamples < 100:
        raise InputError(f"--resamples is {args.resamples}; it must be at least 100.")
    if len({*args.algorithms}) < 2 - bool(args.versus):
        raise InputError("--algorithms needs two names to compare, or --versus.")
    return args


class Sweep:
    """The chosen runs of a sweep and their answers; `without` are those without."""

    def __init__(
        self, folders: list[str], method: type[model_selection.SelectionMethod]
    ):
        for folder in folders:
            if not Path(folder).is_dir():
                raise InputError(f"{folder} is no folder; give a sweep's output_dir.")
        runs = reporting.load_runs(*folders)
        if not runs:
            names = " ".join(folders)
            raise InputError(f"{names} holds no results.jsonl with records.")
        self.method, self.without = method, []
        self.folders = {id(record): folder for folder, run in runs for record in run}
        self.records = reporting.records_of(runs)
        self.groups = reporting.get_grouped_records(self.records)
        self.rows = protocol.of_rows(runs, facts_of(*folders))

    def answers(self, dataset: str, algorithm: str) -> Cells:
        """Of the runs that were chosen, on their test domain's in-split."""
        if algorithm not in self.records.select("args.algorithm"):
            known = self.records.select("args.algorithm").unique()
            raise UnknownNameError("algorithm", algorithm, known)
        found = {}
        for group in self.groups.filter_equals(
            "dataset,algorithm", (dataset, algorithm)
        ):
            accs = self.method.hparams_accs(group["records"])
            if not accs:
                continue
            _, record = self.method.chosen(accs[0][1])
            folder, env = self.folders[id(record)], group["test_env"]
            own = read(folder, env, record["step"])
            if own is None:
                self.without.append(f"{folder} (step {record['step']})")
            else:
                found[env, group["trial_seed"]] = own
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
    (method,) = selection_methods(args.selection)
    sweep = Sweep(args.input_dir, method)
    other = Sweep([args.versus], method) if args.versus else sweep
    pairs = [*itertools.combinations(dict.fromkeys(args.algorithms), 2)]
    if args.versus:
        pairs = [(name, name) for name in dict.fromkeys(args.algorithms)]
    present = {*sweep.records.select("args.dataset")}
    compared = 0
    for dataset in frames.in_order(present, datasets.DATASETS):
        environments = frames.environments(dataset, sweep.records)
        own = {a: sweep.answers(dataset, a) for a, _ in pairs}
        theirs = {b: other.answers(dataset, b) for _, b in pairs}
        for a, b in pairs:
            first, second = (a, f"{b} of {args.versus}") if args.versus else (a, b)
            cells = paired(own[a], theirs[b], f"{first} and {second}")
            if not cells:
                continue
            compared += 1
            named = {
                environments[env] if env < len(environments) else f"env{env}": trials
                for env, trials in cells.items()
            }
            print(f"\n-------- {printable(dataset)}: {printable(first)} and", end=" ")
            print(f"{printable(second)}, chosen by {method.name}")
            protocols = sweep.rows[dataset][a], other.rows[dataset][b]
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
