"""Tables of few-shot runs: a block for each number of shots, classes and source.

The harmonic mean H of base and new accuracy is of their means over trials, in the
averages of the averaged ones: https://arxiv.org/abs/2203.05557. Of transfer the targets
are averaged, not the own test.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pandas as pd

from domainbed import datasets
from domainbed.datasets_few_shot import names_of_targets, names_of_tests
from domainbed.lib.query import Q
from domainbed.model_selection import (
    IIDAccuracySelectionMethod,
    LastEpochSelectionMethod,
    SelectionMethod,
    environments,
)
from domainbed.names import algorithm_names
from domainbed.tables.frames import (
    AVERAGE,
    AVERAGES,
    MEASURED,
    ROW,
    in_order,
    mean_of,
    pivoted,
    summary,
)
from domainbed.tables.protocol import AS_PUBLISHED, REMARK, TOGETHER, Apart
from domainbed.tables.published import of_block

BLOCK = ["classes", "shots", "drawn_from", "transfer_to"]  # what tells tables apart
METHODS = (LastEpochSelectionMethod, IIDAccuracySelectionMethod)  # the protocol's first
PARTS = ("mean", "err", "n")  # of a wide form
H, OF_TARGETS = "H", "Avg of targets"
HALVES = BASE, NEW = "base", "new"
TEST, TARGET = "test", "target"
# What the mean over all tests of a kind is called.
OVER = {TEST: AVERAGE, BASE: BASE, NEW: NEW, TARGET: OF_TARGETS}
ABOUT = (
    "Few-shot accuracy in percent, with DomainBed's standard error over trials (papers "
    "print the standard deviation)."
)


class Table(NamedTuple):
    """A wide form (see `frames`) of a dataset or of AVERAGES, and its accuracies."""

    block: dict[str, Any]
    dataset: str
    form: pd.DataFrame
    accs: pd.DataFrame

    @property
    def title(self) -> str:
        source = self.block["drawn_from"]
        shots = "shot" if self.block["shots"] == 1 else "shots"
        about = f"{self.block['shots']} {shots}, {self.block['classes']} classes"
        return f"{self.dataset}, {about}" + (f", from {source}" if source else "")


def is_few_shot(record: dict[str, Any]) -> bool:
    return record["args"].get("task") == "few_shot"


def row_of(record: dict[str, Any]) -> str:
    """The label of the record's row."""
    marked = record["hparams"].get("as_published", False)
    return record["args"]["algorithm"] + (AS_PUBLISHED if marked else "")


def in_table_order(labels: Iterable[str]) -> list[str]:
    """Each label of a row once."""
    names, marks = algorithm_names(), ("", AS_PUBLISHED)
    return in_order(labels, [name + mark for name in names for mark in marks])


def about(accs: pd.DataFrame) -> list[str]:
    """Sentences that say how to read the tables of these accuracies."""
    marked = accs["algorithm"].str.endswith(AS_PUBLISHED).any()
    return [ABOUT, REMARK] if marked else [ABOUT]


def apart(accs: pd.DataFrame) -> Apart:
    """Rows that chose on test data are not ranked with others; their labels say it."""
    names = {*accs["algorithm"]}
    marked = frozenset(name for name in names if name.endswith(AS_PUBLISHED))
    if not marked or marked == names:
        return TOGETHER
    return Apart(marked, {}, f"Rows with {AS_PUBLISHED.strip()} are not ranked.")


def accuracies(records: Q, method: type[SelectionMethod]) -> pd.DataFrame:
    """What the method chose: a row per block, dataset, row, test and trial.

    Columns BLOCK, dataset, algorithm (the row's label), test_env, environment, kind
    (see OVER), trial_seed, acc; in the order of the tables.
    """
    rows = []
    for (*block, dataset, label, trial), own in records.group(cell_of):
        draws = method.hparams_accs(own.map(of_one_test))
        if draws:
            _, record = method.chosen(draws[0][1])
            for env, (name, kind) in tests_of(record).items():
                acc = float(record[f"env{env}_in_acc"])
                rows.append((*block, dataset, label, env, name, kind, trial, acc))
    columns = ["dataset", "algorithm", "test_env", "environment", "kind", "trial_seed"]
    frame = pd.DataFrame(rows, columns=[*BLOCK, *columns, "acc"])
    places = {
        "dataset": in_order(frame["dataset"], datasets.of_task("few_shot")),
        "algorithm": in_table_order(frame["algorithm"]),
    }
    return frame.sort_values(
        [*BLOCK, *places, "test_env", "trial_seed"],
        key=lambda c: c.map(places[c.name].index) if c.name in places else c,
        ignore_index=True,
    )


