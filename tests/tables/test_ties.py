"""Rows that are alike are not told apart, rows that differ are, and it is said how."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from domainbed.tables import ranks
from domainbed.tables.ties import groups_of, letters_of, p_values, statistics, ties

FOUR = np.ones(4)


def frame(accs, dataset="PACS", trials=1):
    """Rows of `frames.accuracies` of {algorithm: accuracies of the environments}."""
    rows = [
        (dataset, name, f"env{env}", trial, acc)
        for name, own in accs.items()
        for env, acc in enumerate(own)
        for trial in range(trials)
    ]
    columns = ["dataset", "algorithm", "environment", "trial_seed", "acc"]
    return pd.DataFrame(rows, columns=columns)


def apart(accs):
    """{pair of rows that share no letter}."""
    letters = ties(accs).letters
    return {
        (a, b)
        for a, mine in letters.items()
        for b, theirs in letters.items()
        if a < b and not {*mine} & {*theirs}
    }


def test_the_order_of_trials_tells_no_rows_apart():
    """0.1 + 0.2 + 0.3 is another sum than 0.2 + 0.3 + 0.1, in the last digit."""
    orders = {"LFA": [0.1, 0.2, 0.3], "ERM": [0.3, 0.2, 0.1], "MIRO": [0.2, 0.3, 0.1]}
    orders["CORAL"] = [0.2, 0.2, 0.2]
    accs = frame({name: [0] * 6 for name in orders}, trials=3)
    accs["acc"] = [
        orders[row.algorithm][row.trial_seed] for row in accs.itertuples(index=False)
    ]
    assert apart(accs) == set()
    form = ranks.whole(accs.drop(columns="environment"))
    assert (form.rank(axis="columns") == 2.5).all(axis=None)


def equal_methods(r, n_rows):
    """(4 domains, rows): 3 trials of 2,000 images; methods differ by chance alone.

    A domain has a difficulty, a method a lot of luck with each domain that its trials
    share, and a trial has its own.
    """
    p = r.uniform(0.5, 0.9, (4, 1)) + r.normal(0, 0.01, (4, n_rows))
    return (r.binomial(2000, p, (3, 4, n_rows)) / 2000).mean(axis=0)


@pytest.mark.parametrize("n_rows", [2, 4, 8])
def test_equal_methods_are_seldom_told_apart(n_rows):
    r = np.random.default_rng(n_rows)
    tables = [p_values(equal_methods(r, n_rows), FOUR) for _ in range(1000)]
    separated = np.mean([(p <= 0.05).any() for p in tables])
    assert separated <= 0.06
    assert n_rows == 2 or separated > 0.03  # a test that never speaks would pass, too


def test_two_rows_have_the_p_of_all_flips():
    accs = np.array([[0.5, 0.6], [0.5, 0.7], [0.5, 0.56], [0.5, 0.51]] * 2)
    signs = np.array([*itertools.product((1, -1), repeat=8)])
    flipped = signs.T * (accs[:, :1] - accs[:, 1:])
    sizes = np.abs(stats.ttest_1samp(flipped, 0).statistic)
    exact = np.mean(sizes >= sizes[0] - 1e-9)  # the first flips nothing
    assert p_values(accs, np.ones(8))[0, 1] == pytest.approx(exact, abs=0.01)


def test_a_difference_has_its_t_unless_another_pairs_error_is_larger():
    accs = np.random.default_rng(0).normal(0, 1, (1, 5, 3))
    (found,) = statistics(accs)
    t = np.array(
        [
            [
                abs(stats.ttest_rel(a, b).statistic) if a is not b else 0
                for b in accs[0].T
            ]
            for a in accs[0].T
        ]
    )
    t = np.nan_to_num(t)
    assert (found <= t + 1e-9).all()
    assert np.isclose(found, t).sum() > 3  # the diagonal, and some pair
    pair = statistics(accs[:, :, :2])[0, 0, 1]
    assert pair == pytest.approx(t[0, 1])


def test_what_differs_everywhere_is_told_apart():
    r = np.random.default_rng(0)
    base = r.uniform(0.5, 0.9, 6)
    rows = {"A": base, "B": base + r.normal(0, 0.002, 6)}
    rows |= {"C": base - 0.05 + r.normal(0, 0.002, 6)}
    assert apart(frame(rows)) == {("A", "C"), ("B", "C")}
    found = ties(frame(rows))
    assert found.letters == {"A": ["a"], "B": ["a"], "C": ["b"]}
    assert "within each of the 6 domains" in found.note
    assert "The best row is chosen on the same data" in found.note
    assert found.in_words.endswith(" a: A, B; b: C")


def test_trials_of_one_domain_are_no_further_domains():
    accs = {"A": [0.6, 0.7, 0.8, 0.9], "B": [0.5, 0.6, 0.7, 0.8]}
    once, often = (ties(frame(accs, trials=n)) for n in (1, 50))
    assert once == often
    assert apart(frame(accs, trials=50)) == set()
    assert "Two rows on 4 domains share one whatever their accuracies" in once.note
    assert "p is at least 12.5%" in once.note


def test_letters_are_of_the_largest_groups_and_begin_with_the_best():
    away = np.zeros((4, 4), bool)
    away[0, 3] = away[3, 0] = away[1, 3] = away[3, 1] = True
    assert sorted(map(sorted, groups_of(away))) == [[0, 1, 2], [2, 3]]
    best_last = np.array([4, 3, 2, 1])
    assert letters_of(away, best_last) == [["b"], ["b"], ["a", "b"], ["a"]]
    all_apart = ~np.eye(30, dtype=bool)
    letters = letters_of(all_apart, np.arange(30))
    assert [*map("".join, letters)][24:28] == ["y", "z", "aa", "ab"]


def test_averages_weigh_every_dataset_alike():
    """As the column does that they stand beside."""
    r = np.random.default_rng(3)
    few, many = r.normal(0, 1, (2, 2)), r.normal(0, 1, (8, 2))
    weights = np.array([1 / 2] * 2 + [1 / 8] * 8)
    both = np.concatenate([few, many])
    away = both - both.mean(axis=1, keepdims=True)
    scaled = away * (weights / weights.mean())[:, None]
    sums = few.mean(axis=0) + many.mean(axis=0)
    assert np.diff(scaled.mean(axis=0)) == pytest.approx(np.diff(sums) / 2)
    assert np.array_equal(p_values(both, weights), p_values(scaled, np.ones(10)))
    names = {"A": few[:, 0], "B": few[:, 1]}, {"A": many[:, 0], "B": many[:, 1]}
    table = pd.concat([frame(names[0]), frame(names[1], "VLCS")])
    assert ties(table).note.count("10 domains") == 1


def test_a_row_that_lacks_a_domain_or_diverged_is_named():
    rows = {
        "A": [0.5] * 4,
        "B": [0.5] * 3,
        "C": [0.5, np.nan, 0.5, 0.5],
        "D": [0.6] * 4,
    }
    found = ties(frame(rows))
    assert [*found.letters] == ["A", "D"]
    assert found.note.endswith("Not compared, for want of a domain: B, C.")
    nothing = ties(frame({"A": [0.5] * 4, "B": [0.5]}))
    assert nothing.letters == {}
    assert "No claim is made of differences: fewer than two rows" in nothing.note
    one = ties(frame({"A": [0.5], "B": [0.6]}))
    assert "No claim is made of differences: there is one domain." in one.note


def test_equal_rows_and_equal_differences_are_no_crash():
    rows = {"A": [0.5] * 6, "B": [0.5] * 6, "C": [0.25] * 6}
    with np.errstate(all="raise"):
        assert apart(frame(rows)) == {("A", "C"), ("B", "C")}
        assert apart(frame({"A": [0.5] * 4, "B": [0.5] * 4})) == set()
