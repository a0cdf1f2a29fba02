"""Print the comparison tables of a sweep: text, LaTeX, CSV, JSON, Markdown, HTML."""

import argparse
import contextlib
import io
import itertools
import math
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from domainbed import datasets, model_selection
from domainbed.lib import misc, reporting, shipped
from domainbed.lib.errors import InputError, UnknownNameError, exits_on_input_error
from domainbed.lib.mixtures import facts_of, mixtures, same_draws
from domainbed.lib.paths import user_path
from domainbed.lib.progress import add_quiet
from domainbed.lib.query import Q
from domainbed.lib.reporting import printable
from domainbed.model_selection import environments as keys_of
from domainbed.names import algorithm_names
from domainbed.tables import (
    few_shot,
    few_shot_records,
    formats,
    frames,
    paper,
    protocol,
    published,
)
from domainbed.tables.few_shot_text import print_few_shot_tables
from domainbed.tables.formats import WideTable
from domainbed.tables.paper import escape
from domainbed.tables.text import format_mean, print_results_tables, print_table
from domainbed.tables.ties import ties

__all__ = ["format_mean", "main", "print_table"]  # the contract's names

FORMATS = ("text", "latex", "csv", "json", "markdown", "html")
SELECTIONS = {
    "iid": model_selection.IIDAccuracySelectionMethod,
    "leave_one_out": model_selection.LeaveOneOutSelectionMethod,
    "oracle": model_selection.OracleSelectionMethod,
    "auto_lr": model_selection.IIDAutoLRAccuracySelectionMethod,
    "last_epoch": model_selection.LastEpochSelectionMethod,
}
OF_FEW_SHOTS = [n for n in SELECTIONS if SELECTIONS[n] in few_shot_records.METHODS]
SELECTION_METHODS = tuple(SELECTIONS[n] for n in ("iid", "leave_one_out", "oracle"))
REFERENCE = (
    "an algorithm: beside each table the differences to it, such as ZeroShotCLIP"
)
OF_A_SPLIT = ("holdout_fraction", "output_dir")  # what --auto_lr merges over
Methods = tuple[type[model_selection.SelectionMethod], ...]


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="collect_results",
        usage="python -m domainbed.scripts.collect_results --input_dir demo",
        description=__doc__,
    )
    parser.add_argument(
        "--input_dir",
        type=user_path,
        nargs="+",
        required=True,
        help="the sweep's folder, or several",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--format", default="text", help=", ".join(FORMATS))
    const = {"dest": "format", "action": "store_const"}
    form.add_argument("--latex", const="latex", help="--format latex", **const)
    form.add_argument("--paper", const="paper", help="LaTeX as papers do", **const)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--selection",
        help=f"only this method: {', '.join(SELECTIONS)}; default: all, of few shots "
        "last_epoch",
    )
    const = {"dest": "selection", "action": "store_const", "const": "auto_lr"}
    which.add_argument("--auto_lr", help="select by auto lr only", **const)
    parser.add_argument(
        "--baseline",
        type=user_path,
        metavar="FILE",
        help="a CSV of published figures, or clip_vit_b16",
    )
    parser.add_argument("--reference", help=REFERENCE)
    parser.add_argument(
        "--output", type=user_path, metavar="FILE", help="instead of standard output"
    )
    add_quiet(parser)
    args = parser.parse_args(argv)
    if args.format not in (*FORMATS, "paper"):
        raise UnknownNameError("format", args.format, FORMATS)
    return args


def selection_methods(name: str | None) -> Methods:
    """The method of that name, short or long; without one, DomainBed's three."""
    if name is None:
        return SELECTION_METHODS
    for short, method in SELECTIONS.items():
        if name in (short, method.name, method.__name__):
            return (method,)
    long = [name for m in SELECTIONS.values() for name in (m.name, m.__name__)]
    raise UnknownNameError("selection method", name, [*SELECTIONS, *long])


def merge_auto_lr(records: Q) -> Q:
    """Records whose args differ in nothing but `holdout_fraction`, made one each."""

    def identity(record: dict) -> tuple:
        args = {k: v for k, v in record["args"].items() if k not in OF_A_SPLIT}
        return args, record["step"]

    def merge(_: tuple, same: Q) -> dict:
        merged: dict = {}
        for record in same.sorted(lambda r: -r["args"].get("holdout_fraction", 0)):
            merged = record | merged
        return merged

    return records.group(identity).map(merge)