def cell_of(record: dict[str, Any]) -> tuple:
    """Its values of BLOCK, dataset, row and trial: where one draw is chosen."""
    args = record["args"]
    source, targets = args.get("source") or "", args.get("transfer_to") or ()
    block = (args.get("classes", "all"), args.get("shots", 0))
    block += (source, " ".join(targets))
    return *block, args["dataset"], row_of(record), args["trial_seed"]


def of_one_test(record: dict[str, Any]) -> dict[str, Any]:
    """The record as one of its first test alone: what is chosen, is for all."""
    args = record["args"]
    return record | {"args": args | {"test_envs": args["test_envs"][:1]}}


def tests_of(record: dict[str, Any]) -> dict[int, tuple[str, str]]:
    """{environment: (name, kind)} of the tests that the record has accuracies of."""
    args = record["args"]
    own, targets = names_of(record)
    halves = args.get("classes") == BASE
    kinds = [(name, name.split(" ")[-1] if halves else TEST) for name in own]
    kinds += [(name, TARGET) for name in targets]
    return {
        env: pair
        for env, pair in enumerate(kinds, start=1)
        if f"env{env}_in_acc" in record
    }


def names_of(record: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What the record's own tests are called, and those that it transfers to.

    A dataset of the user's own may lie elsewhere by now: its records know the names.
    Tests of one that is not registered here have numbers.
    """
    args = record["args"]
    try:
        targets = names_of_targets(args.get("transfer_to") or ())
        if "environments" in record:
            return record["environments"][1 : -len(targets) or None], targets
        return names_of_tests(args["dataset"], args.get("classes", "all")), targets
    except (OSError, ValueError):
        return [f"env{env}" for env in environments(record, "in") if env], []


def tables(accs: pd.DataFrame, theirs: pd.DataFrame | None = None) -> Iterator[Table]:
    """Every block's table of each dataset and, of several, of their averages.

    Published rows stand below those that they are over the same datasets with.
    """
    for values, of_values in accs.groupby(BLOCK):
        block = dict(zip(BLOCK, values, strict=True))
        rows = [(MEASURED, "", name) for name in dict.fromkeys(of_values["algorithm"])]
        forms = {}
        for dataset, own in of_values.groupby("dataset", sort=False):
            forms[dataset] = dataset_form(own, rows)
            form = with_published(forms[dataset], theirs, [dataset], block)
            yield Table(block, dataset, form, own)
        if len(forms) > 1:
            form = with_published(averages_form(forms), theirs, [*forms], block)
            yield Table(block, AVERAGES, form, of_values)


def dataset_form(accs: pd.DataFrame, rows: list[tuple]) -> pd.DataFrame:
    """A wide form of one dataset: each test, then its kinds' means, then H."""
    both = pd.concat([accs, over_tests(accs)])
    columns = [*dict.fromkeys(both["environment"])]
    columns += [H] if {*HALVES} <= {*columns} else []
    means = summary(both).assign(source=MEASURED, protocol="")
    return with_h(pivoted(means, "environment", columns, rows))


def over_tests(accs: pd.DataFrame) -> pd.DataFrame:
    """Each trial's means over the tests of a kind, as tests of their own.

    A trial that lacks one has none. Beside targets the own tests are not averaged.
    """
    needed = accs.groupby("kind")["environment"].nunique()
    left_out = {kind for kind in needed.index if needed[kind] == 1}
    left_out |= {TEST} if TARGET in needed else set()
    cells = accs.groupby(["dataset", "algorithm", "kind", "trial_seed"], sort=False)
    rows = [
        (dataset, algorithm, OVER[kind], trial, mean_of(own))
        for (dataset, algorithm, kind, trial), own in cells["acc"]
        if kind not in left_out and len(own) == needed[kind]
    ]
    columns = ["dataset", "algorithm", "environment", "trial_seed", "acc"]
    return pd.DataFrame(rows, columns=columns)


def averages_form(forms: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """A wide form over datasets: base, new and H; or a column for each, then Avg."""

    def over(part: str, column: str | None = None) -> pd.DataFrame:
        """A column of each dataset's form, by default the last."""
        return pd.DataFrame(
            {
                name: form[part, column or form["mean"].columns[-1]]
                for name, form in forms.items()
            }
        )

    if all(H in form["mean"] for form in forms.values()):
        cells = {("mean", k): over("mean", k).apply(mean_of, axis=1) for k in HALVES}
        cells |= {
            ("n", kind): over("n", kind).min(axis=1, skipna=False) for kind in HALVES
        }
        columns = [*HALVES, H]
    else:
        parts = {part: over(part) for part in PARTS}
        cells = {(part, name): own[name] for part, own in parts.items() for name in own}
        cells["mean", AVERAGE] = parts["mean"].apply(mean_of, axis=1)
        cells["n", AVERAGE] = parts["n"].min(axis=1, skipna=False)
        columns = [*forms, AVERAGE]
    whole = pd.MultiIndex.from_product([PARTS, columns])
    return with_h(pd.DataFrame(cells).reindex(columns=whole))


def with_h(form: pd.DataFrame) -> pd.DataFrame:
    """The wide form, its column H, if it has one, made of base and new."""
    if H in form["mean"]:
        base, new = form["mean", BASE], form["mean", NEW]
        h = 2 * base * new / (base + new)
        form["mean", H] = h.mask(base + new == 0, 0.0)
        form["n", H] = form["n"][[*HALVES]].min(axis=1, skipna=False)
    return form


def with_published(
    form: pd.DataFrame,
    theirs: pd.DataFrame | None,
    names: list[str],
    block: dict[str, Any],
) -> pd.DataFrame:
    """The wide form over these datasets and, below, the published rows over them."""
    if theirs is None:
        return form
    own = of_block(theirs, names, block["shots"], block["classes"])
    return pd.concat([form, published_form(own, [*form["mean"]])])


def published_form(rows: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """A wide form of the published rows that have figures in some of these columns.

    The last is H of base and new or the mean of the others, where these are whole.
    """
    figures = rows.reindex(columns=columns[:-1]).astype(float)
    own = rows[figures.notna().any(axis=1)]
    figures = figures.loc[own.index]
    figures[columns[-1]] = figures.apply(mean_of, axis=1)
    form = pd.concat({"mean": figures}, axis=1).reindex(
        columns=pd.MultiIndex.from_product([PARTS, columns])
    )
    form.index = pd.MultiIndex.from_frame(own[[*ROW[:2], "method"]], names=ROW)
    return with_h(form)


def long_form(found: Iterable[Table], method: type[SelectionMethod]) -> pd.DataFrame:
    """The cells of all tables, a row each, as `frames.long_form`, with BLOCK's columns.

    What is over several datasets has the dataset Avg.
    """
    longs = []
    for block, dataset, form, accs in found:
        long = form.stack(level=1, future_stack=True).rename_axis([*ROW, "environment"])
        long = long.reset_index().dropna(how="all", subset=["mean", "n"])
        if dataset == AVERAGES:
            long = long[~long["environment"].isin(accs["dataset"])]
        selection = long["source"].eq(MEASURED).map({True: method.name, False: ""})
        name = AVERAGE if dataset == AVERAGES else dataset
        longs.append(long.assign(dataset=name, selection=selection, **block))
    frame = pd.concat(longs, ignore_index=True)
    return frame.astype({"err": float}).assign(n=frame["n"].fillna(0).astype(int))
