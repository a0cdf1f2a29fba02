"""Tables of few-shot runs as text or LaTeX."""

from collections.abc import Iterable

from domainbed.model_selection import SelectionMethod
from domainbed.tables.few_shot import Table
from domainbed.tables.formats import texts
from domainbed.tables.frames import AVERAGES, MEASURED
from domainbed.tables.text import print_table


def print_few_shot_tables(
    found: Iterable[Table],
    method: type[SelectionMethod],
    about: list[str],
    latex: bool,
) -> None:
    """Print the tables below sentences about them; published rows below a rule."""
    for sentence in about:
        print(f"{'% ' if latex else ''}{sentence}")
    for table in found:
        form = table.form
        sign = "$\\pm$" if latex else "+/-"
        columns = (texts(form, name, sign) for name in form["mean"])
        rows: list[list[str] | None] = [list(row) for row in zip(*columns, strict=True)]
        labels = [*form.index.get_level_values("algorithm")]
        n = int((form.index.get_level_values("source") == MEASURED).sum())
        if n < len(rows):
            rows.insert(n, None)
            labels.insert(n, "")
        what = "" if table.dataset == AVERAGES else "Dataset: "
        print_table(
            rows,
            f"{what}{table.title}, model selection method: {method.name}",
            labels,
            ["Algorithm", *form["mean"]],
            colwidth=30 if latex else 20,
            latex=latex,
        )
