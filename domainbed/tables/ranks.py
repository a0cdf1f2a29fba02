"""Methods over many datasets: average ranks, and interquartile means.

Ranks are compared by Friedman's test and, all with all, by Nemenyi's: Demšar, 2006,
Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 7. An interquartile
mean is that of the middle half of all trials on all datasets, its interval from trials
drawn anew within each dataset: Agarwal et al., 2021, https://arxiv.org/abs/2108.13264
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from domainbed.lib.optional import require
from domainbed.names import algorithm_names
from domainbed.tables.frames import in_order, means_of
from domainbed.tables.ties import FEWEST, LEVEL

SHARE = 0.25  # cut off at each end
RESAMPLES = 2000


class Ranks(NamedTuple):
    """Average ranks by row, 1 for the best; p of all being alike, and of each pair."""

    means: pd.Series
    p: float
    pairs: pd.DataFrame


def whole(scores: pd.DataFrame) -> pd.DataFrame:
    """The means over trials of `frames.trial_means`, datasets x the rows that have all,
    in the order of the tables.
    """
    cells = scores.groupby(["dataset", "algorithm"], sort=False)["acc"]
    form = means_of(cells).unstack("algorithm")
    return form[in_order(form, algorithm_names())].dropna(axis="columns")


def too_few(form: pd.DataFrame) -> str:
    """Why ranks on these datasets would say nothing, or ""."""
    n_datasets, n_rows = form.shape
    if n_datasets < FEWEST:
        return (
            f"No ranks over datasets: there are {n_datasets}, and below {FEWEST} even "
            "the better one on each could be so by chance."
        )
    if n_rows < 3:
        return "No ranks over datasets: fewer than three methods have them all."
    return ""


def ranks(form: pd.DataFrame) -> Ranks:
    """Of means, datasets x at least three rows."""
    posthocs = require("scikit_posthocs", "report")
    _, p = stats.friedmanchisquare(*form.to_numpy().T)
    means = form.rank(axis="columns", ascending=False).mean()
    pairs = posthocs.posthoc_nemenyi_friedman(form.to_numpy())
    pairs.index = pairs.columns = form.columns
    return Ranks(means, float(p), pairs)


def interquartile_means(scores: pd.DataFrame) -> pd.DataFrame:
    """Columns iqm, low, high, in percent, of each row of `whole`.

    The interval is NaN where some dataset has a single trial.
    """
    rows = {}
    for name in whole(scores):
        own = scores[scores["algorithm"] == name]
        samples = [100 * accs.to_numpy() for _, accs in own.groupby("dataset")["acc"]]
        low = high = np.nan
        if min(map(len, samples)) > 1:
            low, high = stats.bootstrap(
                samples,
                lambda *drawn, axis=-1: stats.trim_mean(
                    np.concatenate(drawn, axis=axis), SHARE, axis=axis
                ),
                n_resamples=RESAMPLES,
                confidence_level=1 - LEVEL,
                method="percentile",
                rng=np.random.default_rng(0),
            ).confidence_interval
        iqm = stats.trim_mean(np.concatenate(samples), SHARE)
        rows[name] = (float(iqm), float(low), float(high))
    columns = ["iqm", "low", "high"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)
