"""What the report is put together from, and frames as the text of its tables."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup

from domainbed.tables.frames import as_shown
from domainbed.tables.protocol import TOGETHER, Apart

MOST_ROWS = 1000  # of a table
# What the page calls the columns of frames.
NAMES = {
    "algorithm": "method",
    "environment": "test domain",
    "trial_seed": "trial",
    "hparams_seed": "draw",
    "val": "validation %",
    "test": "test %",
    "error": "last words",
}


class Table(NamedTuple):
    """Cells as text; a column of numbers stands to the right."""

    columns: list[str]
    rows: list[list[str]]
    numeric: list[bool]
    note: str = ""


class Picture(NamedTuple):
    """An SVG, what to see in it, its numbers, and [(colour, name)] of its legend."""

    caption: str
    svg: Markup
    numbers: Table
    legend: Sequence[tuple[str, str]] = ()


class Cell(NamedTuple):
    """A mean, its standard error, and its rank in the column, 1 for the best."""

    text: str
    err: str
    rank: float


class Summary(NamedTuple):
    """The main table: (method, cells) in each row."""

    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    note: str


class Part(NamedTuple):
    """What stands under a heading, for one selection method or, with None, for all."""

    selection: str | None
    texts: Sequence[str] = ()
    summaries: Sequence[Summary] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


class Block(NamedTuple):
    title: str
    parts: list[Part]


def shown(value: Any) -> str:
    """A cell's text: a float, which is an accuracy, has one decimal; markup stays."""
    if pd.isna(value):
        return "–"
    if isinstance(value, float):
        return signed(f"{value:.1f}")
    return value if isinstance(value, Markup) else str(value)


def signed(number: str) -> str:
    """The number with a true minus sign, and none before zero."""
    is_zero = not number.strip("-0.")
    return number.lstrip("-") if is_zero else number.replace("-", "−")


def digits(values: pd.Series) -> pd.Series:
    """The numbers as text: three digits, or all before the point."""

    def text(value: float) -> str:
        if np.isnan(value):
            return "–"
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"

    return values.astype(float).map(text)


def table(frame: pd.DataFrame, **more: str) -> Table:
    """The frame's cells as text, its columns called by NAMES and `more`."""
    names = NAMES | more
    few = frame.head(MOST_ROWS)
    cells = [[*map(shown, few[column].tolist())] for column in few]
    note = ""
    if len(few) < len(frame):
        note = f"The first {len(few):,} of {len(frame):,} rows; results.jsonl has all."
    return Table(
        [names.get(column, str(column)) for column in frame],
        [list(row) for row in zip(*cells, strict=True)],
        [all(map(looks_numeric, column)) for column in cells],
        note,
    )


def looks_numeric(text: str) -> bool:
    try:
        float(text.replace(",", "").replace("−", "-"))
    except ValueError:
        return text == "–"
    return True


def plural(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def summary(mean: pd.DataFrame, err: pd.DataFrame, apart: Apart = TOGETHER) -> Summary:
    """The table of means, methods x columns; ranks where there are several methods.

    Methods of another protocol have none, and their marks.
    """
    ranked = mean[~mean.index.isin(apart.names)].map(as_shown)
    ranks = ranked.rank(ascending=False, method="min").reindex(mean.index)
    if len(ranked) < 3:
        ranks[:] = np.nan
    rows = [
        (
            name + apart.marks.get(name, ""),
            [
                Cell(shown(mean.at[name, c]), error(err.at[name, c]), ranks.at[name, c])
                for c in mean
            ],
        )
        for name in mean.index
    ]
    return Summary(
        [*mean.columns],
        rows,
        "Test accuracy in percent ± its standard error over trials. Bold is the "
        "highest in a column, underlined the second.",
    )


def differences(
    mean: pd.DataFrame, err: pd.DataFrame, apart: Apart, reference: str
) -> Summary:
    """As `summary`, of differences to a reference, which ranks nothing."""
    rows = [
        (
            name + apart.marks.get(name, ""),
            [
                Cell(plus(mean.at[name, c]), error(err.at[name, c]), np.nan)
                for c in mean
            ],
        )
        for name in mean.index
        if name != reference
    ]
    return Summary(
        [*mean.columns],
        rows,
        f"Difference to {reference} in points ± its standard error over trials, trial "
        "by trial.",
    )


def plus(value: float) -> str:
    """As `shown`, a gain with its sign."""
    text = shown(value)
    return f"+{text}" if value > 0 and text.strip("0.") else text


def error(value: float) -> str:
    """The text of a standard error, nothing where there is none."""
    return "" if np.isnan(value) else shown(value)
