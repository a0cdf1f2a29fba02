"""The board: measured cells, each with what it takes to measure it again.

A cell is a method's average over a dataset's domains, with one decimal as in a table,
and its standard error over trials.
"""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from domainbed.lib import misc, reporting
from domainbed.lib.errors import InputError
from domainbed.lib.texts import read_text
from domainbed.model_selection import SelectionMethod
from domainbed.tables import frames, protocol
from domainbed.tables.protocol import Made, Runs


class Cell(NamedTuple):
    """A row of the board's file; all are texts, as they stand there."""

    dataset: str
    method: str
    selection: str
    mean: str
    error: str
    trials: str
    protocol: str  # the digest of its own runs'
    command: str  # of which DATA_DIR and OUT are places
    commit: str
    made_with: str

    @property
    def name(self) -> str:
        return f"{self.dataset}/{self.method}"

    @property
    def figures(self) -> str:
        return f"{self.mean} +/- {self.error} over {self.trials} trials"


def measured(
    runs: Runs, made: Made, method: type[SelectionMethod], command: str
) -> Cell:
    """The cell of one dataset and one algorithm's runs.

    InputError if there is none, or if the runs are of several commits or machines.
    """
    args = runs[0][1][0]["args"]
    what = f"{args['algorithm']} on {args['dataset']}"
    facts = [made.get(folder) or {} for folder, _ in runs]
    versions = f"torch {one(facts, 'torch version', what)}"
    accs = frames.accuracies(reporting.records_of(runs), method)
    average = frames.averages(accs)
    if len(average) != 1:
        raise InputError(f"{what}: no trial has all that {method.name} needs.")
    (row,) = average.itertuples()
    rows = protocol.of_rows(runs, made)
    return Cell(
        dataset=args["dataset"],
        method=args["algorithm"],
        selection=method.name,
        mean=f"{row.mean:.1f}",
        error=f"{row.err:.1f}",
        trials=str(row.n),
        protocol=rows[args["dataset"]][args["algorithm"]].digest,
        command=command,
        commit=one(facts, "git state", what),
        made_with=f"{versions}, {one(facts, 'device', what)}",
    )


def one(facts: list[dict[str, str]], name: str, what: str) -> str:
    """What all runs have of that name; InputError if they differ."""
    values = {own.get(name, "") for own in facts}
    if len(values) > 1:
        listed = ", ".join(sorted(value or "not known" for value in values))
        raise InputError(f"{what}: its runs differ in {name} ({listed}).")
    return values.pop()


def read(path: Path) -> list[Cell]:
    """The file's cells, none of a file that is not there yet."""
    if not path.exists():
        return []
    try:
        rows = [*csv.reader(io.StringIO(read_text(path), newline=""))]
    except csv.Error as error:
        raise InputError(f"the board {path} cannot be read: {error}.") from error
    if not rows or tuple(rows[0]) != Cell._fields:
        raise InputError(
            f"the board {path} must begin with the columns {','.join(Cell._fields)}."
        )
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(Cell._fields):
            raise InputError(
                f"the board {path} has {len(row)} columns in row {number}, not "
                f"{len(Cell._fields)}."
            )
    return [Cell(*row) for row in rows[1:]]


def write(path: Path, cells: Iterable[Cell]) -> None:
    """The file of these cells, whole or as it was."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([Cell._fields, *cells])
    misc.write_whole(path, out.getvalue())
