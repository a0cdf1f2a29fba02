"""Frames: the accuracies of records and their means.

An accuracy is a share, 0 to 1; means and errors are in percent, as tables have them.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from domainbed import datasets, model_selection
from domainbed.lib import reporting
from domainbed.lib.errors import UnknownNameError
from domainbed.lib.paths import name_and_place
from domainbed.lib.query import Q
from domainbed.lib.texts import in_utf_8
from domainbed.model_selection import SelectionMethod
from domainbed.names import algorithm_names

AVERAGE = "Avg"  # of a dataset's environments, and of all datasets
AVERAGES = "Averages"  # the table by dataset
MEASURED = "this sweep"  # the source of what is not published
ROW = ["source", "protocol", "algorithm"]  # what tells the rows of a wide table apart
DIFFERENCES = {"mean": "difference", "err": "difference_error"}  # beside them in CSV


def mean_of(values: Iterable[float]) -> float:
    """The mean by an exact sum: the order of the values changes no digit of it."""
    values = [*values]
    return math.fsum(values) / len(values)


def error_of(values: Iterable[float]) -> float:
    """The standard error of the mean, from the population's deviation; as exact."""
    values = [*values]
    mean = mean_of(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values)) / len(values)


def means_of(groups: Any) -> pd.Series:
    """Of grouped accuracies, NaN where one is.

    Rounded far below an image's share: means that are equal are so to every digit.
    """
    return groups.agg(mean_of).round(12)


def as_shown(mean: float) -> float:
    """The number in a cell of one decimal: 0.1 of 0.15, of which `round` makes 0.2."""
    return float(f"{mean:.1f}")


def in_order(present: Iterable[str], known: list[str]) -> list[str]:
    """The names present, in the known order, the unknown ones after."""
    present = {*present}
    return [n for n in known if n in present] + sorted(present - {*known})


def environments(dataset: str, records: Iterable[dict] = ()) -> Sequence[str]:
    """The environments' names; none of a dataset that is not registered here.

    Of a folder of the user's own they are as its records say: it may lie elsewhere by
    now. Records that do not say it have numbers.
    """
    own = []
    if datasets.is_own(dataset):
        own = [record for record in records if record["args"]["dataset"] == dataset]
    for record in own:
        names = record.get("environments")
        if isinstance(names, list) and names and are_names(names):
            return names
    try:
        return [*map(in_utf_8, datasets.get_dataset_class(dataset).ENVIRONMENTS)]
    except (OSError, ValueError):  # also of names that are no path
        numbers = [
            i for record in own for i in model_selection.environments(record, "in")
        ]
        return [f"env{i}" for i in range(max(numbers, default=-1) + 1)]


def environment_name(names: Sequence[str], env: int) -> str:
    """The environment's name, by its number where names do not reach."""
    return names[env] if env < len(names) else f"env{env}"


def are_names(values: list) -> bool:
    """Whether they are texts, of which none is there twice."""
    return all(isinstance(v, str) for v in values) and len({*values}) == len(values)


def remember(records: Q) -> None:
    """Know the user's own datasets, which may be away, as the records know them."""
    for dataset in filter(datasets.is_own, records.select("args.dataset").unique()):
        if names := environments(dataset, records):
            datasets.remember(dataset, names)


def headings(names: list[str]) -> list[str]:
    """What a table calls datasets: an own one by the name that it was given, or by the
    last part of its place, if it is the only one so called.
    """

    def short_of(dataset: str) -> str:
        if not datasets.is_own(dataset):
            return dataset
        name, place = name_and_place(dataset.split(":", 1)[1])
        return name or Path(place).name

    short = [*map(short_of, names)]
    return [
        title if title and short.count(title) == 1 else name
        for title, name in zip(short, names, strict=True)
    ]


def accuracies(records: Q, method: type[SelectionMethod]) -> pd.DataFrame:
    """What the method chose: a row per (dataset, algorithm, test_env, trial_seed).

    Columns dataset, algorithm, test_env, environment, trial_seed, acc; in the order of
    the tables. Environments of a dataset that is not registered here are env0, env1...
    """
    groups = reporting.get_grouped_records(records)
    present = groups.select("dataset").unique()
    known = {dataset: environments(dataset, records) for dataset in present}
    rows = []
    for group in groups:
        dataset, env = group["dataset"], group["test_env"]
        names = known[dataset]
        acc = method.sweep_acc(group["records"])
        if acc is not None and (not names or env < len(names)):
            name = environment_name(names, env)
            facts = (group["algorithm"], env, name, group["trial_seed"], float(acc))
            rows.append((dataset, *facts))
    columns = ["dataset", "algorithm", "test_env", "environment", "trial_seed", "acc"]
    frame = pd.DataFrame(rows, columns=columns)
    return _in_table_order(frame.sort_values(["test_env", "trial_seed"]))


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns dataset, algorithm, environment, mean, err, n of `accuracies`' frame.

    err is the standard error over n trials, from the population's deviation.
    """
    keys = ["dataset", "algorithm", "environment"]
    groups = frame.groupby(keys, sort=False)["acc"]
    rows = [
        (*key, 100 * mean_of(accs), 100 * error_of(accs), len(accs))
        for key, accs in groups
    ]
    frame = pd.DataFrame(rows, columns=[*keys, "mean", "err", "n"])
    return frame.astype({"mean": float, "err": float, "n": int})  # also of no rows


def averages(frame: pd.DataFrame) -> pd.DataFrame:
    """As `summary`, over the trials' means of all environments, which are `Avg`."""
    return summary(trial_means(frame).assign(environment=AVERAGE))