def remarks(records: Q) -> Iterator[str]:
    """What a reader of the tables should know: what is missing, and where."""
    names = ("dataset", "algorithm", "test_envs", "trial_seed", "hparams_seed")
    runs = records.select(lambda r: tuple(str(r["args"][n]) for n in names)).unique()
    for dataset, own in runs.group(lambda run: run[0]):
        expected = math.prod(len(set(values)) for values in zip(*own, strict=True))
        yield f"{dataset}: {len(own)} of {expected} expected runs"
        cells = own.map(lambda run: run[1:4]).unique().group(lambda cell: cell[:2])
        trials = {key: len(cell) for key, cell in cells}
        for (algorithm, test_envs), n in trials.items():
            if n < max(trials.values()):
                yield (
                    f"warning: {dataset}, {algorithm}, test environment {test_envs}: "
                    f"{n} trials, others have {max(trials.values())}"
                )
    if all(len(record["args"]["test_envs"]) == 1 for record in records):
        yield "leave-one-domain-out was not run: it needs pairs of test environments"


def misfits(records: Q, is_text: bool) -> Iterator[str]:
    """Warnings of what the tables leave out for want of a column or of accuracies."""
    for dataset, own in records.group("args.dataset"):
        names = frames.environments(dataset, own)
        if not any(keys_of(record, "out") for record in own):
            yield (
                f"warning: {dataset}: no run held images out, so that nothing is "
                "chosen by validation on them; was --holdout_fraction 0?"
            )
        # Of few shots they are the tests of one run.
        tests = (r["args"]["test_envs"] for r in own if "shots" not in r["args"])
        odd = [envs for envs in tests if len(envs) > 2 or len({*envs}) < len(envs)]
        if odd:
            yield (
                f"warning: {len(odd)} records of {dataset} test on {odd[0]} and the "
                "like; tables are of runs that test on one environment or on two"
            )
        beyond = [
            env for env in own.select("args.test_envs").flatten() if env >= len(names)
        ]
        if not names and is_text:
            yield f"warning: no tables for {dataset}: it is not registered here"
        elif not names:
            yield f"warning: {dataset} is not registered here: its columns have numbers"
        elif beyond:
            yield (
                f"warning: {len(beyond)} records of {dataset} test on environment "
                f"{max(beyond)}, which it has not: it has {len(names)}"
            )


def cut_cells(records: Q) -> Iterator[str]:
    """A warning of the names at which DomainBed's LaTeX is cut inside a command."""
    present = records.select("args.dataset").unique()
    heads = [
        *((f"\\textbf{{{escape(name)}}}", 25) for name in frames.headings(present)),
        *(
            (f"\\textbf{{{escape(name)}}}", 20)
            for dataset in present
            for name in frames.environments(dataset, records)
        ),
    ]
    cut = [cell for cell, width in heads if len(cell) > width]
    if cut:
        yield (
            "warning: cells are cut as DomainBed cuts them, which LaTeX cannot read: "
            f"{reporting.listed(cut)}; --paper cuts none"
        )


def read_sweep(*input_dirs: str, flag: str = "--input_dir") -> protocol.Runs:
    """The sweeps' runs; InputError, with the flag that names them, if there is none."""
    for folder in map(Path, input_dirs):
        if not folder.is_dir():
            raise InputError(
                f"{flag} {folder} is no folder; give a sweep's output_dir."
            )
    runs = reporting.load_runs(*input_dirs)
    if not runs:
        for folder in map(Path, input_dirs):
            if (folder / "results.jsonl").is_file():
                raise InputError(
                    f"{flag} {folder} is a run's own folder; give its sweep's, "
                    f"{folder.resolve().parent}."
                )
            sweeps = sorted(
                {str(f.parents[1]) for f in folder.glob("*/*/results.jsonl")}
            )
            if sweeps:
                raise InputError(
                    f"{flag} {folder} holds sweeps; give them: {flag} "
                    f"{shlex.join(sweeps)}."
                )
        raise InputError(
            f"{flag} {' '.join(input_dirs)} holds no results.jsonl with records; "
            "give a sweep's output_dir."
        )
    return runs


