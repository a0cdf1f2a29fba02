"""The report: a sweep's folder as one HTML page of tables and pictures.

What depends on the method of model selection is there once for each, and the page's
selector shows one. `data` makes the frames, `figures` the pictures of them, `blocks`
says what to see there, assets/report.html is the page.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from domainbed import datasets
from domainbed.lib import reporting
from domainbed.lib.errors import InputError
from domainbed.lib.mixtures import facts_of, mixtures, same_draws
from domainbed.model_selection import OracleSelectionMethod, SelectionMethod
from domainbed.report import data, few_shot
from domainbed.report.blocks import attention_block, method_blocks
from domainbed.report.chosen import Chosen, absent
from domainbed.report.coverage import STATES, coverage_block, read_runs, unknown_runs
from domainbed.report.many import with_ranks
from domainbed.report.parts import Block, Part, differences, plural, summary
from domainbed.report.svg import rendered
from domainbed.tables import frames, protocol
from domainbed.tables.few_shot_records import (
    METHODS,
    accuracies,
    all_few_shot,
    protocols,
)
from domainbed.tables.ties import ties

Methods = Sequence[type[SelectionMethod]]


class Sweep(NamedTuple):
    """A folder's runs: their records, what they were made from, a row for each of
    `read_runs`; the algorithm to compare with, and where links begin.
    """

    loaded: protocol.Runs
    made: protocol.Made
    runs: pd.DataFrame
    reference: str | None
    root: Path


def make_report(
    input_dir: Path, output: Path, methods: Methods, reference: str | None = None
) -> str:
    """The page's HTML; InputError if the folder holds no runs.

    Links to logs are relative to the folder of `output`. With a reference, an
    algorithm, tables have differences to it beside them.
    """
    if not input_dir.is_dir():
        raise InputError(
            f"--input_dir {input_dir} is no folder; give a sweep's output_dir."
        )
    loaded, runs = reporting.load_runs(input_dir), read_runs(input_dir)
    records, made = reporting.records_of(loaded), facts_of(input_dir)
    frames.remember(records)
    present = {*records.select("args.dataset"), *runs["dataset"].dropna()}
    if not present:
        raise InputError(
            f"--input_dir {input_dir} holds no results.jsonl with records; give a "
            "sweep's output_dir."
        )
    sweep = Sweep(loaded, made, runs, reference, output.parent)
    if all_few_shot(records, runs["task"].dropna()):
        names = frames.in_order(present, datasets.of_task("few_shot"))
        content = of_few_shots(sweep, names)
    else:
        known = records.select("args.algorithm").unique()
        frames.check_reference(reference, known)
        names = frames.in_order(present, datasets.DATASETS)
        content = of_domains(sweep, names, methods)
    return rendered(
        "report.html",
        title=input_dir.resolve().name,
        facts=facts(runs, names),
        warnings=[
            text.removeprefix("warning: ")
            for text in (*same_draws(records), *mixtures(made))
        ],
        unknown=unknown_runs(runs, output.parent),
        **content,
    )


def of_few_shots(sweep: Sweep, names: list[str]) -> dict[str, Any]:
    """What a page of few-shot runs has of its own."""
    records = reporting.records_of(sweep.loaded)
    chosen = [
        few_shot.Chosen(
            method,
            accuracies(records, method),
            protocols(sweep.loaded, sweep.made, method),
            sweep.reference,
        )
        for method in METHODS
    ]
    known = (name for own in chosen for name in own.names)
    frames.check_reference(sweep.reference, [*dict.fromkeys(known)])
    return {
        "methods": [own.method.name for own in chosen],
        "overview": few_shot.overview(chosen),
        "sections": [
            (name, few_shot.section(name, chosen, sweep.runs, sweep.root))
            for name in names
        ],
    }


def of_domains(sweep: Sweep, names: list[str], methods: Methods) -> dict[str, Any]:
    """What a page of runs on domains has of its own."""
    records = reporting.records_of(sweep.loaded)
    rows = protocol.of_rows(sweep.loaded, sweep.made)
    steps, groups = data.steps(records), reporting.get_grouped_records(records)
    draws = {method: data.draws(sweep.loaded, groups, method) for method in methods}
    several = len(names) > 1
    return {
        "methods": [method.name for method in methods],
        "overview": overview(draws, names, rows, sweep.reference) if several else [],
        "sections": [
            (name, section(name, sweep, steps, draws, rows)) for name in names
        ],
    }


def section(
    dataset: str,
    sweep: Sweep,
    steps: pd.DataFrame,
    draws: dict[type[SelectionMethod], pd.DataFrame],
    rows: protocol.Rows,
) -> list[Block]:
    """The blocks of one dataset."""

    def own(frame: pd.DataFrame) -> pd.DataFrame:
        return frame[frame["dataset"] == dataset]

    runs, steps = own(sweep.runs).infer_objects(), own(steps)
    last = max((env for envs in runs["test_envs"] for env in envs), default=-1)
    numbered = [f"env{env}" for env in range(last + 1)]
    names = [*frames.environments(dataset)] or numbered
    oracle = own(draws[OracleSelectionMethod])
    options = [
        Chosen(
            method,
            own(frame),
            oracle,
            steps,
            runs,
            names,
            rows.get(dataset, {}),
            sweep.reference,
        )
        for method, frame in draws.items()
    ]
    first = next((option for option in options if not option.draws.empty), None)
    attention = attention_block(first) if first else None
    return [
        *method_blocks(options),
        *([attention] if attention else []),
        coverage_block(runs, names, sweep.root),
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
    reference: str | None,
) -> list[Part]:
    """The methods' averages on every dataset."""
    parts = []
    for method, frame in draws.items():
        if frame.empty:
            parts.append(absent(method))
            continue
        accs = data.accuracies(frame[frame["chosen"]])
        mean, err = by_dataset(accs, names)
        apart = protocol.apart(rows, names, [*mean.index])
        words = [ties(accs, apart).in_words] if len(mean) > 1 else []
        summaries = [summary(mean, err, apart)]
        if reference in mean.index:
            less = by_dataset(frames.less(accs, reference), names)
            summaries.append(differences(*less, apart, reference))
        scores = frames.trial_means(accs[~accs["algorithm"].isin(apart.names)])
        parts.append(with_ranks(Part(method.name, words, summaries), scores))
    return parts


def by_dataset(
    accs: pd.DataFrame, names: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Means and errors of the averages, algorithms x datasets, then the datasets' mean,
    which has no error.
    """
    means = frames.averages(accs)
    mean, err = data.wide(means.assign(environment=means["dataset"]), names)
    mean[frames.AVERAGE] = mean.apply(frames.mean_of, axis=1)
    err[frames.AVERAGE] = float("nan")
    return mean, err
