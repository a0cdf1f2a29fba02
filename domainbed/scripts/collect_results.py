"""Print the comparison tables of a sweep, as text or LaTeX."""

import argparse
import contextlib
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from domainbed import algorithms, datasets, model_selection
from domainbed.lib import misc, reporting
from domainbed.lib.errors import InputError, exits_on_input_error
from domainbed.lib.query import Q

SELECTION_METHODS = (
    model_selection.IIDAccuracySelectionMethod,
    model_selection.LeaveOneOutSelectionMethod,
    model_selection.OracleSelectionMethod,
)
OF_A_SPLIT = ("holdout_fraction", "output_dir")  # what --auto_lr merges over


def format_mean(
    data: Iterable[float], latex: bool
) -> tuple[float | None, float | None, str]:
    """(mean, standard error, text) of accuracies, in percent; of none, (None, None, X).

    The error is the population's standard deviation over sqrt(n).
    """
    data = list(data)
    if not data:
        return None, None, "X"
    mean = 100 * float(np.mean(data))
    err = 100 * float(np.std(data) / np.sqrt(len(data)))
    sign = "$\\pm$" if latex else "+/-"
    return mean, err, f"{mean:.1f} {sign} {err:.1f}"


def print_table(
    table: list[list],
    header_text: str,
    row_labels: list[str],
    col_labels: list[str],
    colwidth: int = 10,
    latex: bool = True,
) -> None:
    """Print cells (floats get one decimal) under a header row.

    A cell is cut to `colwidth`, in LaTeX too: a long name then loses the brace that
    closes \\textbf. Upstream's tables do that, and ours are equal to them.
    """
    print()
    if latex:
        columns = "c" * (len(table[0]) if table else len(col_labels) - 1)
        print("\\begin{center}\n\\adjustbox{max width=\\textwidth}{%")
        print(f"\\begin{{tabular}}{{l{columns}}}\n\\toprule")
        col_labels = [f"\\textbf{{{escape(label)}}}" for label in col_labels]
    else:
        print("--------", header_text)
    separator, end = (" & ", " \\\\") if latex else ("  ", " ")

    def print_row(cells: list) -> None:
        texts = [f"{c:.1f}" if isinstance(c, float) else str(c) for c in cells]
        print(separator.join(t.ljust(colwidth)[:colwidth] for t in texts) + end)

    print_row(col_labels)
    if latex:
        print("\\midrule")
    for label, row in zip(row_labels, table, strict=True):
        print_row([label, *row])
    if latex:
        print("\\bottomrule\n\\end{tabular}}\n\\end{center}")


def escape(text: str) -> str:
    """The text with the characters that LaTeX reads as commands made plain."""
    for character in "&%$#_{}":
        text = text.replace(character, f"\\{character}")
    return text


def in_order(present: set[str], known: list[str]) -> list[str]:
    """The names present, in the known order, the unknown ones after."""
    return [n for n in known if n in present] + sorted(present - set(known))


def with_average(cells: list[tuple]) -> list[str | float]:
    """A row: the cells' texts and the mean of their means, "X" if one is missing."""
    means = [mean for mean, _, _ in cells]
    average = "X" if None in means else float(np.mean(means))
    return [*(text for _, _, text in cells), average]


def dataset_table(accs: Q, dataset: str, names: list[str], latex: bool) -> list[list]:
    """A row of cells per algorithm: each environment over the trials, then Avg."""
    rows = []
    for algorithm in names:
        own = accs.filter_equals("dataset,algorithm", (dataset, algorithm))
        cells = [
            format_mean(own.filter_equals("test_env", env).select("acc"), latex)
            for env in range(datasets.num_environments(dataset))
        ]
        rows.append(with_average(cells))
    return rows


def averages_table(
    accs: Q, dataset_names: list[str], names: list[str], latex: bool
) -> list[list]:
    """A row per algorithm: each dataset's mean over environments, over the trials."""
    rows = []
    for algorithm in names:
        cells = []
        for dataset in dataset_names:
            trials = (
                accs.filter_equals("algorithm,dataset", (algorithm, dataset))
                .group("trial_seed")
                .map(lambda _, group: group.select("acc").mean())
            )
            cells.append(format_mean(trials, latex))
        rows.append(with_average(cells))
    return rows