def trial_means(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns dataset, algorithm, trial_seed, acc: means of all environments.

    A trial that lacks an environment has no mean.
    """
    own = frame.groupby("dataset")["environment"].nunique()
    needed = {name: len(environments(name)) or n for name, n in own.items()}
    trials = frame.groupby(["dataset", "algorithm", "trial_seed"], sort=False)["acc"]
    rows = [
        (*key, mean_of(accs)) for key, accs in trials if len(accs) == needed[key[0]]
    ]
    return pd.DataFrame(rows, columns=["dataset", "algorithm", "trial_seed", "acc"])


def check_reference(name: str | None, present: Iterable[str]) -> None:
    """InputError unless it is None or one of those that are present."""
    if name is not None and name not in present:
        raise UnknownNameError("algorithm as --reference", name, present)


def less(
    accs: pd.DataFrame, reference: str | None, further: Sequence[str] = ()
) -> pd.DataFrame:
    """The frame of `accuracies` less what the reference has in the same trial, and in
    the same of the columns `further`.

    Trials that the reference lacks are left out.
    """
    keys = [*further, "dataset", "test_env", "trial_seed"]
    theirs = accs.loc[accs["algorithm"] == reference, [*keys, "acc"]]
    own = accs.merge(theirs, on=keys, suffixes=("", "_of_reference"))
    return own.assign(acc=own["acc"] - own["acc_of_reference"])


def _in_table_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Sorted by dataset and algorithm as tables are, else in the order it has."""
    places = {
        "dataset": in_order(frame["dataset"], datasets.DATASETS),
        "algorithm": in_order(frame["algorithm"], algorithm_names()),
    }
    return frame.sort_values(
        [*places],
        key=lambda column: column.map(places[column.name].index),
        kind="stable",
        ignore_index=True,
    )


def long_form(accs: pd.DataFrame, method: type[SelectionMethod]) -> pd.DataFrame:
    """`summary` and `averages` of a method's choices, with `selection` and `source`."""
    both = _in_table_order(pd.concat([summary(accs), averages(accs)]))
    return both.assign(selection=method.name, source=MEASURED, protocol="", digest="")


def wide_forms(frame: pd.DataFrame, names: list[str]) -> dict[str, pd.DataFrame]:
    """Tables of a long form: of each dataset by environment, then of Avg by dataset.

    A row per algorithm of `names`, then per published one. Under each of mean, err, n
    there is a column per environment or dataset, then Avg. With one dataset alone its
    table is all.
    """
    own = [(MEASURED, "", name) for name in names]
    present = frame["dataset"][frame["dataset"] != AVERAGE].unique().tolist()
    forms = {}
    for dataset in present:
        rows = frame[frame["dataset"] == dataset]
        seen = rows["environment"][rows["environment"] != AVERAGE].unique().tolist()
        columns = [*environments(dataset), *seen, AVERAGE]
        forms[dataset] = pivoted(rows, "environment", columns, own)
    if len(present) > 1:
        rows = frame[frame["environment"] == AVERAGE]
        form = pivoted(rows, "dataset", [*present, AVERAGE], own)
        whole = form["mean"][present].apply(mean_of, axis=1)
        form["mean", AVERAGE] = form["mean", AVERAGE].fillna(whole)
        forms[AVERAGES] = form
    return forms


def pivoted(
    rows: pd.DataFrame, column: str, columns: list[str], own: list[tuple]
) -> pd.DataFrame:
    """One wide form: the rows `own`, then the published ones in the order they have."""
    others = rows.loc[rows["source"] != MEASURED, ROW].drop_duplicates()
    index = [*own, *others.itertuples(index=False, name=None)]
    form = rows.drop_duplicates([*ROW, column]).pivot(
        index=ROW, columns=column, values=["mean", "err", "n"]
    )
    return form.reindex(
        index=pd.MultiIndex.from_tuples(index, names=ROW),
        columns=pd.MultiIndex.from_product(
            [["mean", "err", "n"], [*dict.fromkeys(columns)]]
        ),
    )
