"""A ranking of methods, and what is advised."""

import numpy as np
import pandas as pd
import pytest

from domainbed.tables.comparison import Difference
from domainbed.tables.frames import averages
from domainbed.tables.recommendation import ranking
from domainbed.tables.ties import ties

COST = ["ZeroShotCLIP", "GDA", "LinearProbeCLIP", "LFA"]
WHERE = ("here", "elsewhere")


def accs_of(means, n_domains=6):
    """One trial of each method on domains that are alike but for a little."""
    rng = np.random.default_rng(0)
    rows = [
        ("ImageFolder:x", name, env, f"d{env}", 0, mean + 0.001 * rng.normal())
        for name, mean in means.items()
        for env in range(n_domains)
    ]
    columns = ["dataset", "algorithm", "test_env", "environment", "trial_seed", "acc"]
    return pd.DataFrame(rows, columns=columns)


def ranked(means, lows, **options):
    def before(best, other):
        points = 100 * (means[best] - means[other])
        return Difference(points, lows[other], points + 1, 0.5)

    return ranking(accs_of(means, **options), before)


def test_the_ranking_is_the_tables():
    means = {"ZeroShotCLIP": 0.5, "LFA": 0.7, "GDA": 0.6}
    accs = accs_of(means)
    found = ranked(means, {"ZeroShotCLIP": 19.0, "GDA": 9.0})
    assert [row.algorithm for row in found.rows] == ["LFA", "GDA", "ZeroShotCLIP"]
    shown = averages(accs).set_index("algorithm")["mean"]
    letters = ties(accs)
    for row in found.rows:
        assert row.accuracies["Avg"] == shown[row.algorithm]
        assert row.letters == letters.letters[row.algorithm]
    assert found.note == letters.note
    assert found.rows[0].behind is None
    head, first, second, _ = found.lines()
    assert head.split()[:7] == [*(f"d{i}" for i in range(6)), "Avg"]
    assert first.split()[-2:] == ["70.0", "a"]
    assert second.endswith("b      10.0 (9.0 to 11.0)")


@pytest.mark.parametrize(
    "means, lows, says",
    [
        (
            {"ZeroShotCLIP": 0.5, "LFA": 0.7, "GDA": 0.6},
            {"ZeroShotCLIP": 19.0, "GDA": 9.0},
            "Take LFA: it is better than every other method on here.",
        ),
        (
            {"ZeroShotCLIP": 0.7, "LFA": 0.6},
            {"LFA": 9.0},
            "Train nothing: no method is better than ZeroShotCLIP on here.",
        ),
        (
            {"ZeroShotCLIP": 0.5, "LFA": 0.701, "GDA": 0.7, "LinearProbeCLIP": 0.7005},
            {"ZeroShotCLIP": 19.0, "GDA": -0.5, "LinearProbeCLIP": -0.2},
            "Take LFA: LinearProbeCLIP and GDA cannot be told apart from it (GDA costs "
            "least) on here.",
        ),
        (
            {"ZeroShotCLIP": 0.5, "GDA": 0.701, "LFA": 0.7},
            {"ZeroShotCLIP": 19.0, "LFA": -0.5},
            "Take GDA: LFA cannot be told apart from it on here.",
        ),
        (
            {"ZeroShotCLIP": 0.7, "LFA": 0.701},
            {"ZeroShotCLIP": -1.0},
            "Take LFA if any: it gains nothing certain over ZeroShotCLIP on here.",
        ),
    ],
)
def test_the_advice(means, lows, says):
    assert ranked(means, lows).advice(COST, *WHERE) == says


def test_what_few_domains_cannot_show_is_said():
    means = {"ZeroShotCLIP": 0.5, "LFA": 0.7}
    found = ranked(means, {"ZeroShotCLIP": 19.0}, n_domains=4)
    assert found.advice(COST, *WHERE) == (
        "Take LFA: it is better than every other method on here; whether elsewhere, "
        "too, these are too few to show."
    )
