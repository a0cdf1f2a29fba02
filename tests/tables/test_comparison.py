"""Differences on images: the tests are scipy's or restated, the sentences say them."""

import numpy as np
import pytest
from scipy.stats import binomtest

from domainbed.tables import comparison
from domainbed.tables.comparison import Cell, Difference


def cell(r, n=200, first=0.7, second=0.7, places=None):
    places = np.arange(n) if places is None else places
    return Cell(places, r.random(n) < first, r.random(n) < second)


@pytest.fixture
def cells():
    r = np.random.default_rng(0)
    return [[cell(r, 150 + 50 * env, 0.75) for _ in range(3)] for env in range(4)]


def plain(cells, n, whole):
    """n differences, restated with every image drawn one by one."""
    r = np.random.default_rng(1)
    found = []
    for _ in range(n):
        envs, trials = range(len(cells)), range(len(cells[0]))
        if whole:
            envs, trials = (r.choice(len(a), len(a)) for a in (cells, cells[0]))
        means = []
        for env in envs:
            for trial in trials:
                own = cells[env][trial]
                drawn = r.integers(len(own.place), size=len(own.place))
                away = own.first.astype(float) - own.second
                means.append(away[drawn].mean())
        found.append(np.mean(means))
    return np.array(found)


@pytest.mark.parametrize("draw", [comparison.resampled, comparison.resampled_all])
def test_counts_are_drawn_as_images_are(draw, cells):
    fast = draw(comparison.counts(cells), 4000, np.random.default_rng(0))
    slow = plain(cells, 1500, draw is comparison.resampled_all)
    assert fast.std() == pytest.approx(slow.std(), rel=0.08)
    assert fast.mean() == pytest.approx(slow.mean(), abs=0.1 * slow.std())
    for q in (0.025, 0.975):
        near = 0.15 * slow.std()
        assert np.quantile(fast, q) == pytest.approx(np.quantile(slow, q), abs=near)


def test_mcnemar_is_of_the_images_that_only_one_answers():
    r = np.random.default_rng(0)
    own = cell(r, 300, 0.8, 0.7)
    wins = np.sum(own.first & ~own.second)
    losses = np.sum(~own.first & own.second)
    expected = binomtest(wins, wins + losses).pvalue
    assert comparison.mcnemar([[own]]) == pytest.approx(expected)
    assert comparison.mcnemar([[own, own, own]]) == pytest.approx(expected)  # once each
    assert comparison.mcnemar([[Cell(own.place, own.first, own.first)]]) == 1


def test_the_points_are_of_the_tables_average(cells):
    means = [[c.first.mean() - c.second.mean() for c in trials] for trials in cells]
    found = comparison.difference(cells, 500)
    assert found.points == pytest.approx(100 * np.mean(means))
    assert found.low < found.points < found.high
    wider = comparison.difference(cells, 500, comparison.resampled_all)
    assert wider.high - wider.low > found.high - found.low
    assert wider.p is None


def test_the_interval_covers_what_is_there():
    r = np.random.default_rng(0)
    covered = [
        found.low <= 5 <= found.high
        for found in (
            comparison.difference([[cell(r, 300, 0.75, 0.7)]], 400) for _ in range(200)
        )
    ]
    assert 0.9 < np.mean(covered) < 0.99


def test_sentences_say_what_a_difference_means():
    told = Difference(0.4, -0.8, 1.5, 0.31).in_words("LFA", "DPLCLIP")
    assert told == (
        "LFA and DPLCLIP cannot be told apart: 0.4 points, 95 % interval -0.8 to 1.5, "
        "McNemar p = 0.31."
    )
    told = Difference(-2.04, -3, -1, None).in_words("LFA", "DPLCLIP")
    assert told == (
        "LFA is worse than DPLCLIP by 2.0 points, 95 % interval -3.0 to -1.0."
    )


def test_few_trials_say_nothing_of_others(cells):
    named = {f"e{i}": dict(enumerate(trials)) for i, trials in enumerate(cells)}
    texts = [*comparison.sentences(named, "A", "B", 200)]
    assert [text.split(":")[0] for text in texts] == [
        *("e0", "e1", "e2", "e3"),
        "all, these domains and trials",
        "all, other domains and trials too",
    ]
    del named["e1"][0], named["e2"][1]
    *_, last = comparison.sentences(named, "A", "B", 200)
    assert last.startswith("With fewer than two trials of all domains, nothing is said")
    one = [*comparison.sentences({"e0": named["e0"]}, "A", "B", 200)]
    assert len(one) == 2
    assert one[1].startswith("With one domain, nothing is said")
