"""Ranks and interquartile means over datasets, and when nothing is said of them."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from domainbed.tables import ranks

posthocs = pytest.importorskip("scikit_posthocs")


def scores(accs, trials=3, spread=0.0):
    """Rows of `frames.trial_means` of {row: accuracies of datasets}."""
    r = np.random.default_rng(0)
    rows = [
        (f"d{i}", name, trial, acc + spread * r.normal())
        for name, own in accs.items()
        for i, acc in enumerate(own)
        for trial in range(trials)
        if acc is not None
    ]
    return pd.DataFrame(rows, columns=["dataset", "algorithm", "trial_seed", "acc"])


def test_ranks_are_averaged_and_the_best_is_first():
    form = ranks.whole(
        scores({"LFA": [0.9, 0.5] * 4, "ERM": [0.8, 0.8] * 4, "MIRO": [0.7, 0.8] * 4})
    )
    assert [*form] == ["ERM", "LFA", "MIRO"]  # in the order of the tables
    found = ranks.ranks(form)
    assert found.means.to_dict() == {"ERM": 1.75, "LFA": 2.0, "MIRO": 2.25}
    _, p = stats.friedmanchisquare(*form.to_numpy().T)
    assert found.p == p


def test_pairs_have_nemenyis_p():
    """Demšar's formula: rank differences in units of sqrt(k (k + 1) / 6 N)."""
    r = np.random.default_rng(1)
    accs = {name: r.normal(0.5 + 0.1 * i, 0.1, 9) for i, name in enumerate("abcd")}
    form = ranks.whole(scores(accs))
    found = ranks.ranks(form)
    q = abs(found.means["a"] - found.means["d"]) / np.sqrt(4 * 5 / (6 * 9))
    expected = stats.studentized_range.sf(q * np.sqrt(2), 4, np.inf)
    assert found.pairs.loc["a", "d"] == pytest.approx(expected, abs=1e-6)
    assert found.pairs.loc["a", "d"] < 0.05


def test_equal_methods_are_seldom_told_apart():
    r = np.random.default_rng(2)
    tables = (ranks.ranks(pd.DataFrame(r.normal(size=(8, 4)))) for _ in range(200))
    wrong = [(own.pairs.to_numpy() <= ranks.LEVEL).any() for own in tables]
    assert np.mean(wrong) <= 0.06


def test_a_row_without_a_dataset_is_not_ranked():
    accs = {"a": [0.5] * 6, "b": [0.5] * 5 + [None], "c": [0.5] * 5 + [np.nan]}
    assert [*ranks.whole(scores(accs))] == ["a"]


def test_of_few_datasets_or_methods_nothing_is_said():
    few = {name: [0.5] * 5 for name in "abc"}
    assert "there are 5, and below 6 even" in ranks.too_few(ranks.whole(scores(few)))
    many = {name: [0.5] * 6 for name in "ab"}
    assert "fewer than three methods" in ranks.too_few(ranks.whole(scores(many)))
    assert not ranks.too_few(ranks.whole(scores(many | {"c": [0.5] * 6})))


def test_the_interquartile_mean_is_of_the_middle_half():
    own = scores({"a": [0.1, 0.2, 0.3, 0.4]}, trials=2)
    found = ranks.interquartile_means(own)
    assert found.at["a", "iqm"] == pytest.approx(25)  # of 20, 20, 30, 30
    assert found.at["a", "low"] == found.at["a", "high"] == pytest.approx(25)


def test_its_interval_is_of_trials_within_their_dataset():
    own = scores({"a": [0.1, 0.5, 0.9, 0.4]}, trials=5, spread=0.02)
    found = ranks.interquartile_means(own).loc["a"]
    r = np.random.default_rng(3)
    samples = [100 * g["acc"].to_numpy() for _, g in own.groupby("dataset")]
    drawn = [
        stats.trim_mean(np.concatenate([r.choice(s, len(s)) for s in samples]), 0.25)
        for _ in range(4000)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975))
    assert found["low"] == pytest.approx(low, abs=0.15)
    assert found["high"] == pytest.approx(high, abs=0.15)
    assert found["high"] - found["low"] < 5  # datasets are 80 points apart


def test_of_single_trials_there_is_no_interval():
    found = ranks.interquartile_means(scores({"a": [0.1, 0.2, 0.3, 0.4]}, trials=1))
    assert found.loc["a"].isna().tolist() == [False, True, True]
