"""Whether two methods differ on the images that both were tested on.

Of each (environment, trial) the two answered the same images, so that only images
matter of which one method was right and the other wrong. Three questions are asked:

- On these images? McNemar's exact test (1947, Psychometrika 12). An image of several
  trials counts once, for the method that was right in more of them.
- On other images of these domains? An interval from a paired bootstrap over the images
  of each environment and trial (Efron & Tibshirani, 1993).
- On other domains and trials, too? The same, after environments and trials are drawn
  with replacement, as crossed factors (Owen, 2007, The Pigeonhole Bootstrap).
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

LEVEL = 0.05


class Cell(NamedTuple):
    """The images of one (environment, trial): places, and who was right, each (n,)."""

    place: np.ndarray
    first: np.ndarray
    second: np.ndarray


class Difference(NamedTuple):
    """First less second in points, the interval of that, McNemar's p or None."""

    points: float
    low: float
    high: float
    p: float | None

    def in_words(self, first: str, second: str) -> str:
        """One sentence."""
        interval = f"95 % interval {self.low:.1f} to {self.high:.1f}"
        p = "" if self.p is None else f", McNemar p = {self.p:.2g}"
        if self.low <= 0 <= self.high:
            pair = f"{first} and {second} cannot be told apart"
            return f"{pair}: {self.points:.1f} points, {interval}{p}."
        verb = "better" if self.points > 0 else "worse"
        size = f"{abs(self.points):.1f} points"
        return f"{first} is {verb} than {second} by {size}, {interval}{p}."


def counts(cells: list[list[Cell]]) -> np.ndarray:
    """Of each cell how often (only the first, both or none, only the second) is right:
    (environments, trials, 3).
    """

    def own(cell: Cell) -> list[int]:
        away = cell.first.astype(int) - cell.second
        return [np.sum(away == 1), np.sum(away == 0), np.sum(away == -1)]

    return np.array([[own(cell) for cell in trials] for trials in cells])


def mcnemar(cells: list[list[Cell]]) -> float:
    """The exact test's p over all images of the environments."""
    wins = losses = 0
    for trials in cells:
        place = np.concatenate([cell.place for cell in trials])
        away = [cell.first.astype(int) - cell.second for cell in trials]
        net = np.bincount(place, np.concatenate(away))
        wins, losses = wins + np.sum(net > 0), losses + np.sum(net < 0)
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def resampled(counts: np.ndarray, n: int, r: np.random.Generator) -> np.ndarray:
    """n differences, shares of 1, of images drawn anew in every cell.

    Images of a cell are alike but for which of three kinds they are, so that a draw of
    them is a draw of their counts.
    """
    sizes = counts.sum(axis=-1)
    drawn = r.multinomial(sizes, counts / sizes[..., None], size=(n, *sizes.shape))
    return ((drawn[..., 0] - drawn[..., 2]) / sizes).mean(axis=(1, 2))


def resampled_all(counts: np.ndarray, n: int, r: np.random.Generator) -> np.ndarray:
    """As `resampled`, after environments and trials are drawn anew."""
    n_envs, n_trials, _ = counts.shape
    env = r.integers(n_envs, size=(n, n_envs, 1))
    trial = r.integers(n_trials, size=(n, 1, n_trials))
    own = counts[env, trial]  # (n, environments, trials, 3)
    sizes = own.sum(axis=-1)
    drawn = r.multinomial(sizes, own / sizes[..., None])
    return ((drawn[..., 0] - drawn[..., 2]) / sizes).mean(axis=(1, 2))


def difference(
    cells: list[list[Cell]], n: int, draw: Callable = resampled
) -> Difference:
    """Of cells by environment and trial, from n draws; p if only images are drawn."""
    kinds = counts(cells)
    sizes = kinds.sum(axis=-1)
    points = 100 * np.mean((kinds[..., 0] - kinds[..., 2]) / sizes)
    drawn = 100 * draw(kinds, n, np.random.default_rng(0))
    low, high = np.quantile(drawn, (LEVEL / 2, 1 - LEVEL / 2))
    p = mcnemar(cells) if draw is resampled else None
    return Difference(float(points), float(low), float(high), p)


def sentences(
    cells: dict[str, dict[int, Cell]], first: str, second: str, n: int
) -> Iterator[str]:
    """On each environment and on all, of {environment: {trial: cell}}."""
    for name, trials in cells.items():
        found = difference([[*trials.values()]], n)
        yield f"{name}: {found.in_words(first, second)}"
    common = sorted(set.intersection(*map(set, cells.values())))
    every = [[trials[trial] for trial in common] for trials in cells.values()]
    if len(cells) > 1 and common:
        found = difference(every, n)
        yield f"all, these domains and trials: {found.in_words(first, second)}"
    if len(cells) > 1 and len(common) > 1:
        found = difference(every, n, resampled_all)
        yield f"all, other domains and trials too: {found.in_words(first, second)}"
    else:
        few = (
            "one domain" if len(cells) == 1 else "fewer than two trials of all domains"
        )
        yield f"With {few}, nothing is said of other domains and trials."
