"""DomainBed's own tables, as text or LaTeX: what they print may not change."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from domainbed import datasets, model_selection
from domainbed.lib import reporting
from domainbed.lib.query import Q
from domainbed.lib.reporting import printable
from domainbed.names import algorithm_names
from domainbed.tables.frames import (
    AVERAGE,
    environments,
    error_of,
    headings,
    in_order,
    mean_of,
    pivoted,
)
from domainbed.tables.paper import escape


def format_mean(
    data: Iterable[float], latex: bool
) -> tuple[float | None, float | None, str]:
    """(mean, standard error, text) of accuracies, in percent; of none, (None, None, X).

    The error is the population's standard deviation over sqrt(n).
    """
    data = list(data)
    if not data:
        return None, None, "X"
    mean, err = 100 * mean_of(data), 100 * error_of(data)
    sign = "$\\pm$" if latex else "+/-"
    return mean, err, f"{mean:.1f} {sign} {err:.1f}"


def print_table(
    table: list[list | None],
    header_text: str,
    row_labels: list[str],
    col_labels: list[str],
    colwidth: int = 10,
    latex: bool = True,
) -> None:
    """Print cells (floats get one decimal) under a header row; None makes a rule.

    A cell is cut to `colwidth`, in LaTeX too: a long name then loses the brace that
    closes \\textbf. Upstream's tables do that, and ours are equal to them.
    """
    print()
    if latex:
        columns = "c" * (len(table[0]) if table else len(col_labels) - 1)
        print("\\begin{center}\n\\adjustbox{max width=\\textwidth}{%")
        print(f"\\begin{{tabular}}{{l{columns}}}\n\\toprule")
        col_labels = [f"\\textbf{{{escape(label)}}}" for label in col_labels]
        row_labels = [escape(label) for label in row_labels]
    else:
        print("--------", printable(header_text))
        col_labels, row_labels = (
            [printable(label) for label in labels]
            for labels in (col_labels, row_labels)
        )
    separator, end = (" & ", " \\\\") if latex else ("  ", " ")

    def print_row(cells: list) -> None:
        texts = [f"{c:.1f}" if isinstance(c, float) else str(c) for c in cells]
        print(separator.join(t.ljust(colwidth)[:colwidth] for t in texts) + end)

    print_row(col_labels)
    if latex:
        print("\\midrule")
    for label, row in zip(row_labels, table, strict=True):
        if row is not None:
            print_row([label, *row])
        elif latex:
            print("\\midrule")
        else:
            print_row(["-" * colwidth] * len(col_labels))
    if latex:
        print("\\bottomrule\n\\end{tabular}}\n\\end{center}")


def with_average(cells: list[tuple]) -> list[str | float]:
    """A row: the cells' texts and the mean of their means, "X" if one is missing."""
    means = [mean for mean, _, _ in cells]
    average = "X" if None in means else mean_of(means)
    return [*(text for _, _, text in cells), average]


def dataset_table(
    accs: Q, dataset: str, n_envs: int, names: list[str], latex: bool
) -> list[list]:
    """A row of cells per algorithm: each environment over the trials, then Avg."""
    rows = []
    for algorithm in names:
        own = accs.filter_equals("dataset,algorithm", (dataset, algorithm))
        cells = [
            format_mean(own.filter_equals("test_env", env).select("acc"), latex)
            for env in range(n_envs)
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
                .map(lambda _, group: mean_of(group.select("acc")))
            )
            cells.append(format_mean(trials, latex))
        rows.append(with_average(cells))
    return rows


def below_a_rule(
    published: pd.DataFrame | None, columns: list[str]
) -> tuple[list, list]:
    """Rows of published figures and their labels; "" for columns they have none of."""
    if published is None:
        return [], []
    form = pivoted(published, "dataset", columns, [])["mean"].dropna(how="all")
    rows = [
        ["" if np.isnan(value) else float(value) for value in row]
        for row in form.to_numpy()
    ]
    return [None, *rows], ["", *form.index.get_level_values("algorithm")]


def less(accs: Q, reference: str) -> Q:
    """Each group's acc less the reference's in the same trial; none where it has none.

    As `frames.less`.
    """

    def place(group: dict) -> tuple:
        return group["dataset"], group["test_env"], group["trial_seed"]

    theirs = accs.filter_equals("algorithm", reference)
    theirs = {place(group): group["acc"] for group in theirs}
    return Q(
        {**group, "acc": group["acc"] - theirs[place(group)]}
        for group in accs
        if place(group) in theirs
    )


def print_results_tables(
    records: Q,
    method: type[model_selection.SelectionMethod],
    latex: bool,
    published: pd.DataFrame | None = None,
    reference: str | None = None,
) -> None:
    """Print a table per dataset and one of averages, for one selection method.

    Published rows (see `published`) stand below the averages, and differences to the
    reference behind each table.
    """
    groups = reporting.get_grouped_records(records)
    accs = groups.map(
        lambda group: {**group, "acc": method.sweep_acc(group["records"])}
    ).filter(lambda group: group["acc"] is not None)
    names = in_order(groups.select("algorithm"), algorithm_names())
    present = in_order(groups.select("dataset"), datasets.DATASETS)
    found = {name: environments(name, records) for name in present}
    dataset_names = [name for name in present if found[name]]
    if latex:
        print(f"\n\\subsection{{Model selection: {method.name}}}")
    kinds = {"": accs}
    if reference is not None:
        kinds[f", less {reference}"] = less(accs, reference)
    others = [name for name in names if name != reference]

    def show(title: str, table: list, own: list[str], *columns: str, width: int):
        if latex:
            print(f"\n\\subsubsection{{{escape(title)}}}")
        print_table(
            table,
            f"{title}, model selection method: {method.name}",
            own,
            ["Algorithm", *columns, AVERAGE],
            colwidth=width,
            latex=latex,
        )

    for dataset in dataset_names:
        for less_it, own_accs in kinds.items():
            own = others if less_it else names
            table = dataset_table(own_accs, dataset, len(found[dataset]), own, latex)
            title = dataset if latex else f"Dataset: {dataset}"
            show(title + less_it, table, own, *found[dataset], width=20)
    for less_it, own_accs in kinds.items():
        own = others if less_it else names
        table = averages_table(own_accs, dataset_names, own, latex)
        rows, labels = [], []
        if not less_it:
            rows, labels = below_a_rule(published, [*dataset_names, AVERAGE])
        columns = headings(dataset_names)
        show("Averages" + less_it, table + rows, own + labels, *columns, width=25)
