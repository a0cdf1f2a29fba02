"""What accuracy hides in the answers that runs store: how sure, on which classes, what
for; each for the items of one test domain's in-split.

Calibration error: Guo et al., 2017, On Calibration of Modern Neural Networks,
https://arxiv.org/abs/1706.04599, eq. 3, with 15 bins.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from domainbed.lib import misc
from domainbed.runs import predictions

BINS = 15


class Told(NamedTuple):
    """The items by a digest of what they are, the answers, the classes' names."""

    items: str
    answers: predictions.Answers
    classes: list[str]

    @property
    def right(self) -> np.ndarray:
        """(n,) whether each answer is the label."""
        return self.answers.answer == self.answers.label


def read(folder: Path, env: int, step: int) -> Told | None:
    """Of a run's test domain; None if that step is not kept."""
    arrays = predictions.load(folder / predictions.NAME)
    own = predictions.read(arrays, env, "in", step) if arrays else None
    if own is None:
        return None
    items = misc.digest(map(str, [*own.place.tolist(), "labels", *own.label.tolist()]))
    names = arrays.get("names", np.array([])).tolist()
    n_classes = int(arrays["classes"])
    if len(names) != n_classes:  # of an older run, or of one with several lists
        names = [f"class {i}" for i in range(n_classes)]
    return Told(f"{arrays['data']}-{items}", own, names)


def calibration_error(right: np.ndarray, confidence: np.ndarray) -> float:
    """The mean distance of accuracy from confidence over bins of equal width, (n,)
    each; a bin weighs as many items as it has. NaN if a confidence is.
    """
    if np.isnan(confidence).any():
        return float("nan")
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    away = np.bincount(bins, right - confidence.astype(float), BINS)
    return float(np.abs(away).sum() / len(right))


def log_loss(label_logp: np.ndarray) -> float:
    """The mean of -log p(label), (n,), in nats."""
    return float(-np.mean(label_logp, dtype=float))


def confusion(told: Told) -> np.ndarray:
    """How often each label (C,) got each answer (C + 1,); the last is none at all."""
    n = len(told.classes)
    pairs = told.answers.label.astype(int) * (n + 1) + told.answers.answer
    return np.bincount(pairs, minlength=n * (n + 1)).reshape(n, n + 1)


def lost(reference: np.ndarray, right: np.ndarray) -> float:
    """The share of what the reference has right, (n,), that is not; NaN of nothing."""
    return float(np.mean(~right[reference])) if reference.any() else float("nan")
