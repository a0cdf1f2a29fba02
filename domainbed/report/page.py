"""The report: a sweep's folder as one HTML page of tables and pictures.

What depends on the method of model selection is there once for each, and the page's
selector shows one. report_data makes the frames, report_figures the pictures of them,
report_blocks says what to see there, assets/report.html is the page.
"""

from collections.abc import Sequence
from pathlib import Path

import jinja2
import pandas as pd

from domainbed import algorithms, datasets
from domainbed.lib import reporting
from domainbed.lib.errors import InputError
from domainbed.lib.mixtures import facts_of, mixtures, same_draws
from domainbed.model_selection import OracleSelectionMethod, SelectionMethod
from domainbed.report import data
from domainbed.report.blocks import Chosen, absent, attention_block, method_blocks
from domainbed.report.coverage import STATES, coverage_block, read_runs, unknown_runs
from domainbed.report.parts import Block, Part, plural, summary
from domainbed.report.svg import PALETTE
from domainbed.tables import frames, protocol
from domainbed.tables.ties import ties

Methods = Sequence[type[SelectionMethod]]
TEMPLATE = Path(__file__).parents[1] / "assets" / "report.html"


def make_report(input_dir: Path, output: Path, methods: Methods) -> str:
    """The page's HTML; InputError if the folder holds no runs.

    Links to logs are relative to the folder of `output`.
    """
    if not input_dir.is_dir():
        raise InputError(
            f"--input_dir {input_dir} is no folder; give a sweep's output_dir."
        )
    loaded, runs = reporting.load_runs(input_dir), read_runs(input_dir)
    records, made = reporting.records_of(loaded), facts_of(input_dir)
    present = {*records.select("args.dataset"), *runs["dataset"].dropna()}
    if not present:
        raise InputError(
            f"--input_dir {input_dir} holds no results.jsonl with records; give a "
            "sweep's output_dir."
        )
    root, steps = output.parent, data.steps(records)
    draws = {method: data.draws(records, method) for method in methods}
    names = frames.in_order(present, datasets.DATASETS)
    rows = protocol.of_rows(loaded, made)
    sections = [(name, section(name, runs, steps, draws, rows, root)) for name in names]
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=input_dir.resolve().name,
        facts=facts(runs, names),
        warnings=[
            text.removeprefix("warning: ")
            for text in (*same_draws(records), *mixtures(made))
        ],
        methods=[method.name for method in methods],
        palette=PALETTE,
        overview=overview(draws, names, rows) if len(names) > 1 else [],
        unknown=unknown_runs(runs, root),
        sections=sections,
    )


def section(
    dataset: str,
    runs: pd.DataFrame,
    steps: pd.DataFrame,
    draws: dict[type[SelectionMethod], pd.DataFrame],
    rows: protocol.Rows,
    root: Path,
) -> list[Block]:
    """The blocks of one dataset."""

    def own(frame: pd.DataFrame) -> pd.DataFrame:
        return frame[frame["dataset"] == dataset]

    runs, steps = own(runs).infer_objects(), own(steps)
    last = max((env for envs in runs["test_envs"] for env in envs), default=-1)
    numbered = [f"env{env}" for env in range(last + 1)]
    names = [*frames.environments(dataset)] or numbered
    oracle = own(draws[OracleSelectionMethod])
    methods = frames.in_order(rows.get(dataset, ()), algorithms.ALGORITHMS)
    apart = protocol.apart(rows, [dataset], methods)
    options = [
        Chosen(method, own(frame), oracle, steps, runs, names, apart)
        for method, frame in draws.items()
    ]
    first = next((option for option in options if not option.draws.empty), None)
    attention = attention_block(first) if first else None
    return [
        *method_blocks(options),
        *([attention] if attention else []),
        coverage_block(runs, names, root),
    ]


def facts(runs: pd.DataFrame, names: list[str]) -> str:
    """The sweep in one sentence."""
    states = runs["state"].value_counts()
    counts = [f"{states[state]:,} {state}" for state in STATES if state in states]
    known = runs.dropna(subset="algorithm")
    return (
        f"{plural(len(runs), 'run')} ({', '.join(counts)}): "
        f"{plural(known['algorithm'].nunique(), 'method')} on {', '.join(names)}, "
        f"{plural(known['trial_seed'].nunique(), 'trial')}, "
        f"{plural(known['hparams_seed'].nunique(), 'hyperparameter draw')}."
    )


def overview(
    draws: dict[type[SelectionMethod], pd.DataFrame],
    names: list[str],
    rows: protocol.Rows,
) -> list[Part]:
    """The methods' averages on every dataset."""
    parts = []
    for method, frame in draws.items():
        if frame.empty:
            parts.append(absent(method))
            continue
        accs = data.accuracies(frame[frame["chosen"]])
        means = frames.averages(accs)
        means["environment"] = means["dataset"]
        mean, err = data.wide(means, names)
        mean[frames.AVERAGE] = mean.apply(frames.mean_of, axis=1)
        err[frames.AVERAGE] = float("nan")
        apart = protocol.apart(rows, names, [*mean.index])
        words = [ties(accs, apart).in_words] if len(mean) > 1 else []
        parts.append(Part(method.name, words, summary(mean, err, apart)))
    return parts
