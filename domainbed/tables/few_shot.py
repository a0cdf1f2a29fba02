"""Tables of few-shot runs: a block for each number of shots, classes and source.

The harmonic mean H of base and new accuracy is of their means over trials, in the
averages of the averaged ones: https://arxiv.org/abs/2203.05557. Of transfer the targets
are averaged, not the own test.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pandas as pd

from domainbed.lib import misc
from domainbed.model_selection import SelectionMethod
from domainbed.tables.few_shot_records import (
    BASE,
    BLOCK,
    NEW,
    TARGET,
    TEST,
    in_table_order,
    title_of,
)
from domainbed.tables.frames import (
    AVERAGE,
    AVERAGES,
    DIFFERENCES,
    MEASURED,
    ROW,
    less,
    mean_of,
    pivoted,
    summary,
)
from domainbed.tables.protocol import AS_PUBLISHED, REMARK, Apart, Rows, unlike
from domainbed.tables.published import of_block

PARTS = ("mean", "err", "n")  # of a wide form
H, OF_TARGETS = "H", "Avg of targets"
HALVES = (BASE, NEW)
# What the mean over all tests of a kind is called.
OVER = {TEST: AVERAGE, BASE: BASE, NEW: NEW, TARGET: OF_TARGETS}
ABOUT = (
    "Few-shot accuracy in percent, with DomainBed's standard error over trials (papers "
    "print the standard deviation)."
)


class Table(NamedTuple):
    """A wide form (see `frames`) of a dataset or of AVERAGES, and its accuracies.

    `rows` are the protocols of its rows on each dataset, `less` the same wide form of
    differences to the reference.
    """

    block: dict[str, Any]
    dataset: str
    form: pd.DataFrame
    accs: pd.DataFrame
    rows: Rows
    reference: str | None = None
    less: pd.DataFrame | None = None

    @property
    def title(self) -> str:
        return title_of((*self.block.values(), self.dataset))

    @property
    def apart(self) -> Apart:
        """The rows that are not ranked with the others."""
        return apart(self.rows, self.accs)

    @property
    def digests(self) -> dict[str, str]:
        """{row: its protocol's}; over several datasets that of all their digests."""
        own = {
            name: [rows[name].digest for rows in self.rows.values() if name in rows]
            for name in self.accs["algorithm"].unique()
        }
        return {
            name: each[0] if len(self.rows) == 1 else misc.digest(each)
            for name, each in own.items()
        }

    @property
    def others(self) -> pd.DataFrame:
        """Of `less` the measured rows but the reference's own; none if it is None."""
        if self.less is None:
            return self.form[:0]
        names = self.less.index.get_level_values("algorithm")
        measured = self.less.index.get_level_values("source") == MEASURED
        return self.less[measured & (names != self.reference)]


def about(accs: pd.DataFrame) -> list[str]:
    """Sentences that say how to read the tables of these accuracies."""
    marked = accs["algorithm"].str.endswith(AS_PUBLISHED).any()
    return [ABOUT, REMARK] if marked else [ABOUT]


def apart(rows: Rows, accs: pd.DataFrame) -> Apart:
    """Rows of these accuracies that are not ranked; labels have AS_PUBLISHED already.

    `rows` are of each place that the table is over.
    """
    found = unlike(rows, [*rows], in_table_order(accs["algorithm"]))
    marks = {
        name: mark
        for name, mark in found.marks.items()
        if not name.endswith(AS_PUBLISHED)
    }
    return found._replace(marks=marks)


def tables(
    accs: pd.DataFrame,
    rows: Rows,
    theirs: pd.DataFrame | None = None,
    reference: str | None = None,
) -> Iterator[Table]:
    """Every block's table of each dataset and, of several, of their averages.

    `rows` are as `protocols` gives them. Published rows stand below those that they are
    over the same datasets with.
    """
    for values, of_values in accs.groupby(BLOCK):
        block = dict(zip(BLOCK, values, strict=True))
        labels = [*dict.fromkeys(of_values["algorithm"])]
        less_it = differences(of_values, labels, reference)
        for dataset, own_form in wide_forms(of_values, labels).items():
            own = of_values
            if dataset != AVERAGES:
                own = of_values[of_values["dataset"] == dataset]
            names = [*dict.fromkeys(own["dataset"])]
            form = with_published(own_form, theirs, names, block)
            gaps = less_it.get(dataset)
            yield Table(
                block,
                dataset,
                form,
                own,
                {name: rows[(*values, name)] for name in names},
                reference,
                None if gaps is None else gaps.reindex_like(form),
            )


def wide_forms(accs: pd.DataFrame, labels: list[str]) -> dict[str, pd.DataFrame]:
    """A wide form of each dataset and, of several, of their AVERAGES."""
    rows = [(MEASURED, "", label) for label in labels]
    forms = {
        dataset: dataset_form(own, rows)
        for dataset, own in accs.groupby("dataset", sort=False)
    }
    return forms | ({AVERAGES: averages_form(forms)} if len(forms) > 1 else {})


def differences(
    accs: pd.DataFrame, labels: list[str], reference: str | None
) -> dict[str, pd.DataFrame]:
    """The wide forms of differences trial by trial; H's is that between both H.

    There is none where the reference lacks a test.
    """
    gaps = less(accs, reference)
    n_tests, known = (
        frame.groupby("dataset")["test_env"].nunique() for frame in (accs, gaps)
    )
    whole = n_tests.index[known.reindex(n_tests.index) == n_tests]
    gaps = gaps[gaps["dataset"].isin(whole)]
    forms = wide_forms(gaps, labels)
    if len(whole) < len(n_tests):
        forms.pop(AVERAGES, None)
    if with_both := [name for name, form in forms.items() if H in form["mean"]]:
        theirs = gaps["acc_of_reference"]
        own, other = (
            wide_forms(gaps.assign(acc=values), labels)
            for values in (gaps["acc"] + theirs, theirs)
        )
        for name in with_both:
            forms[name]["mean", H] = own[name]["mean", H] - other[name]["mean", H]
    return forms


def dataset_form(accs: pd.DataFrame, rows: list[tuple]) -> pd.DataFrame:
    """A wide form of one dataset: each test, then its kinds' means, then H."""
    kinds = over_tests(accs)
    both = accs if kinds.empty else pd.concat([accs, kinds])
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

    What is over several datasets has the dataset Avg. Of tables with differences, these
    stand beside.
    """
    longs = []
    for table in found:
        form = table.form
        if table.less is not None:
            gaps = table.less.rename(columns=DIFFERENCES, level=0)
            form = pd.concat([form, gaps[[*DIFFERENCES.values()]]], axis=1)
        long = form.stack(level=1, future_stack=True).rename_axis([*ROW, "environment"])
        long = long.reset_index().dropna(how="all", subset=["mean", "n"])
        name = table.dataset
        if name == AVERAGES:
            name = AVERAGE
            long = long[~long["environment"].isin(table.accs["dataset"])]
        measured = long["source"] == MEASURED
        facts = {
            "selection": measured.map({True: method.name, False: ""}),
            "digest": long["algorithm"].map(table.digests).where(measured, ""),
        }
        longs.append(long.assign(dataset=name, **facts, **table.block))
    frame = pd.concat(longs, ignore_index=True)
    return frame.astype({"err": float}).assign(n=frame["n"].fillna(0).astype(int))