def upstreams_tables(
    records: Q,
    methods: Methods,
    latex: bool,
    theirs: pd.DataFrame | None,
    reference: str | None,
) -> str:
    """The tables that DomainBed prints; InputError if none of the datasets has one."""
    present = records.select("args.dataset").unique()
    if not any(frames.environments(dataset, records) for dataset in present):
        raise InputError(
            f"no tables of {reporting.listed(present)}: not registered here; --format "
            "csv, json, markdown or html, and --paper, have the figures."
        )
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        if latex:
            print("\\documentclass{article}\n\\usepackage{booktabs}")
            print("\\usepackage{adjustbox}\n\\begin{document}")
            print("\\section{Full DomainBed results}")
            print(f"% Total records: {len(records)}")
        else:
            print(f"Total records: {len(records)}")
        for method in methods:
            own = below(theirs, method)
            print_results_tables(records, method, latex, own, reference)
        if latex:
            print("\\end{document}")
    return out.getvalue()


def below(
    theirs: pd.DataFrame | None, method: type[model_selection.SelectionMethod]
) -> pd.DataFrame | None:
    """Of published rows those that stand below the tables of that method."""
    if theirs is None:
        return None
    names = [known.name for known in SELECTIONS.values()]
    return published.chosen_as(theirs, method.name, names)


def few_shot_method(selection: str | None) -> type[model_selection.SelectionMethod]:
    """The method that --selection asks for, of few shots; InputError for another."""
    (method,) = selection_methods(selection or few_shot_records.METHODS[0].name)
    if method not in few_shot_records.METHODS:
        raise InputError(
            f"few-shot runs are chosen by {' or '.join(OF_FEW_SHOTS)}, not by "
            f"{selection}."
        )
    return method


def few_shot_tables(
    runs: protocol.Runs,
    records: Q,
    made: protocol.Made,
    args: argparse.Namespace,
) -> str:
    """The tables of few-shot runs."""
    method = few_shot_method(args.selection)
    if args.format == "paper":
        raise InputError(
            "few-shot runs have no tables in the format paper; --latex has them."
        )
    accs = few_shot_records.accuracies(records, method)
    if accs.empty:
        raise InputError(f"no run has the accuracies that {method.name} needs.")
    theirs = published.few_shots(baseline_file(args)) if args.baseline else None
    frames.check_reference(args.reference, accs["algorithm"].unique().tolist())
    rows = few_shot_records.protocols(runs, made, method)
    found = [*few_shot.tables(accs, rows, theirs, args.reference)]
    if theirs is not None and not any(map(has_published, found)):
        raise InputError(
            f"--baseline {args.baseline} has no figures for these datasets, shots and "
            "classes."
        )
    if args.format in ("csv", "json"):
        return getattr(formats, args.format)(few_shot.long_form(found, method))
    about = few_shot.about(accs)
    if args.format in ("markdown", "html"):
        titled = {
            f"{title}, model selection: {method.name}": wide
            for table in found
            for title, wide in few_shot_wide(table).items()
        }
        return getattr(formats, args.format)(titled, about)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        print_few_shot_tables(found, method, about, args.format == "latex")
    return out.getvalue()


def few_shot_wide(table: few_shot.Table) -> dict[str, WideTable]:
    """The table with what can be told apart in it, then the differences in it."""
    apart = table.apart
    title = few_shot_records.title_of((*table.block.values(), table.dataset), True)
    tables = {title: WideTable(table.form, ties(table.accs, apart))}
    if len(table.others):
        own = formats.differences(table.others, table.reference, apart)
        tables[f"{title}, less {table.reference}"] = own
    return tables


def has_published(table: few_shot.Table) -> bool:
    return {*table.form.index.get_level_values("source")} != {frames.MEASURED}


def baseline_file(args: argparse.Namespace) -> str:
    """The path that --baseline means; InputError names what there is."""
    return shipped.find(args.baseline, "published/*.csv")


def framed_tables(
    records: Q,
    methods: Methods,
    args: argparse.Namespace,
    theirs: pd.DataFrame | None,
    rows: protocol.Rows,
) -> str:
    """CSV and JSON in long form; Markdown, HTML and a paper's LaTeX in wide tables."""
    chosen = {method: frames.accuracies(records, method) for method in methods}
    chosen = {method: accs for method, accs in chosen.items() if len(accs)}
    if not chosen:
        names = ", ".join(method.name for method in methods)
        raise InputError(f"no run has the accuracies that {names} needs.")
    form, reference = args.format, args.reference
    if form in ("csv", "json"):
        longs = [
            with_facts(frames.long_form(accs, method), accs, reference, rows)
            for method, accs in chosen.items()
        ]
        return getattr(formats, form)(pd.concat([*longs, theirs]))
    tables = {
        method: wide_tables(accs, method, below(theirs, method), reference, rows)
        for method, accs in chosen.items()
    }
    if form == "paper":
        return paper.document(tables)
    titled = {
        f"{title}, model selection: {method.name}": table
        for method, own in tables.items()
        for title, table in own.items()
    }
    return getattr(formats, form)(titled)


