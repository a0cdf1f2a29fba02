"""Which rows of a table its trials cannot tell apart.

The rows of a table are compared all with all by one permutation test of the largest
difference (Westfall & Young, 1993, Resampling-Based Multiple Testing). The unit is the
domain: the trials of one domain share its images, so their mean is one number. If all
rows were alike, their labels could be exchanged within every domain. A difference is
measured by its standard error over the domains, which counts at least as much as that
of the average pair: with few domains some pair's is small by chance.
"""

import functools
import itertools
import string
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from domainbed.tables.frames import means_of
from domainbed.tables.protocol import TOGETHER, Apart

LEVEL = 0.05  # family-wise: of all pairs of a table together
DRAWS = 1000  # of labels, the table's own among them
FEWEST = 6  # domains on which two rows can differ at all: 2 / 2^5 is above LEVEL


class Ties(NamedTuple):
    """{row: its letters}; rows that cannot be told apart share one. What was done.

    Without letters the note says why no claim is made. Which rows are `apart`.
    """

    letters: dict[str, list[str]]
    note: str
    apart: Apart = TOGETHER

    @property
    def in_words(self) -> str:
        """The note, then the rows of each letter."""
        rows: dict[str, list[str]] = {}
        for row, letters in self.letters.items():
            for letter in letters:
                rows.setdefault(letter, []).append(row)
        groups = [f"{letter}: {', '.join(rows[letter])}" for letter in sorted(rows)]
        return " ".join(filter(None, [self.note, "; ".join(groups)]))


def ties(accs: pd.DataFrame, apart: Apart = TOGETHER) -> Ties:
    """Of the rows of `frames.accuracies`, which may be of several datasets.

    A row that lacks a domain, has a NaN or is of another protocol is not compared.
    """
    letters, note = compared(accs[~accs["algorithm"].isin(apart.names)])
    return Ties(letters, " ".join(filter(None, [note, apart.why])), apart)


def compared(accs: pd.DataFrame) -> tuple[dict[str, list[str]], str]:
    """The letters of rows of one protocol, and the note."""
    cells = accs.groupby(["dataset", "environment", "algorithm"], sort=False)["acc"]
    means = means_of(cells).unstack("algorithm")
    means = means[[*dict.fromkeys(accs["algorithm"])]]
    whole = means.dropna(axis="columns")
    left = [name for name in means if name not in whole]
    without = f" Not compared, for want of a domain: {', '.join(left)}." if left else ""
    n_domains, n_rows = whole.shape
    if n_domains < 2 or n_rows < 2:
        few = "fewer than two rows are whole" if n_rows < 2 else "there is one domain"
        return {}, f"No claim is made of differences: {few}.{without}"
    sizes = whole.index.get_level_values("dataset").value_counts()
    weights = 1 / sizes[whole.index.get_level_values("dataset")].to_numpy()
    differ = p_values(whole.to_numpy(), weights) <= LEVEL
    places = (-weights @ whole).rank(method="first").to_numpy()
    letters = dict(zip(whole, letters_of(differ, places), strict=True))
    return letters, note(n_domains, n_rows) + without


def note(n_domains: int, n_rows: int) -> str:
    """The test and its null, in words."""
    text = (
        "Rows that share a letter cannot be told apart (permutation test of the "
        f"largest difference, all with all, family-wise level {LEVEL:.0%}; null: rows "
        f"are alike, so that within each of the {n_domains} domains, all its trials "
        "together, their labels could be exchanged). The best row is chosen on the "
        "same data; the test counts every pair, so it allows for that."
    )
    if n_rows == 2 and n_domains < FEWEST:
        text += (
            f" Two rows on {n_domains} domains share one whatever their accuracies: p "
            f"is at least {2.0 ** (1 - n_domains):.1%}."
        )
    return text


def p_values(accs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Family-wise p of every pair of rows, (K, K), of accuracies (domains, K)."""
    n_domains, n_rows = accs.shape
    away = accs - accs.mean(axis=1, keepdims=True)
    away = away * (weights / weights.mean())[:, None]
    drawn = away[np.arange(n_domains)[:, None], labels(n_domains, n_rows)]
    sizes = statistics(drawn)
    largest = sizes.max(axis=(1, 2))
    return (largest[:, None, None] >= sizes[0] - 1e-9).mean(axis=0)


@functools.cache
def labels(n_domains: int, n_rows: int) -> np.ndarray:
    """Draws of labels in every domain, (DRAWS, domains, K); the first is as it is."""
    own = np.broadcast_to(np.arange(n_rows), (DRAWS, n_domains, n_rows)).copy()
    own[1:] = np.random.default_rng(0).permuted(own[1:], axis=-1)
    return own


def statistics(accs: np.ndarray) -> np.ndarray:
    """|mean difference| / standard error of every pair of rows: (P, domains, K) ->
    (P, K, K); the error's square is at least its mean over the pairs.
    """
    _, n_domains, n_rows = accs.shape
    means = accs.mean(axis=1)
    rest = accs - means[:, None]
    products = rest.transpose(0, 2, 1) @ rest  # (P, K, K)
    squares = np.diagonal(products, axis1=1, axis2=2)
    errors = squares[:, :, None] + squares[:, None, :] - 2 * products
    least = errors.sum(axis=(1, 2), keepdims=True) / (n_rows * (n_rows - 1))
    errors = np.maximum(errors, least) / (n_domains * (n_domains - 1))
    differences = np.abs(means[:, :, None] - means[:, None, :])
    # Rows that differ by the same in every domain: a difference without an error.
    return differences / np.sqrt(np.maximum(errors, 1e-18))


def letters_of(apart: np.ndarray, places: np.ndarray) -> list[list[str]]:
    """Letters for each row: two rows share one unless they are apart, (K, K).

    A letter is a largest group of rows of which no two are apart (Piepho, 2004, An
    Algorithm for a Letter-Based Representation of All-Pairwise Comparisons); the first
    letter is the group of the row in the first place.
    """
    groups = sorted(groups_of(apart), key=lambda rows: sorted(places[[*rows]]))
    names = dict(zip(alphabet(), groups, strict=False))
    return [
        [letter for letter, group in names.items() if row in group]
        for row in range(len(apart))
    ]


def alphabet() -> Iterator[str]:
    """a ... z, aa ... without end."""
    for length in itertools.count(1):
        yield from map(
            "".join, itertools.product(string.ascii_lowercase, repeat=length)
        )


def groups_of(apart: np.ndarray) -> list[set[int]]:
    """The largest groups of rows of which no two are apart."""
    groups = [{*range(len(apart))}]
    for pair in np.argwhere(np.triu(apart)).tolist():
        split = [
            group - {k} for group in groups if group.issuperset(pair) for k in pair
        ]
        groups = [group for group in groups if not group.issuperset(pair)]
        for group in split:
            if not any(group <= other for other in groups):
                groups.append(group)
    return groups
