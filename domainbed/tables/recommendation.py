"""Which method to take: a ranking of methods on left-out domains, and it in words."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import pandas as pd

from domainbed.tables.comparison import Difference
from domainbed.tables.frames import AVERAGE, averages, summary
from domainbed.tables.ties import ties

UNTRAINED = "ZeroShotCLIP"


class Row(NamedTuple):
    """A method's accuracies in percent, by domain and their mean, its letters, and by
    how much the best is before it; None of the best.
    """

    algorithm: str
    accuracies: dict[str, float]
    letters: list[str]
    behind: Difference | None


class Ranking(NamedTuple):
    """The methods, best first, and what the letters mean."""

    rows: list[Row]
    note: str

    @property
    def best(self) -> str:
        return self.rows[0].algorithm

    def lines(self) -> Iterator[str]:
        """The table."""
        width = max(len(row.algorithm) for row in self.rows)
        columns = {name: max(5, len(name)) for name in self.rows[0].accuracies}
        heads = "  ".join(name.rjust(n) for name, n in columns.items())
        yield f"{'':{width}}  {heads}        behind the best (95 %)"
        for row in self.rows:
            cells = (f"{row.accuracies[name]:{n}.1f}" for name, n in columns.items())
            line = f"{row.algorithm:{width}}  {'  '.join(cells)} "
            line += f"{','.join(row.letters):6}"
            if row.behind:
                points, low, high, _ = row.behind
                line += f" {points:.1f} ({low:.1f} to {high:.1f})"
            yield line.rstrip()

    def advice(self, by_cost: Sequence[str], here: str, elsewhere: str) -> str:
        """One sentence; `by_cost` has the methods, the cheapest first.

        What holds `here`, on pictures of these domains, the intervals say, what holds
        `elsewhere`, on other domains, the letters.
        """
        (_, _, letters, _), *others = self.rows
        alike = [row.algorithm for row in others if row.behind.low <= 0]
        tied = [row.algorithm for row in others if {*row.letters} & {*letters}]
        best, cheapest = self.best, min([self.best, *alike], key=by_cost.index)
        if best == UNTRAINED:
            return f"Train nothing: no method is better than {best} on {here}."
        if UNTRAINED in alike:
            what = f"Take {best} if any: it gains nothing certain over {UNTRAINED}"
        elif not alike:
            what = f"Take {best}: it is better than every other method"
        else:
            listed = " and ".join(alike) if len(alike) < 3 else f"{len(alike)} others"
            what = f"Take {best}: {listed} cannot be told apart from it"
        if cheapest not in (best, UNTRAINED):
            what += f" ({cheapest} costs least)"
        more = {*tied} - {*alike}
        doubt = f"; whether {elsewhere}, too, these are too few to show" if more else ""
        return f"{what} on {here}{doubt}."


def ranking(accs: pd.DataFrame, before: Callable[[str, str], Difference]) -> Ranking:
    """Of one dataset's `frames.accuracies`; `before(best, other)` is the difference."""
    letters, note, _ = ties(accs)
    both = pd.concat([summary(accs), averages(accs)])
    table = both.pivot(index="algorithm", columns="environment", values="mean")
    table = table[[*accs["environment"].unique(), AVERAGE]]
    table = table.sort_values(AVERAGE, ascending=False, kind="stable")
    best = table.index[0]
    rows = [
        Row(
            name,
            means.to_dict(),
            letters.get(name, []),
            None if name == best else before(best, name),
        )
        for name, means in table.iterrows()
    ]
    return Ranking(rows, note)
