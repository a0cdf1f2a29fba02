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
from domainbed.table_formats import texts
from domainbed.tables import AVERAGE, AVERAGES, MEASURED

LEVEL = 0.05
EXACT = 12  # pairs of which all signs are tried, 4,096; of more pairs, so many draws
DRAWS = 10_000
PUBLISHED = "Published"
GROUPS = ("Zero-shot CLIP", "Frozen CLIP, adapted", "Fine-tuned", "Others", PUBLISHED)
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
        return GROUPS[3]
    if cls.MAX_STEPS == 1:
        return GROUPS[0]
    return GROUPS[1] if cls.TAKES_FEATURES else GROUPS[2]


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


def table(title: str, form: pd.DataFrame, accs: pd.DataFrame, selection: str) -> str:
    """A wide form as a LaTeX table; `accs` are the trials behind its measured rows."""
    own = form[form.index.get_level_values("source") == MEASURED]
    best = own["mean"][AVERAGE].droplevel(["source", "protocol"])
    best = best.idxmax() if best.notna().any() else None
    p = compare(accs, best) if best else pd.Series(dtype=float)
    body = {}
    for column in form["mean"].columns:
        cells, n = texts(form, column, sign="$\\pm$"), len(own)
        body[column] = marked(cells[:n], own["mean"][column]) + cells[n:]
    rows: dict[str, list[str]] = {group: [] for group in GROUPS}
    for number, (source, _, name) in enumerate(form.index):
        dagger = "$^\\dagger$" if source == MEASURED and p.get(name, 0) >= LEVEL else ""
        cells = [escape(name) + dagger, *(column[number] for column in body.values())]
        rows[group_of(source, name)].append(" & ".join(cells) + r" \\")
    rows = {group: lines for group, lines in rows.items() if lines}
    if len(rows) > 1:
        heading = rf"\multicolumn{{{len(body) + 1}}}{{l}}{{\textit{{%s}}}} \\"
        rows = {g: [heading % escape(g), *lines] for g, lines in rows.items()}
    header = " & ".join(map(escape, ["Algorithm", *body])) + r" \\"
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{caption(title, form, best, p, selection)}}}",
            r"\centering",
            r"\adjustbox{max width=\textwidth}{%",
            rf"\begin{{tabular}}{{l{'c' * len(body)}}}",
            r"\toprule",
            header,
            r"\midrule",
            "\n\\midrule\n".join("\n".join(lines) for lines in rows.values()),
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
        ]
    )


def caption(
    title: str, form: pd.DataFrame, best: str | None, p: pd.Series, selection: str
) -> str:
    """What the table shows, how it was made, and what its marks claim."""
    what = "the test domains of each dataset" if title == AVERAGES else escape(title)
    trials = sorted({int(n) for n in form["n"].stack() if n > 0})
    number = " to ".join(map(str, dict.fromkeys(trials[:1] + trials[-1:]))) or "no"
    parts = [
        f"Test accuracy in percent on {what}, mean and standard error over {number} "
        "trials.",
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
