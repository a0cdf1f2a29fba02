"""The table of what methods cost, as text and LaTeX, from the script's JSON report."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from domainbed.tables.costs import SOURCES
from domainbed.tables.paper import escape

COLUMNS = {
    "memory_gb": "memory",
    "train_seconds": "training",
    "inference_seconds": "inference",
}


def table(report: dict[str, Any]) -> pd.DataFrame:
    """A row of texts per method, the figures from each source side by side."""
    columns = [("", "parameters")]
    columns += [
        (title, name) for title in SOURCES.values() for name in COLUMNS.values()
    ]
    rows = {}
    for method in report["methods"]:
        n = method["parameters"]
        cells = ["failed" if n is None else f"{n:,}"]
        for source in SOURCES:
            figures = method[source] or dict.fromkeys(COLUMNS)
            for column in COLUMNS:
                value = figures.get(column, "failed")
                cells.append(f"{value:,.2f}" if isinstance(value, float) else value)
        rows[method["algorithm"]] = ["-" if cell is None else cell for cell in cells]
    columns = pd.MultiIndex.from_tuples(columns)
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def about(report: dict[str, Any]) -> Iterator[str]:
    """Sentences: what was measured, on what, and what failed."""
    yield (
        f"Costs on {report['dataset']}, {report['items']:,} items: trainable "
        f"parameters, peak memory in GB, seconds of {report['steps']:,} training steps "
        f"with {report['batch_size']} items of each training domain, and of inference "
        "over all items."
    )
    if machine := report["machine"]:
        memory = "allocated on the GPU" if machine["gpu"] else "resident"
        facts = [f"{name} {value or 'none'}" for name, value in machine.items()]
        facts += [" ".join(pair) for pair in report["versions"].items()]
        yield f"Machine: {', '.join(facts)}; memory is what is {memory}."
    taken = [method["extraction_seconds"] for method in report["methods"]]
    taken = [seconds for seconds in taken if seconds is not None]
    if taken:
        yield f"Storing the features took {sum(taken):,.1f} s, once."
    for method in report["methods"]:
        for source, title in SOURCES.items():
            if error := (method[source] or {}).get("error"):
                yield f"{method['algorithm']} {title}: {error}"


def as_text(report: dict[str, Any]) -> str:
    return "\n".join([*about(report), "", table(report).to_string(), ""])


def as_latex(report: dict[str, Any]) -> str:
    """A table to \\input in a document that uses booktabs and adjustbox."""
    style = table(report).style.format_index(escape="latex")
    tabular = style.to_latex(
        column_format="l" + "r" * (1 + len(SOURCES) * len(COLUMNS)),
        multicol_align="c",
        hrules=True,
    )
    return rf"""\begin{{table}}
\caption{{{" ".join(map(escape, about(report)))}}}
\centering
\adjustbox{{max width=\textwidth}}{{%
{tabular.rstrip()}}}
\end{{table}}
"""
