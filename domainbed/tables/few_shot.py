"""Tables of few-shot runs: a block for each number of shots, classes and source.

Tested is a run's last epoch; of several draws the one that is best on the validation
shots. The harmonic mean H of base and new accuracy is of their means over trials, in
the averages of the averaged ones, as papers have it: https://arxiv.org/abs/2203.05557
"""

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from domainbed import algorithms, datasets
from domainbed.datasets_few_shot import names_of_tests
from domainbed.lib.query import Q
from domainbed.model_selection import LastEpochSelectionMethod
from domainbed.tables.frames import AVERAGE, in_order, mean_of
from domainbed.tables.protocol import AS_PUBLISHED, REMARK
from domainbed.tables.published import of_block
from domainbed.tables.text import format_mean, print_table, with_average

BLOCK = ("classes", "shots", "source", "transfer_to")
ABOUT = (
    "Few-shot accuracy of the last epoch, in percent, +/- DomainBed's standard error "
    "over trials (papers print the standard deviation)."
)
H = "H"
Accuracies = dict[tuple[str, str], dict[str, list[float]]]  # (dataset, row) -> test


def is_few_shot(record: dict[str, Any]) -> bool:
    return record["args"].get("task") == "few_shot"


def row_of(record: dict[str, Any]) -> str:
    """The label of the record's row."""
    marked = record["hparams"].get("as_published", False)
    return record["args"]["algorithm"] + (AS_PUBLISHED if marked else "")


def harmonic_mean(base: float, new: float) -> float:
    return 2 * base * new / (base + new) if base + new else 0.0


def accuracies(records: Q) -> Accuracies:
    """Of each dataset and row, by the tests' names, an accuracy for each trial."""
    found: Accuracies = {}
    names = ("dataset", "trial_seed")
    runs = records.group(lambda r: (row_of(r), *(r["args"][n] for n in names)))
    for (row, dataset, _), own in runs:
        best = LastEpochSelectionMethod.hparams_accs(own)
        if not best:
            continue
        _, chosen = best[0]
        record = chosen.sorted("step")[-1]
        tests = names_of_tests(dataset, record["args"]["classes"])
        tests += names_of_targets(record)
        for env, test in enumerate(tests, start=1):
            cell = found.setdefault((dataset, row), {}).setdefault(test, [])
            cell.append(record[f"env{env}_in_acc"])
    return found


def names_of_targets(record: dict[str, Any]) -> list[str]:
    return [
        f"{target} {test}" if len(tests) > 1 else target
        for target in record["args"].get("transfer_to") or ()
        for tests in [names_of_tests(target, "all")]
        for test in tests
    ]


def base_and_new(tests: Iterable[str]) -> bool:
    return {*tests} >= {"base", "new"}


def cells_of(own: dict[str, list[float]], tests: list[str], latex: bool) -> list:
    """A row: each test over the trials, then H of base and new or the mean."""
    cells = [format_mean(own.get(test, []), latex) for test in tests]
    if not base_and_new(tests):
        return with_average(cells)
    means = dict(zip(tests, (mean for mean, _, _ in cells), strict=True))
    whole = None not in (means["base"], means["new"])
    last = harmonic_mean(means["base"], means["new"]) if whole else "X"
    return [*(text for *_, text in cells), last]


def averages_of(
    accs: Accuracies, row: str, names: list[str], latex: bool
) -> list[str | float]:
    """A row: each dataset's mean over its tests, over the trials, then their mean."""
    cells = []
    for dataset in names:
        trials = zip(*accs.get((dataset, row), {}).values(), strict=False)
        cells.append(format_mean([mean_of(trial) for trial in trials], latex))
    return with_average(cells)


def base_to_new_averages(
    accs: Accuracies, row: str, names: list[str]
) -> list[str | float]:
    """A row: base and new accuracy averaged over datasets, and H of the two."""
    means = [
        [100 * mean_of(accs[d, row][kind]) for d in names if (d, row) in accs]
        for kind in ("base", "new")
    ]
    if any(len(own) < len(names) for own in means):
        return ["X"] * 3
    base, new = map(mean_of, means)
    return [base, new, harmonic_mean(base, new)]


def print_few_shot_tables(
    records: Q, latex: bool, published: pd.DataFrame | None = None
) -> int:
    """Print every block's table for each dataset, and its averages.

    Published rows stand below; returned is how often one did.
    """
    print(f"{'% ' if latex else ''}{ABOUT}")
    if any(row_of(record).endswith(AS_PUBLISHED) for record in records):
        print(f"{'% ' if latex else ''}{REMARK}")

    def block_of(record: dict[str, Any]) -> tuple:
        values = (record["args"].get(name) for name in BLOCK)
        return tuple(" ".join(v) if isinstance(v, list) else v for v in values)

    blocks = records.group(block_of)
    order = sorted(blocks, key=lambda block: [str(v).zfill(9) for v in block[0]])
    return sum(print_block(own, block, latex, published) for block, own in order)


def print_block(
    records: Q, block: tuple, latex: bool, published: pd.DataFrame | None
) -> int:
    """As above, of one block."""
    classes, shots, source, _ = block
    about = f"{shots} shots, {classes} classes" + (f", from {source}" if source else "")
    accs = accuracies(records)
    known = algorithms.ALGORITHMS
    known = [name + mark for name in known for mark in ("", AS_PUBLISHED)]
    rows = in_order((row for _, row in accs), known)
    present = in_order((dataset for dataset, _ in accs), datasets.of_task("few_shot"))
    shown = 0

    def show(title: str, table: list, names: list[str], columns: list[str]) -> None:
        nonlocal shown
        theirs, labels = [], []
        if published is not None:
            own = of_block(published, names, shots, classes)
            theirs, labels = published_rows(own, columns)
        shown += len(theirs)
        rule = [None] if theirs else []
        print_table(
            table + rule + theirs,
            f"{title}, {about}",
            rows + [""] * len(rule) + labels,
            ["Algorithm", *columns],
            colwidth=20,
            latex=latex,
        )

    for dataset in present:
        own = {row: accs.get((dataset, row), {}) for row in rows}
        tests = [*dict.fromkeys(test for cells in own.values() for test in cells)]
        table = [cells_of(own[row], tests, latex) for row in rows]
        last = H if base_and_new(tests) else AVERAGE
        show(f"Dataset: {dataset}", table, [dataset], [*tests, last])
    halves = all(base_and_new(tests) for tests in accs.values())
    columns = ["base", "new", H] if halves else [*present, AVERAGE]
    table = [
        base_to_new_averages(accs, row, present)
        if halves
        else averages_of(accs, row, present, latex)
        for row in rows
    ]
    show("Averages", table, present, columns)
    return shown


def published_rows(
    rows: pd.DataFrame, columns: list[str]
) -> tuple[list[list[str | float]], list[str]]:
    """(cells, labels) of the rows that have figures in those columns, the last of
    which is H of base and new or the mean of the others; "" for what they lack.
    """
    table, labels = [], []
    figures = rows.reindex(columns=columns[:-1]).astype(float)
    for name, own in zip(rows["method"], figures.to_dict("records"), strict=True):
        if all(map(math.isnan, own.values())):
            continue
        whole = not any(map(math.isnan, own.values()))
        last: str | float = mean_of(own.values()) if whole else ""
        if columns[-1] == H:
            last = harmonic_mean(own["base"], own["new"])
            last = "" if math.isnan(last) else last
        table.append([*("" if math.isnan(v) else v for v in own.values()), last])
        labels.append(name)
    return table, labels