def with_facts(
    long: pd.DataFrame,
    accs: pd.DataFrame,
    reference: str | None,
    rows: protocol.Rows,
) -> pd.DataFrame:
    """A long form with each row's protocol by its digest, and its difference to the
    reference.
    """
    places = zip(long["dataset"], long["algorithm"], strict=True)
    long = long.assign(digest=[rows[d][a].digest for d, a in places])
    if reference is None:
        return long
    less = frames.less(accs, reference)
    keys = ["dataset", "algorithm", "environment"]
    both = pd.concat([frames.summary(less), frames.averages(less)])
    names = frames.DIFFERENCES
    return long.merge(both[[*keys, *names]].rename(columns=names), "left", keys)


def wide_tables(
    accs: pd.DataFrame,
    method: type[model_selection.SelectionMethod],
    theirs: pd.DataFrame | None,
    reference: str | None,
    rows: protocol.Rows,
) -> dict[str, WideTable]:
    """Each wide form, what can be told apart in it, then the differences in it."""
    names = frames.in_order(accs["algorithm"], algorithm_names())
    long = pd.concat([frames.long_form(accs, method), theirs])
    less = {}
    if reference is not None:
        others = [name for name in names if name != reference]
        own = frames.less(accs, reference)
        own = frames.long_form(own[own["algorithm"] != reference], method)
        less = frames.wide_forms(own, others)
    tables = {}
    for title, form in frames.wide_forms(long, names).items():
        own = accs if title == frames.AVERAGES else accs[accs["dataset"] == title]
        apart = protocol.apart(rows, [*dict.fromkeys(own["dataset"])], names)
        tables[title] = WideTable(form, ties(own, apart))
        if title in less:
            own = formats.differences(less[title], reference, apart)
            tables[f"{title}, less {reference}"] = own
    return tables


def deliver(text: str, args: argparse.Namespace) -> None:
    """Write --output; without one print, and keep DomainBed's tables in the folder."""
    if args.output:
        try:
            misc.write_whole(Path(args.output), text)
        except (OSError, ValueError) as error:  # ValueError: of "" and "."
            raise InputError(
                f"--output {args.output} cannot be written: {error}."
            ) from error
        return
    print(text, end="")
    name = {"text": "results.txt", "latex": "results.tex"}.get(args.format)
    if name and len(args.input_dir) == 1:
        path = Path(args.input_dir[0]) / name
        try:
            misc.write_whole(path, text)
        except OSError as error:
            print(f"warning: cannot write {path} ({error})", file=sys.stderr)


def warn(quiet: bool, *said: Iterable[str]) -> None:
    """Print what there is to say of the runs, unless quiet."""
    for line in () if quiet else itertools.chain(*said):
        print(printable(line), file=sys.stderr)


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    methods = selection_methods(args.selection)
    runs = read_sweep(*args.input_dir)
    records = reporting.records_of(runs)
    frames.remember(records)
    if few_shot_records.all_few_shot(records):
        made = facts_of(*args.input_dir)
        warn(args.quiet, same_draws(records), mixtures(made))
        deliver(few_shot_tables(runs, records, made, args), args)
        return
    frames.check_reference(args.reference, records.select("args.algorithm").unique())
    theirs = None
    if args.baseline:
        present = frames.in_order(records.select("args.dataset"), datasets.DATASETS)
        theirs = published.published(baseline_file(args), present)
    if SELECTIONS["auto_lr"] in methods:
        records = merge_auto_lr(records)
    is_text = args.format in ("text", "latex")
    made = {} if args.quiet and is_text else facts_of(*args.input_dir)
    cut = cut_cells(records) if args.format == "latex" else ()
    said = misfits(records, is_text), remarks(records), same_draws(records)
    warn(args.quiet, *said, cut, mixtures(made))
    if is_text:
        latex = args.format == "latex"
        text = upstreams_tables(records, methods, latex, theirs, args.reference)
    else:
        rows = protocol.of_rows(runs, made)
        text = framed_tables(records, methods, args, theirs, rows)
    deliver(text, args)


if __name__ == "__main__":
    main()
