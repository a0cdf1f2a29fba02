"""What accuracy hides: worst domains and classes, calibration, what zero-shot knew."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from domainbed.report import figures
from domainbed.report.chosen import MOST_CLASSES, Chosen
from domainbed.report.parts import Part, Picture, plural, table
from domainbed.tables import frames
from domainbed.tables.answers import (
    Told,
    calibration_error,
    confusion,
    log_loss,
    lost,
    read,
)

MOST_TILES = 6000  # of a picture of confusions
PAIRS = 3  # confusions of a method in the table


class Seen(NamedTuple):
    """What one method's chosen runs answered: a row of measures for each cell, how
    often each label (C,) got each answer (C + 1,), the classes' names.
    """

    measures: pd.DataFrame
    counts: np.ndarray
    classes: list[str]


def hidden_part(own: Chosen) -> Part:
    """The part of one selection method."""
    reference = own.reference or "ZeroShotCLIP"
    known = dict(told_of(own, reference))
    without = 0
    seen: dict[str, Seen] = {}
    for algorithm in own.algorithms:
        runs = known if algorithm == reference else dict(told_of(own, algorithm))
        without += (own.best["algorithm"] == algorithm).sum() - len(runs)
        if runs:
            alike = comparable(own, algorithm, reference)
            seen[algorithm] = see(runs, known if alike else {})
    texts = []
    if without:
        texts.append(
            f"{plural(int(without), 'chosen run')} kept no predictions of the step "
            "that counts; what is asked of answers is without them."
        )
    if seen:
        texts.append(
            "Calibration error: how far accuracy is from confidence, over 15 bins of "
            "confidence. Log-loss: the mean of -log p of the label. Each is of a "
            "trial's test domain, averaged over trials, then domains. A class counts "
            "all its images in all domains and trials."
        )
    pictures = [*pictures_of(seen)]
    tables = [table(summary(own, seen, reference))]
    if seen:
        tables.append(table(confusions(seen)))
    return Part(own.method.name, texts, pictures=pictures, tables=tables)


def comparable(own: Chosen, algorithm: str, reference: str) -> bool:
    """Whether a method stands on what the reference stands on."""
    rows = own.rows
    if not {algorithm, reference} <= rows.keys():
        return False
    return rows[algorithm].backbone == rows[reference].backbone


def told_of(own: Chosen, algorithm: str) -> Iterator[tuple[tuple[int, int], Told]]:
    """((test environment, trial), answers) of a method's chosen runs that kept them."""
    runs = own.best[own.best["algorithm"] == algorithm]
    for run in runs.itertuples():
        if told := read(run.folder, run.test_env, int(run.step)):
            yield (run.test_env, run.trial_seed), told


def see(
    runs: dict[tuple[int, int], Told], reference: dict[tuple[int, int], Told]
) -> Seen:
    """The measures and the confusions of one method's runs."""
    rows = []
    for (env, trial), told in runs.items():
        answers, other = told.answers, reference.get((env, trial))
        same = other is not None and other.items == told.items
        measures = {
            "calibration": 100
            * calibration_error(told.right, np.exp(answers.answer_logp, dtype=float)),
            "log_loss": log_loss(answers.label_logp),
            "lost": 100 * lost(other.right, told.right) if same else np.nan,
        }
        rows.append({"test_env": env, "trial_seed": trial} | measures)
    classes = next(iter(runs.values())).classes
    counts = sum(confusion(t) for t in runs.values() if t.classes == classes)
    return Seen(pd.DataFrame(rows), counts, classes)


def summary(own: Chosen, seen: dict[str, Seen], reference: str) -> pd.DataFrame:
    """A row per method."""
    means = frames.summary(own.accuracies)
    rows = []
    for algorithm in own.algorithms:
        here = means[means["algorithm"] == algorithm]
        worst = here.loc[here["mean"].idxmin()] if here["mean"].notna().any() else None
        row = {
            "algorithm": algorithm + own.apart.marks.get(algorithm, ""),
            "worst domain": None if worst is None else worst["environment"],
            "there %": None if worst is None else worst["mean"],
        }
        if algorithm in seen:
            accuracy = class_accuracy(seen[algorithm])
            least = accuracy.idxmin() if accuracy.notna().any() else None
            of_trials = seen[algorithm].measures.groupby("test_env").mean().mean()
            row |= {
                "worst class": least,
                "its %": accuracy.get(least),
                "calibration error %": of_trials["calibration"],
                "log-loss": f"{of_trials['log_loss']:.2f}",
                f"lost of what {reference} has right, %": of_trials["lost"],
            }
        rows.append(row)
    return pd.DataFrame(rows).dropna(axis="columns", how="all")


def class_accuracy(seen: Seen) -> pd.Series:
    """By class, in percent; NaN of a class without images."""
    n = seen.counts.sum(axis=1)
    right = np.diagonal(seen.counts)
    shares = np.divide(100 * right, n, out=np.full(len(n), np.nan), where=n > 0)
    return pd.Series(shares, seen.classes)


def confusions(seen: dict[str, Seen]) -> pd.DataFrame:
    """Each method's most frequent wrong answers."""
    rows = []
    for algorithm, own in seen.items():
        names = [*own.classes, "no answer"]
        wrong = own.counts.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
        for label, answer in zip(*np.unravel_index(order, wrong.shape), strict=True):
            if n := wrong[label, answer]:
                share = f"{100 * n / own.counts[label].sum():.1f} %"
                pair = {"class": names[label], "taken for": names[answer]}
                rows.append({"algorithm": algorithm} | pair | {"share of it": share})
    columns = ["algorithm", "class", "taken for", "share of it"]
    return pd.DataFrame(rows, columns=columns)


def pictures_of(seen: dict[str, Seen]) -> Iterator[Picture]:
    """Per-class accuracy of all methods, and each one's confusions."""
    classes = next((own.classes for own in seen.values()), [])
    alike = {name: own for name, own in seen.items() if own.classes == classes}
    if not alike:
        return
    form = pd.DataFrame({n: class_accuracy(own) for n, own in alike.items()}).T
    shown, note = form, ""
    if len(classes) > MOST_CLASSES:
        spread = (form.max() - form.min()).sort_values(ascending=False, kind="stable")
        shown = form[[c for c in form if c in {*spread.index[:MOST_CLASSES]}]]
        note = f" Of {len(classes)}, the {MOST_CLASSES} on which methods differ most."
    yield Picture(
        "Accuracy on each class, all test domains together. Blue is above the average "
        f"of all methods on that class, orange below.{note}",
        figures.heat_map(shown.T, (shown - shown.mean()).T),
        table(form.T.reset_index(names="class")),
    )
    if len(classes) ** 2 * len(alike) <= MOST_TILES:
        shares = {
            name: own.counts / np.maximum(own.counts.sum(axis=1, keepdims=True), 1)
            for name, own in alike.items()
        }
        rows = [
            {"algorithm": name, "class": label}
            | dict(zip([*classes, "no answer"], percents(row), strict=True))
            for name, own in shares.items()
            for label, row in zip(classes, own, strict=True)
        ]
        yield Picture(
            "What images of a class (row) are taken for (column), in percent of the "
            "class, from 1 % on. Right answers are on the diagonal.",
            figures.confusions(shares, classes),
            table(pd.DataFrame(rows)),
        )


def percents(row: np.ndarray) -> list[str]:
    return [f"{100 * share:.1f}" for share in row]
