"""LaTeX tables as papers have them: best bold, second underlined, methods in groups."""

import pandas as pd

from domainbed.lib.errors import InputError
from domainbed.lib.reporting import printable
from domainbed.model_selection import SelectionMethod
from domainbed.tables.formats import WideTable, letters_of, mark_of, texts
from domainbed.tables.frames import AVERAGES, MEASURED, as_shown, headings

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
    | {
        "\\": r"\textbackslash{}",
        "†": r"\dag{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
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
    from domainbed.algorithms import get_algorithm_class  # other tables need no torch

    try:
        cls = get_algorithm_class(algorithm)
    except InputError:
        return OTHERS
    if cls.MAX_STEPS == 1:
        return ZERO_SHOT
    return FROZEN if cls.TAKES_FEATURES else TUNED


def marked(cells: list[str], means: pd.Series) -> list[str]:
    """A column's cells, the highest mean bold, the second underlined, ties alike."""
    shown = means.map(as_shown)
    ranks = sorted({*shown.dropna()}, reverse=True)
    if shown.count() < 2:
        return cells
    commands = dict(zip(ranks, ("\\textbf", "\\underline"), strict=False))
    return [
        f"{commands[mean]}{{{text}}}" if mean in commands else text
        for text, mean in zip(cells, shown, strict=True)
    ]


def body(table: WideTable) -> str:
    """A table's rows by group, with the letters of those that are alike."""
    form, ties, less = table
    measured = form.index.get_level_values("source") == MEASURED
    n = measured.sum()  # they come first
    columns = []
    for name in form["mean"].columns:
        cells = texts(form, name, "$\\pm$", less is not None)
        means = form.loc[measured, ("mean", name)]
        ranked = ~means.index.get_level_values("algorithm").isin(ties.apart.names)
        own = cells[:n]
        best = own if less else marked(own, means.where(ranked))
        columns.append(best + cells[n:])
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    for (source, _, name), *cells in zip(form.index, *columns, strict=True):
        mark = escape(mark_of(ties, source, name).strip())
        above = mark + letters_of(ties, source, name)
        label = escape(name) + (f"$^{{{above}}}$" if above else "")
        line = " & ".join([label, *cells]) + r" \\"
        groups[group_of(source, name)].append(line)
    parts = ["\n".join(lines) for lines in groups.values() if lines]
    if len(parts) > 1:
        heading = rf"\multicolumn{{{len(columns) + 1}}}{{l}}{{\textit{{%s}}}} \\"
        names = [heading % group for group, lines in groups.items() if lines]
        parts = [f"{name}\n{part}" for name, part in zip(names, parts, strict=True)]
    return "\n\\midrule\n".join(parts)


def table(title: str, own: WideTable, selection: str) -> str:
    """It in LaTeX."""
    columns = [*map(escape, headings([*own.form["mean"].columns]))]
    return rf"""\begin{{table}}
\caption{{{caption(title, own, selection)}}}
\centering
\adjustbox{{max width=\textwidth}}{{%
\begin{{tabular}}{{l{"c" * len(columns)}}}
\toprule
{" & ".join(["Algorithm", *columns])} \\
\midrule
{body(own)}
\bottomrule
\end{{tabular}}}}
\end{{table}}"""


def caption(title: str, own: WideTable, selection: str) -> str:
    """What the table shows, how it was made, and what its marks claim."""
    form = own.form
    what = "the test domains of each dataset" if title == AVERAGES else escape(title)
    trials = sorted({int(n) for n in form["n"].stack() if n > 0})
    number = " to ".join(map(str, dict.fromkeys(trials[:1] + trials[-1:]))) or "no"
    number += " trial" if trials == [1] else " trials"
    parts = [
        f"Test accuracy in percent on {what}, mean and standard error over {number}.",
        f"Model selection: {escape(selection)}.",
        *([] if own.less else ["Bold: the best; underlined: the second."]),
        escape(own.ties.note),
    ]
    sources = [*form.index.get_level_values("source").unique()]
    sources = [escape(source) for source in sources if source not in (MEASURED, "")]
    if sources:
        parts.append(
            f"Published figures, not compared: {'; '.join(sources)}; protocols differ."
        )
    return " ".join(parts)


def document(
    tables: dict[type[SelectionMethod], dict[str, WideTable]],
) -> str:
    """A LaTeX document of all tables."""
    parts = [
        table(title, each, method.name)
        for method, own in tables.items()
        for title, each in own.items()
    ]
    return START + "\n\n".join(parts) + "\n\\end{document}\n"
