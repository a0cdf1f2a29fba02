"""Shares of a learning rate."""

import math

import pytest

from domainbed.lib.schedules import SCHEDULES, share


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_is_linear_and_ends_at_the_whole_rate(schedule):
    assert [share(schedule, step, 20, 4) for step in range(5)] == [
        0.25,
        0.5,
        0.75,
        1.0,
        1.0,
    ]


def test_rates_fall_to_0_at_the_end():
    steps = range(2, 13, 2)
    assert [share("constant", step, 12, 2) for step in steps] == [1.0] * 6
    linear = [share("linear", step, 12, 2) for step in steps]
    assert linear == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0])
    cosine = [share("cosine", step, 12, 2) for step in steps]
    expected = [(1 + math.cos(math.pi * t / 5)) / 2 for t in range(6)]
    assert cosine == pytest.approx(expected)


def test_a_warm_up_may_take_all_steps():
    assert share("cosine", 3, 4, 4) == 1.0
    assert share("linear", 4, 4, 4) == 1.0
