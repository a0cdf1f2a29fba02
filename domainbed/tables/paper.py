"""LaTeX tables as papers have them, with a test of what the trials support.

The test: for each pair (environment, trial), the best row's accuracy less this row's.
If the two were alike, each difference could as well have the other sign. p is the share
of all signs whose sum is at least what it is (Fisher, 1935, The Design of Experiments,
section 21).
"""

import itertools

import numpy as np
import pandas as pd

from domainbed import algorithms
from domainbed.lib.errors import InputError
from domainbed.lib.reporting import printable
from domainbed.model_selection import SelectionMethod
from domainbed.tables.formats import texts
from domainbed.tables.frames import AVERAGE, AVERAGES, MEASURED

LEVEL = 0.05
EXACT = 12  # pairs of which all signs are tried, 4,096; of more pairs, so many draws
DRAWS = 10_000
GROUPS = ZERO_SHOT, FROZEN, TUNED, OTHERS, PUBLISHED = (
    "Zero-shot CLIP",
    "Frozen CLIP, adapted",
    "Fine-tuned",
    "Others",
    "Published",
)
SPECIAL = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {c: f"{{{c}}}" for c in "[]*"}  # arguments of the \\ that ends a row before them
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)
START = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage{booktabs}
\usepackage{adjustbox}
\begin{document}
"""


def escape(text: str) -> str:
    """The text with the characters that LaTeX reads as commands made plain."""
    return printable(text).translate(SPECIAL)


def group_of(source: str, algorithm: str) -> str:
    """The heading a row stands under: how much of CLIP its method changes."""
    if source != MEASURED:
        return PUBLISHED
    try:
        cls = algorithms.get_algorithm_class(algorithm)
    except InputError:
        return OTHERS
    if cls.MAX_STEPS == 1:
        return ZERO_SHOT
    return FROZEN if cls.TAKES_FEATURES else TUNED


def p_value(differences: np.ndarray) -> float:
    """How often differences of random sign have a sum as high as theirs, exactly or,
    of more than EXACT pairs, over DRAWS seeded draws, their own signs among them.
    """
    n = len(differences)
    if n <= EXACT:
        signs = np.array([*itertools.product((1, -1), repeat=n)])
    else:
        signs = np.random.RandomState(0).choice((1, -1), (DRAWS, n))
        signs[0] = 1
    return float(np.mean(signs @ differences >= differences.sum() - 1e-12))


def compare(accs: pd.DataFrame, best: str) -> pd.Series:
    """p of each algorithm not being worse than the best; NaN with less than 2 pairs."""
    pairs = ["dataset", "environment", "trial_seed"]
    accs = accs.pivot(index=pairs, columns="algorithm", values="acc")

    def p(algorithm: str) -> float:
        differences = (accs[best] - accs[algorithm]).dropna().to_numpy()
        return p_value(differences) if len(differences) > 1 else np.nan

    return pd.Series({name: p(name) for name in accs if name != best}, dtype=float)


def marked(cells: list[str], means: pd.Series) -> list[str]:
    """A column's cells, the highest mean bold, the second underlined, ties alike."""
    shown = means.round(1)
    ranks = sorted({*shown.dropna()}, reverse=True)
    if shown.count() < 2:
        return cells
    commands = dict(zip(ranks, ("\\textbf", "\\underline"), strict=False))
    return [
        f"{commands[mean]}{{{text}}}" if mean in commands else text
        for text, mean in zip(cells, shown, strict=True)
    ]


def body(form: pd.DataFrame, p: pd.Series) -> str:
    """A wide form's rows by group; those with p of LEVEL or more have a dagger."""
    measured = form.index.get_level_values("source") == MEASURED
    n = measured.sum()  # they come first
    columns = []
    for name in form["mean"].columns:
        cells = texts(form, name, sign="$\\pm$")
        best = marked(cells[:n], form.loc[measured, ("mean", name)])
        columns.append(best + cells[n:])
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    for (source, _, name), *cells in zip(form.index, *columns, strict=True):
        dagger = "$^\\dagger$" if source == MEASURED and p.get(name, 0) >= LEVEL else ""
        line = " & ".join([escape(name) + dagger, *cells]) + r" \\"
        groups[group_of(source, name)].append(line)
    parts = ["\n".join(lines) for lines in groups.values() if lines]
    if len(parts) > 1:
        heading = rf"\multicolumn{{{len(columns) + 1}}}{{l}}{{\textit{{%s}}}} \\"
        names = [heading % group for group, lines in groups.items() if lines]
        parts = [f"{name}\n{part}" for name, part in zip(names, parts, strict=True)]
    return "\n\\midrule\n".join(parts)


def table(title: str, form: pd.DataFrame, accs: pd.DataFrame, selection: str) -> str:
    """A wide form as a LaTeX table; `accs` are the trials behind its measured rows."""
    own = form["mean"].xs((MEASURED, ""), level=["source", "protocol"])
    best = own[AVERAGE].idxmax() if own[AVERAGE].notna().any() else None
    p = pd.Series(dtype=float) if best is None else compare(accs, best)
    columns = [escape(name) for name in form["mean"].columns]
    return rf"""\begin{{table}}
\caption{{{caption(title, form, best, p, selection)}}}
\centering
\adjustbox{{max width=\textwidth}}{{%
\begin{{tabular}}{{l{"c" * len(columns)}}}
\toprule
{" & ".join(["Algorithm", *columns])} \\
\midrule
{body(form, p)}
\bottomrule
\end{{tabular}}}}
\end{{table}}"""


def caption(
    title: str, form: pd.DataFrame, best: str | None, p: pd.Series, selection: str
) -> str:
    """What the table shows, how it was made, and what its marks claim."""
    what = "the test domains of each dataset" if title == AVERAGES else escape(title)
    trials = sorted({int(n) for n in form["n"].stack() if n > 0})
    number = " to ".join(map(str, dict.fromkeys(trials[:1] + trials[-1:]))) or "no"
    number += " trial" if trials == [1] else " trials"
    parts = [
        f"Test accuracy in percent on {what}, mean and standard error over {number}.",
        f"Model selection: {escape(selection)}.",
        "Bold: the best; underlined: the second.",
    ]
    if p.notna().any():
        parts.append(
            rf"$\dagger$: not significantly below {escape(best)}, the best on average "
            "(one-sided sign-flip permutation test, paired over environments and "
            rf"trials, $p \geq {LEVEL}$; with fewer than five pairs always so)."
        )
    untested = escape(", ".join(p.index[p.isna()]))
    if untested:
        parts.append(
            f"No claim is made of {untested}: fewer than two pairs to compare."
        )
    if best is None:
        parts.append("No claim is made: no row is complete.")
    sources = [*form.index.get_level_values("source").unique()]
    sources = [escape(source) for source in sources if source not in (MEASURED, "")]
    if sources:
        parts.append(
            f"Published figures, not compared: {'; '.join(sources)}; protocols differ."
        )
    return " ".join(parts)


def document(
    wides: dict[type[SelectionMethod], dict[str, pd.DataFrame]],
    chosen: dict[type[SelectionMethod], pd.DataFrame],
) -> str:
    """A LaTeX document of all tables; `chosen` are the accuracies behind them."""
    parts = []
    for method, forms in wides.items():
        for title, form in forms.items():
            accs = chosen[method]
            own = accs if title == AVERAGES else accs[accs["dataset"] == title]
            parts.append(table(title, form, own, method.name))
    return START + "\n\n".join(parts) + "\n\\end{document}\n"
