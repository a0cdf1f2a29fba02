"""Seeds, splits, weights and accuracy: the small facts every DomainBed run shares."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Subset


def seed_hash(*args: Any) -> int:
    """A 31-bit seed made from the arguments' text, the same on every machine."""
    return int(hashlib.md5(str(args).encode("utf-8")).hexdigest(), 16) % 2**31


def split_dataset(dataset: Dataset, n: int, seed: int = 0) -> tuple[Subset, Subset]:
    """The n first items of a seeded shuffle, and the rest."""
    if not 0 <= n <= len(dataset):
        raise ValueError(f"cannot take {n} of {len(dataset)} items")
    keys = list(range(len(dataset)))
    np.random.RandomState(seed).shuffle(keys)
    return Subset(dataset, keys[:n]), Subset(dataset, keys[n:])
