"""Frames of `tables` as text: CSV, JSON, Markdown, HTML. Names in them stay data."""

import re
from html import escape

import pandas as pd

from domainbed.lib.reporting import printable
from domainbed.tables.frames import MEASURED

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


def texts(form: pd.DataFrame, column: str, sign: str = "±") -> list[str]:
    """A column of a wide form: 60.1 ± 0.3, without an error 60.1.

    X where nothing was measured, nothing where nothing was published.
    """

    def text(source: str, mean: float, err: float, n: float) -> str:
        if pd.isna(mean) and not n > 0:
            return "X" if source == MEASURED else ""
        return f"{mean:.1f}" if pd.isna(err) else f"{mean:.1f} {sign} {err:.1f}"

    figures = form.xs(column, axis=1, level=1).itertuples(index=False)
    sources = form.index.get_level_values("source")
    return [
        text(*row) for row in zip(sources, *zip(*figures, strict=True), strict=True)
    ]


def cells(form: pd.DataFrame) -> pd.DataFrame:
    """A wide form as its reader sees it; published rows bring a column Source."""
    frame = pd.DataFrame(
        {"Algorithm": form.index.get_level_values("algorithm").map(printable)}
        | {printable(column): texts(form, column) for column in form["mean"].columns}
    )
    if {*form.index.get_level_values("source")} - {MEASURED}:
        of = ("; ".join(filter(None, row[:2])) for row in form.index)
        frame["Source"] = [printable(text) for text in of]
    return frame


def as_records(frame: pd.DataFrame) -> pd.DataFrame:
    """A long form with the columns' names in full."""
    names = {"err": "standard_error", "n": "trials"}
    columns = ["dataset", "algorithm", "environment", "selection"]
    columns += ["mean", "err", "n", "source", "protocol"]
    return frame[columns].rename(columns=names)


def csv(frame: pd.DataFrame) -> str:
    """A line per row of a long form."""
    return as_records(frame).to_csv(index=False, lineterminator="\n")


def json(frame: pd.DataFrame) -> str:
    """A list of an object per row of a long form."""
    return as_records(frame).to_json(orient="records", indent=1) + "\n"


def markdown(forms: dict[str, pd.DataFrame]) -> str:
    """A heading and a table for each wide form."""

    def plain(text: str) -> str:
        return re.sub(r"([\\`*_\[\]<|~&$])", r"\\\1", text)

    def line(row: list[str]) -> str:
        return f"| {' | '.join(map(plain, row))} |"

    parts = []
    for title, form in forms.items():
        frame = cells(form)
        rule = "|---" * len(frame.columns) + "|"
        lines = [line([*frame.columns]), rule, *map(line, frame.to_numpy().tolist())]
        parts.append("\n".join([f"## {plain(printable(title))}", "", *lines, ""]))
    return "\n".join(parts)


def html(forms: dict[str, pd.DataFrame]) -> str:
    """A page with a heading and a table for each wide form."""
    parts = []
    for title, form in forms.items():
        table = cells(form).to_html(index=False, border=0, justify="left")
        parts.append(f"<h2>{escape(printable(title))}</h2>\n{table}")
    return PAGE.format("\n".join(parts))
