"""Forms of `frames` as text: CSV, JSON, Markdown, HTML. Names in them stay data."""

import re
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import pandas as pd

from domainbed.lib.reporting import printable
from domainbed.tables.frames import DIFFERENCES, MEASURED, headings
from domainbed.tables.protocol import Apart
from domainbed.tables.ties import Ties

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>Results</title>
<style>
:root {{ color-scheme: light dark; font-family: sans-serif }}
table {{ border-collapse: collapse }}
th, td {{ padding: .2em .6em; text-align: left; border-bottom: 1px solid }}
</style></head><body>
{}
</body></html>
"""


class WideTable(NamedTuple):
    """A wide form, what can be told apart in it, and the row that its figures are
    differences to, if they are.
    """

    form: pd.DataFrame
    ties: Ties
    less: str | None = None


def differences(form: pd.DataFrame, reference: str, apart: Apart) -> WideTable:
    """The table of a wide form of differences to the reference."""
    note = f"Differences to {reference} in points, trial by trial. {apart.why}"
    return WideTable(form, Ties({}, note.strip(), apart), reference)


def texts(
    form: pd.DataFrame, column: str, sign: str = "±", differences: bool = False
) -> list[str]:
    """A column of a wide form: 60.1 ± 0.3, without an error 60.1; differences +1.2.

    X where nothing was measured, nothing where nothing was published.
    """

    def text(source: str, mean: float, err: float, n: float) -> str:
        if pd.isna(mean) and not n > 0:
            return "X" if source == MEASURED else ""
        own = f"{mean:+.1f}" if differences else f"{mean:.1f}"
        return own if pd.isna(err) else f"{own} {sign} {err:.1f}"

    figures = form.xs(column, axis=1, level=1).itertuples(index=False)
    sources = form.index.get_level_values("source")
    return [
        text(*row) for row in zip(sources, *zip(*figures, strict=True), strict=True)
    ]


def cells(table: WideTable) -> pd.DataFrame:
    """A table as its reader sees it; published rows bring a column Source.

    The letters of rows that cannot be told apart have a column Alike.
    """
    form, ties, less = table
    names = [
        printable(name) + mark_of(ties, source, name) for source, _, name in form.index
    ]
    frame = pd.DataFrame(
        {"Algorithm": names}
        | {
            printable(title): texts(form, column, differences=less is not None)
            for title, column in zip(
                headings([*form["mean"].columns]), form["mean"].columns, strict=True
            )
        }
    )
    if ties.letters:
        frame["Alike"] = [letters_of(ties, row[0], row[2]) for row in form.index]
    if {*form.index.get_level_values("source")} - {MEASURED}:
        of = ("; ".join(filter(None, row[:2])) for row in form.index)
        frame["Source"] = [printable(text) for text in of]
    return frame


def mark_of(ties: Ties, source: str, algorithm: str) -> str:
    """What a measured row has behind its name for its protocol."""
    return ties.apart.marks.get(algorithm, "") if source == MEASURED else ""


def letters_of(ties: Ties, source: str, algorithm: str) -> str:
    """A row's letters with commas; published rows have none."""
    return ",".join(ties.letters.get(algorithm, ())) if source == MEASURED else ""


def as_records(frame: pd.DataFrame) -> pd.DataFrame:
    """A long form with the columns' names in full; those of few shots come second."""
    names = {"err": "standard_error", "n": "trials", "digest": "protocol_digest"}
    columns = ["algorithm", "environment", "selection"]
    columns += ["mean", "err", "n", "source", "protocol", "digest"]
    columns += [*DIFFERENCES.values()]
    further = [name for name in frame if name not in ("dataset", *columns)]
    order = [name for name in ("dataset", *further, *columns) if name in frame]
    return frame[order].rename(columns=names)


def csv(frame: pd.DataFrame) -> str:
    """A line per row of a long form."""
    return as_records(frame).to_csv(index=False, lineterminator="\n")


def json(frame: pd.DataFrame) -> str:
    """A list of an object per row of a long form."""
    return as_records(frame).to_json(orient="records", indent=1) + "\n"


def markdown(tables: dict[str, WideTable], about: Sequence[str] = ()) -> str:
    """For each a heading, its cells and what can be told apart in it.

    Sentences about all of them come first.
    """

    def plain(text: str) -> str:
        return re.sub(r"([\\`*_\[\]<|~&$])", r"\\\1", text)

    def line(row: list[str]) -> str:
        return f"| {' | '.join(map(plain, row))} |"

    parts = [f"{plain(sentence)}\n" for sentence in about]
    for title, table in tables.items():
        frame = cells(table)
        rule = "|---" * len(frame.columns) + "|"
        lines = [line([*frame.columns]), rule, *map(line, frame.to_numpy().tolist())]
        note = plain(printable(table.ties.note))
        heading = f"## {plain(printable(title))}"
        parts.append("\n".join([heading, "", *lines, "", note, ""]))
    return "\n".join(parts)


def html(tables: dict[str, WideTable], about: Sequence[str] = ()) -> str:
    """As `markdown`, a page."""
    parts = [f"<p>{escape(sentence)}</p>" for sentence in about]
    for title, table in tables.items():
        rows = cells(table).to_html(index=False, border=0, justify="left")
        note = escape(printable(table.ties.note))
        parts.append(f"<h2>{escape(printable(title))}</h2>\n{rows}\n<p>{note}</p>")
    return PAGE.format("\n".join(parts))
