"""The few-shot protocol in numbers: which K images, which classes, batches and rates.

CoOp's, as its code and Dassl's have it: Zhou et al., 2022,
https://arxiv.org/abs/2109.01134; base and new classes: https://arxiv.org/abs/2203.05557
"""

import functools
import math
import random
from collections import Counter
from collections.abc import Collection, Sequence
from statistics import fmean

from domainbed.lib.misc import NO_GUESS, seed_hash

WARM_UP_RATE = 1e-5  # of the first epoch


def k_shots(labels: Sequence[int], k: int, generator: random.Random) -> list[int]:
    """Places of k items of each label, or of all that it has, without a draw.

    Labels come in the order in which they first appear.
    """
    places: dict[int, list[int]] = {}
    for place, label in enumerate(labels):
        places.setdefault(label, []).append(place)
    return [
        place
        for own in places.values()
        for place in (generator.sample(own, k) if len(own) >= k else own)
    ]


def half(labels: Collection[int], which: str) -> list[int]:
    """The labels that are `base`, the first half and a bit, or `new`, the rest."""
    ordered = sorted(set(labels))
    middle = math.ceil(len(ordered) / 2)
    return ordered[:middle] if which == "base" else ordered[middle:]


def batches_per_epoch(n: int, batch_size: int | None) -> int:
    """How many whole batches n items make; at least one, of None a single one."""
    return max(1, n // (batch_size or n))


@functools.lru_cache(maxsize=1)  # an epoch's steps ask for it one after another
def epoch_batches(
    n: int, batch_size: int | None, seed: int, epoch: int
) -> list[list[int]]:
    """The epoch's batches of indices below n, a random order without replacement.

    What is left of it makes a batch only if there is no whole one.
    """
    import torch

    generator = torch.Generator().manual_seed(seed_hash(seed, "epoch", epoch))
    order = torch.randperm(n, generator=generator).tolist()
    size = batch_size or n
    count = batches_per_epoch(n, batch_size)
    return [order[i * size : (i + 1) * size] for i in range(count)]


def rate(epoch: int, lr: float, epochs: int) -> float:
    """The epoch's learning rate: warm-up in the first, then a cosine that is shifted by
    one epoch, so that the last rate is not 0.
    """
    return WARM_UP_RATE if epoch == 0 else cosine(epoch - 1, lr, epochs)


def cosine(t: int, lr: float, n: int) -> float:
    """The rate at time t of n: from lr down to 0, which it reaches at n."""
    return lr * (1 + math.cos(math.pi * t / n)) / 2


def scores(guesses: Sequence[int], labels: Sequence[int]) -> dict[str, float]:
    """Shares: `acc` of right guesses, `class_mean` of each class's, `f1` macro.

    The two means are over the classes that occur among the labels. NaN if a guess is
    none: a network that has diverged says nothing.
    """
    if NO_GUESS in guesses:
        return dict.fromkeys(("acc", "class_mean", "f1"), math.nan)
    n, guessed = Counter(labels), Counter(guesses)
    right = Counter(y for g, y in zip(guesses, labels, strict=True) if g == y)
    return {
        "acc": right.total() / len(labels),
        "class_mean": fmean(right[y] / n[y] for y in n),
        "f1": fmean(2 * right[y] / (n[y] + guessed[y]) for y in n),
    }
