"""What others have published: rows of a CSV file, to stand below measured ones.

A file has a column `method` and, in percent, one for each column of a table that it has
figures for: datasets, or tests of the few-shot task. The columns of FACTS, all of which
may be missing, say where a row is from and by which protocol it came about; a row of
few shots says in DATASET, SHOTS and CLASSES which tables it belongs to.
"""

import csv
import io
from pathlib import Path

import numpy as np
import pandas as pd

from domainbed.lib.errors import InputError
from domainbed.lib.texts import read_text
from domainbed.tables.frames import AVERAGE, ROW, mean_of

FEW_SHOT = DATASET, SHOTS, CLASSES = ("dataset", "shots", "classes")
# What of the protocol a row tells, and how a table says it.
PROTOCOL = {
    "protocol": "{}",
    "test_share": "tested on {} %",
    "selection": "selection: {}",
    "steps": "steps: {}",
    "weights": "weights: {}",
    "template": "template: {}",
    "note": "{}",
}
FACTS = ("method", "backbone", "source", "table", *PROTOCOL, "code", "tag")


def read(file: str | Path) -> pd.DataFrame:
    """The file's rows, all as text, each of FACTS a column; InputError if it is none.

    `source` comes with its table, `protocol` with all that the row tells of it.
    """
    try:
        text = read_text(file)
        cells = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
        header, *lines = [*filter(None, cells)] or [[]]
        if not header:
            raise InputError("it is empty.")
    except (InputError, csv.Error) as error:
        raise InputError(f"--baseline {file} cannot be read: {error}") from error
    if twice := [name for name in header if header.count(name) > 1]:
        raise InputError(f"--baseline {file} has two columns {twice[0]!r}.")
    if odd := [line for line in lines if len(line) != len(header)]:
        raise InputError(
            f"--baseline {file} has a row of {len(odd[0])} cells below {len(header)} "
            f"columns: {','.join(odd[0])}."
        )
    rows = pd.DataFrame(lines, columns=header, dtype=str)
    if "method" not in rows:
        raise InputError(f"--baseline {file} has no column 'method'.")
    rows = rows.assign(**{name: "" for name in FACTS if name not in rows})

    def told(row: pd.Series) -> str:
        return "; ".join(
            form.format(row[name]) for name, form in PROTOCOL.items() if row[name]
        )

    places = (filter(None, pair) for pair in zip(rows.source, rows.table, strict=True))
    return rows.assign(
        source=[*map(", ".join, places)],
        protocol=[told(row) for _, row in rows.iterrows()],
    )


def figures_in(rows: pd.DataFrame) -> list[str]:
    """The columns that hold figures."""
    return [name for name in rows if name not in (*FACTS, *FEW_SHOT, AVERAGE)]


def published(file: str | Path, dataset_names: list[str]) -> pd.DataFrame:
    """A file's rows on those datasets, in the long form of `frames`.

    InputError if it has none. Its Avg counts if it is over the same datasets.
    """
    rows = read(file)
    theirs = figures_in(rows)
    names = [name for name in dataset_names if name in theirs]
    if not names:
        raise InputError(
            f"--baseline {file} has no figures for {', '.join(dataset_names)}; its "
            f"datasets are {', '.join(theirs) or 'none'}."
        )
    figures = pd.DataFrame({name: percents(rows, name, file) for name in names})
    if 1 < len(names) == len(dataset_names):
        figures[AVERAGE] = figures.apply(mean_of, axis=1)
        if {*theirs} == {*names} and AVERAGE in rows:
            figures[AVERAGE] = percents(rows, AVERAGE, file)
    frames = [
        pd.DataFrame(
            {
                "dataset": name,
                "algorithm": rows["method"],
                "environment": AVERAGE,
                "mean": figures[name],
                "err": np.nan,
                "n": 0,
                "selection": rows["selection"],
                "source": rows["source"],
                "protocol": rows["protocol"],
                "digest": "",
            }
        )
        for name in figures
    ]
    frame = pd.concat(frames).sort_index(kind="stable")  # as the file has them
    return frame.dropna(subset="mean").drop_duplicates(["dataset", *ROW])


def percents(rows: pd.DataFrame, column: str, file: str | Path) -> pd.Series:
    """A column's figures, NaN where it has none; InputError for what is no percent."""
    texts = rows[column].str.strip()
    figures = pd.to_numeric(texts, errors="coerce")
    wrong = texts[(texts != "") & ~figures.between(0, 100)]
    if len(wrong):
        raise InputError(
            f"--baseline {file} has {wrong.iloc[0]!r} in column {column}; figures are "
            "percents, 0 to 100."
        )
    return figures


def chosen_as(rows: pd.DataFrame, name: str, others: list[str]) -> pd.DataFrame:
    """A long form's rows but those that another method of model selection chose."""
    return rows[(rows["selection"] == name) | ~rows["selection"].isin(others)]


def few_shots(file: str | Path) -> pd.DataFrame:
    """A file's rows of few shots, figures as numbers; InputError if it has none."""
    rows = read(file)
    if missing := [name for name in FEW_SHOT if name not in rows]:
        raise InputError(
            f"--baseline {file} has no column {missing[0]!r}, which rows of few shots "
            "need; few_shot_vit_b16 ships with the package."
        )
    return rows.assign(
        **{name: percents(rows, name, file) for name in figures_in(rows)}
    )


def of_block(
    rows: pd.DataFrame, dataset_names: list[str], shots: int, classes: str
) -> pd.DataFrame:
    """The rows over exactly these datasets, with so many shots of those classes."""
    over = rows[DATASET].map(lambda names: {*names.split()} == {*dataset_names})
    fits = rows[SHOTS].isin(["", str(shots)]) & rows[CLASSES].isin(["", classes])
    return rows[over & fits]
