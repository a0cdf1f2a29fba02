"""What the report shows of few-shot runs: accuracy over the number of shots."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from domainbed.model_selection import SelectionMethod
from domainbed.report import figures
from domainbed.report.chosen import absent
from domainbed.report.coverage import coverage_block
from domainbed.report.parts import (
    Block,
    Part,
    Picture,
    Table,
    differences,
    plural,
    summary,
    table,
)
from domainbed.tables import few_shot, frames
from domainbed.tables.few_shot_records import BLOCK, in_table_order
from domainbed.tables.frames import AVERAGES
from domainbed.tables.protocol import Rows

GROUP = [name for name in BLOCK if name != "shots"]
LAST = {
    few_shot.H: "H, the harmonic mean of base and new accuracy, of their means.",
    few_shot.OF_TARGETS: "The mean over the datasets that are transferred to.",
}


class Chosen(NamedTuple):
    """What one selection method chose, and how it came about: see few_shot_records."""

    method: type[SelectionMethod]
    accs: pd.DataFrame
    rows: Rows
    reference: str | None  # the row that others are compared with

    @property
    def names(self) -> list[str]:
        return in_table_order(self.accs["algorithm"])


def section(
    dataset: str, chosen: list[Chosen], runs: pd.DataFrame, root: Path
) -> list[Block]:
    """The blocks of one dataset."""
    of_it = (own.accs[own.accs["dataset"] == dataset] for own in chosen)
    options = [own._replace(accs=accs) for own, accs in zip(chosen, of_it, strict=True)]
    parts: dict[str, list[Part]] = {}
    for title, own in groups(options):
        part = absent(own.method) if own.accs.empty else shots_part(own)
        parts.setdefault(f"Accuracy over shots, {title}", []).append(part)
    runs = runs[runs["dataset"] == dataset].infer_objects()
    blocks = [Block(title, options) for title, options in parts.items()]
    return [*blocks, coverage_block(runs, [], root)]


def groups(chosen: list[Chosen]) -> Iterator[tuple[str, Chosen]]:
    """(title, what a method chose) of each choice of classes, source and targets."""
    every = pd.concat([own.accs for own in chosen])
    for group in every[GROUP].drop_duplicates().itertuples(index=False):
        title = f"{group.classes} classes"
        title += f", from {group.drawn_from}" if group.drawn_from else ""
        title += f", to {group.transfer_to}" if group.transfer_to else ""
        for own in chosen:
            here = (own.accs[GROUP] == [*group]).all(axis=1)
            yield title, own._replace(accs=own.accs[here])


def shots_part(own: Chosen) -> Part:
    """The table of one dataset, methods x numbers of shots, and its picture."""
    pictures = [
        Picture(
            "A line is a method's mean over trials, a bar reaches from its lowest "
            "trial to its highest. Where bars overlap, trials do not tell methods "
            "apart.",
            figures.over_shots(own.accs, own.names),
            numbers(own.accs, "test"),
        )
    ]
    part, last = over_shots(own, own.accs["dataset"].iloc[0])
    words = [LAST.get(last, ""), *few_shot.about(own.accs), *part.texts]
    less = frames.less(own.accs, own.reference, BLOCK)
    less = less[less["algorithm"] != own.reference]
    if len(less):
        picture = Picture(
            f"The same less what {own.reference} has in the same trial, in points.",
            figures.over_shots(less, own.names, own.reference),
            numbers(less, "difference"),
        )
        pictures.append(picture)
    return part._replace(texts=[*filter(None, words)], pictures=pictures)


def numbers(accs: pd.DataFrame, what: str) -> Table:
    """What a picture shows."""
    percent = accs.assign(**{what: 100 * accs["acc"]})
    return table(percent[["algorithm", "environment", "shots", "trial_seed", what]])


def overview(chosen: list[Chosen]) -> list[Part]:
    """The averages over datasets, of each choice of classes, source and targets."""
    parts = []
    for title, own in groups(chosen):
        if own.accs["dataset"].nunique() > 1:
            part, _ = over_shots(own, AVERAGES)
            parts.append(part._replace(texts=[f"Averages, {title}.", *part.texts]))
    return parts


def over_shots(own: Chosen, dataset: str) -> tuple[Part, str]:
    """The last column of the dataset's tables, methods x numbers of shots; its name.

    Which rows are not ranked, and the differences to the reference.
    """
    found = few_shot.tables(own.accs, own.rows, reference=own.reference)
    found = {
        plural(each.block["shots"], "shot"): each
        for each in found
        if each.dataset == dataset
    }
    last = next(iter(found.values())).form["mean"].columns[-1]

    def over(forms: dict[str, pd.DataFrame]) -> list[pd.DataFrame]:
        """Their means and errors."""
        return [
            pd.DataFrame({shots: form[part, last] for shots, form in forms.items()})
            .droplevel(["source", "protocol"])
            .reindex(own.names, columns=[*found])
            for part in ("mean", "err")
        ]

    rows = {
        f"{shots} of {title}": each
        for shots, table in found.items()
        for title, each in zip(
            frames.headings([*table.rows]), table.rows.values(), strict=True
        )
    }
    apart = few_shot.apart(rows, own.accs)
    summaries = [summary(*over({k: each.form for k, each in found.items()}), apart)]
    less = {k: each.less for k, each in found.items() if each.less is not None}
    if less and len(own.names) > 1:
        summaries.append(differences(*over(less), apart, own.reference))
    words = [apart.why] if apart.why else []
    return Part(own.method.name, words, summaries), last
