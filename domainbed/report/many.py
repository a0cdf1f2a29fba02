"""What the report says of methods over many datasets."""

import pandas as pd

from domainbed.report import figures
from domainbed.report.parts import Part, Picture, shown, table
from domainbed.tables import ranks


def over_datasets(scores: pd.DataFrame) -> tuple[list[str], list[Picture]]:
    """Sentences and pictures of the scores of rows that may be ranked together.

    `scores` are as `frames.trial_means` gives them.
    """
    form = ranks.whole(scores)
    if why := ranks.too_few(form):
        return [why], []
    left = [name for name in dict.fromkeys(scores["algorithm"]) if name not in form]
    words = [f"Not ranked, for want of a dataset: {', '.join(left)}."] if left else []
    own, means = ranks.ranks(form), ranks.interquartile_means(scores)
    numbers = pd.DataFrame(
        {
            "algorithm": means.index,
            "average rank": [f"{own.means[name]:.2f}" for name in means.index],
            "interquartile mean %": means["iqm"].tolist(),
            "95 % interval": [interval(*row) for row in means[["low", "high"]].values],
        }
    ).sort_values("average rank", key=lambda column: column.map(float))
    alike = "are alike" if own.p > ranks.LEVEL else "are not all alike"
    diagram = Picture(
        f"Average ranks over {len(form)} datasets, 1 for the best on each. Methods "
        "that a bar joins cannot be told apart (Nemenyi's test, all with all, 5 %); "
        f"by Friedman's test the ranks {alike} (p = {own.p:.2g}). A dataset is the "
        "unit.",
        figures.critical_difference(own),
        table(numbers),
    )
    spread = Picture(
        "Interquartile mean: of the middle half of all trials on all datasets, so that "
        "one dataset that is easy or failed does not decide. The bar is its 95 % "
        "interval, from trials drawn anew within each dataset: it says what other "
        "trials would give, not other datasets.",
        figures.intervals(means),
        table(numbers),
    )
    return words, [diagram, spread]


def interval(low: float, high: float) -> str:
    return f"{shown(float(low))} to {shown(float(high))}" if low == low else "–"


def with_ranks(part: Part, scores: pd.DataFrame) -> Part:
    """The part, and below what the scores say over many datasets."""
    words, pictures = over_datasets(scores)
    return part._replace(
        texts=[*part.texts, *words], pictures=[*part.pictures, *pictures]
    )
