"""Tables of few-shot runs as text or LaTeX."""

from collections.abc import Iterable

import pandas as pd

from domainbed.lib.reporting import printable
from domainbed.model_selection import SelectionMethod
from domainbed.tables.few_shot import Table
from domainbed.tables.formats import texts
from domainbed.tables.frames import AVERAGES, MEASURED
from domainbed.tables.paper import escape
from domainbed.tables.protocol import MARK
from domainbed.tables.text import print_table


def print_few_shot_tables(
    found: Iterable[Table],
    method: type[SelectionMethod],
    about: list[str],
    latex: bool,
) -> None:
    """Print the tables below sentences about them; published rows below a rule.

    Differences to a reference stand behind each, and why a row is not ranked, but for
    what the sentences say of AS_PUBLISHED.
    """
    for sentence in about:
        print(f"{'% ' if latex else ''}{sentence}")
    for table in found:
        forms = {"": table.form}
        if len(table.others):
            forms[f", less {table.reference}"] = table.others
        for less_it, form in forms.items():
            what = "" if table.dataset == AVERAGES else "Dataset: "
            title = f"{what}{table.title}{less_it}"
            if latex and less_it:
                print(f"\n\\subsubsection{{{escape(title)}}}")
            title += f", model selection method: {method.name}"
            print_form(form, title, table.apart.marks, latex, bool(less_it))
        if MARK in table.apart.marks.values():
            print()
            print((escape if latex else printable)(table.apart.why))


def print_form(
    form: pd.DataFrame,
    title: str,
    marks: dict[str, str],
    latex: bool,
    differences: bool,
) -> None:
    """Print one wide form."""
    sign = "$\\pm$" if latex else "+/-"
    columns = (texts(form, name, sign, differences) for name in form["mean"])
    rows: list[list[str] | None] = [list(row) for row in zip(*columns, strict=True)]
    names = form.index.get_level_values("algorithm")
    n = int((form.index.get_level_values("source") == MEASURED).sum())
    labels = [name + marks.get(name, "") for name in names[:n]] + [*names[n:]]
    if n < len(rows):
        rows.insert(n, None)
        labels.insert(n, "")
    print_table(
        rows,
        title,
        labels,
        ["Algorithm", *form["mean"]],
        colwidth=30 if latex else 20,
        latex=latex,
    )
