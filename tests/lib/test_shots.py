"""The few-shot protocol's numbers: drawn images, halves of classes, batches, rates."""

import math
import random
from collections import defaultdict

import pytest

from domainbed.lib.shots import (
    batches_per_epoch,
    epoch_batches,
    half,
    k_shots,
    rate,
)

LISTS = {
    "in order": [0] * 6 + [1] * 9 + [2] * 3,
    "shuffled": [2, 0, 1, 1, 0, 2, 1, 0, 0, 1, 1, 1, 2, 0, 1],
    "large": random.Random(0).choices(range(11), k=300),
    "one item each": [3, 1, 0, 2],
}


def as_the_protocol_draws(train, val, k, seed):
    """Both lists through one generator, each class's items by themselves."""
    random.seed(seed)
    results = []
    for items, shots in ((train, k), (val, min(k, 4))):
        by_class = defaultdict(list)
        for item in items:
            by_class[item[1]].append(item)
        drawn = []
        for own in by_class.values():
            drawn.extend(random.sample(own, shots) if len(own) >= shots else own)
        results.append(drawn)
    return results


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("k", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("name", LISTS)
def test_the_same_items_as_the_protocol_draws(name, k, seed):
    train = [(f"train {i}", y) for i, y in enumerate(LISTS[name])]
    val = [(f"val {i}", y) for i, y in enumerate(LISTS["shuffled"])]
    generator = random.Random(seed)
    drawn = []
    for items, shots in ((train, k), (val, min(k, 4))):
        places = k_shots([y for _, y in items], shots, generator)
        drawn.append([items[place] for place in places])
    assert drawn == as_the_protocol_draws(train, val, k, seed)


def test_pinned_draws():
    assert k_shots([0, 1] * 5, 2, random.Random(1)) == [2, 0, 5, 1]
    assert k_shots([1, 0, 1], 4, random.Random(1)) == [0, 2, 1]


@pytest.mark.parametrize("n, n_base", [(1, 1), (4, 2), (17, 9), (37, 19)])
def test_base_is_the_larger_half_of_the_sorted_labels(n, n_base):
    labels = [*reversed(range(n))] * 2
    assert half(labels, "base") == [*range(n_base)]
    assert half(labels, "new") == [*range(n_base, n)]


@pytest.mark.parametrize("n, size, sizes", [
    (10, 4, [4, 4]), (8, 4, [4, 4]), (3, 4, [3]), (5, None, [5]), (1, 1, [1])
])  # fmt: skip
def test_an_epoch_sees_items_once_in_whole_batches(n, size, sizes):
    batches = epoch_batches(n, size, seed=3, epoch=2)
    assert [len(batch) for batch in batches] == sizes
    assert len(batches) == batches_per_epoch(n, size)
    seen = [i for batch in batches for i in batch]
    assert len({*seen}) == len(seen) and {*seen} <= {*range(n)}
    assert batches == epoch_batches(n, size, seed=3, epoch=2)
    if n > 4:
        assert batches != epoch_batches(n, size, seed=3, epoch=3)
        assert batches != epoch_batches(n, size, seed=4, epoch=2)


def test_rates_warm_up_and_then_follow_a_late_cosine():
    rates = [rate(epoch, 2e-3, 50) for epoch in range(50)]
    assert rates[:2] == [1e-5, 2e-3]
    last = 1e-3 * (1 + math.cos(math.pi * 48 / 50))
    assert rates[-1] == pytest.approx(last, rel=1e-12) and last > 0
    assert [rate(e, 0.1, 2) for e in range(2)] == [1e-5, 0.1]
