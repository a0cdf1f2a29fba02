"""Frames: the accuracies of records, their means, and what others have published.

An accuracy is a share, 0 to 1; means and errors are in percent, as tables have them.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from domainbed import algorithms, datasets
from domainbed.lib import reporting
from domainbed.lib.query import Q
from domainbed.model_selection import SelectionMethod

AVERAGE = "Avg"


def in_order(present: set[str], known: list[str]) -> list[str]:
    """The names present, in the known order, the unknown ones after."""
    return [n for n in known if n in present] + sorted(present - set(known))


def environments(dataset: str) -> Sequence[str]:
    """The environments' names; none if the dataset, or its folder, is not here."""
    try:
        return datasets.get_dataset_class(dataset).ENVIRONMENTS
    except (OSError, ValueError):  # also of names that are no path
        return ()


def accuracies(records: Q, method: type[SelectionMethod]) -> pd.DataFrame:
    """What the method chose: a row per (dataset, algorithm, test_env, trial_seed).

    Columns dataset, algorithm, test_env, environment, trial_seed, acc; in the order of
    the tables. Environments of a dataset that is not registered here are env0, env1...
    """
    groups = reporting.get_grouped_records(records)
    known = {dataset: environments(dataset) for dataset in groups.select("dataset")}
    rows = []
    for group in groups:
        dataset, env = group["dataset"], group["test_env"]
        names = known[dataset] or [f"env{i}" for i in range(env + 1)]
        acc = method.sweep_acc(group["records"]) if env < len(names) else None
        if acc is not None:
            facts = (env, names[env], group["trial_seed"], float(acc))
            rows.append((dataset, group["algorithm"], *facts))
    columns = ["dataset", "algorithm", "test_env", "environment", "trial_seed", "acc"]
    frame = pd.DataFrame(rows, columns=columns)
    places = {
        "dataset": in_order({*frame["dataset"]}, datasets.DATASETS),
        "algorithm": in_order({*frame["algorithm"]}, algorithms.ALGORITHMS),
    }
    return frame.sort_values(
        ["dataset", "algorithm", "test_env", "trial_seed"],
        key=lambda c: c.map(places[c.name].index) if c.name in places else c,
        ignore_index=True,
    )


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns dataset, algorithm, environment, mean, err, n of `accuracies`' frame.

    err is the standard error over n trials, from the population's deviation.
    """
    keys = ["dataset", "algorithm", "environment"]
    return _means(frame, keys)


def averages(frame: pd.DataFrame) -> pd.DataFrame:
    """As `summary`, over the trials' means of all environments, which are `Avg`.

    A trial that lacks an environment has no mean.
    """
    own = frame.groupby("dataset")["environment"].nunique()
    needed = {name: len(environments(name)) or n for name, n in own.items()}
    trials = frame.groupby(["dataset", "algorithm", "trial_seed"], sort=False)["acc"]
    rows = [
        (dataset, algorithm, AVERAGE, np.mean(accs.to_numpy()))
        for (dataset, algorithm, _), accs in trials
        if len(accs) == needed[dataset]
    ]
    keys = ["dataset", "algorithm", "environment"]
    return _means(pd.DataFrame(rows, columns=[*keys, "acc"]), keys)


def _means(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    groups = frame.groupby(keys, sort=False)["acc"]
    rows = [
        (*key, 100 * np.mean(accs), 100 * np.std(accs) / np.sqrt(len(accs)), len(accs))
        for key, accs in ((key, group.to_numpy()) for key, group in groups)
    ]
    return pd.DataFrame(rows, columns=[*keys, "mean", "err", "n"])