def print_results_tables(
    records: Q, method: type[model_selection.SelectionMethod], latex: bool
) -> None:
    """Print a table per dataset and one of averages, for one selection method."""
    groups = reporting.get_grouped_records(records)
    accs = groups.map(
        lambda group: {**group, "acc": method.sweep_acc(group["records"])}
    ).filter(lambda group: group["acc"] is not None)
    names = in_order({*groups.select("algorithm")}, algorithms.ALGORITHMS)
    present = {*groups.select("dataset")}
    dataset_names = [n for n in in_order(present, datasets.DATASETS) if is_known(n)]
    about = f"model selection method: {method.name}"
    if latex:
        print(f"\n\\subsection{{Model selection: {method.name}}}")
    for dataset in dataset_names:
        if latex:
            print(f"\n\\subsubsection{{{escape(dataset)}}}")
        environments = datasets.get_dataset_class(dataset).ENVIRONMENTS
        print_table(
            dataset_table(accs, dataset, names, latex),
            f"Dataset: {dataset}, {about}",
            names,
            ["Algorithm", *environments, "Avg"],
            colwidth=20,
            latex=latex,
        )
    if latex:
        print("\n\\subsubsection{Averages}")
    print_table(
        averages_table(accs, dataset_names, names, latex),
        f"Averages, {about}",
        names,
        ["Algorithm", *dataset_names, "Avg"],
        colwidth=25,
        latex=latex,
    )


def merge_auto_lr(records: Q) -> Q:
    """Records whose args differ in nothing but `holdout_fraction`, made one each."""

    def identity(record: dict) -> tuple:
        args = {k: v for k, v in record["args"].items() if k not in OF_A_SPLIT}
        return args, record["step"]

    def merge(_: tuple, same: Q) -> dict:
        merged: dict = {}
        for record in same.sorted(lambda r: -r["args"]["holdout_fraction"]):
            merged = record | merged
        return merged

    return records.group(identity).map(merge)


def is_known(dataset: str) -> bool:
    """Whether the dataset is registered here, or its folder is."""
    try:
        datasets.get_dataset_class(dataset)
    except InputError:
        return False
    return True


def remarks(records: Q) -> Iterator[str]:
    """What a reader of the tables should know: what is missing, and where."""
    names = ("dataset", "algorithm", "test_envs", "trial_seed", "hparams_seed")
    runs = records.select(lambda r: tuple(str(r["args"][n]) for n in names)).unique()
    for dataset, own in runs.group(lambda run: run[0]):
        if not is_known(dataset):
            yield f"warning: no tables for {dataset}: it is not registered here"
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


def read_sweep(input_dir: str) -> Q:
    """The records of a sweep's folder; InputError if there are none."""
    if not Path(input_dir).is_dir():
        raise InputError(
            f"--input_dir {input_dir} is no folder; give a sweep's output_dir."
        )
    records = reporting.load_records(input_dir)
    if not records:
        raise InputError(
            f"--input_dir {input_dir} holds no results.jsonl with records; give a "
            "sweep's output_dir."
        )
    return records


@contextlib.contextmanager
def tee(path: Path) -> Iterator[None]:
    """What is printed inside also goes to the file, where that can be written."""
    try:
        out = misc.Tee(path, "w")
    except OSError as error:
        print(f"warning: cannot write {path} ({error})", file=sys.stderr)
        yield
        return
    with contextlib.closing(out.file), contextlib.redirect_stdout(out):
        yield


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="collect_results", description=__doc__)
    parser.add_argument("--input_dir", required=True, help="the sweep's folder")
    parser.add_argument("--latex", action="store_true")
    parser.add_argument("--auto_lr", action="store_true", help="select by auto lr only")
    args = parser.parse_args(argv)
    records = read_sweep(args.input_dir)
    methods = SELECTION_METHODS
    if args.auto_lr:
        records = merge_auto_lr(records)
        methods = (model_selection.IIDAutoLRAccuracySelectionMethod,)
    for line in remarks(records):
        print(line, file=sys.stderr)
    name = "results.tex" if args.latex else "results.txt"
    with tee(Path(args.input_dir) / name):
        if args.latex:
            print("\\documentclass{article}\n\\usepackage{booktabs}")
            print("\\usepackage{adjustbox}\n\\begin{document}")
            print("\\section{Full DomainBed results}")
            print(f"% Total records: {len(records)}")
        else:
            print(f"Total records: {len(records)}")
        for method in methods:
            print_results_tables(records, method, args.latex)
        if args.latex:
            print("\\end{document}")


if __name__ == "__main__":
    main()
