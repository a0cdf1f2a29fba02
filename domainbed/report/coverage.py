"""Which runs of a sweep are there, which are missing, and where their logs are."""

import functools
import itertools
import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from markupsafe import Markup

from domainbed.lib import reporting
from domainbed.lib.misc import read_json
from domainbed.names import algorithm_names
from domainbed.report.parts import Block, Part, Table, plural, table
from domainbed.runs.folder import RunFolder
from domainbed.tables import frames

RUN = ["algorithm", "test_envs", "trial_seed", "hparams_seed"]  # within a dataset
OF_FEW_SHOT = ["shots", "classes", "source"]
FACTS = ["dataset", "task", *RUN, *OF_FEW_SHOT]
FILES = ("run.json", "results.jsonl", "err.txt", "failed", "heartbeat", "done")
MORE = ["folder", "state", "error", "parameters", "device"]
STATES = ("done", "running", "waiting", "failed", "stale", "missing")  # best first
URGENCY = ["failed", "stale", "running", "waiting", "missing"]


def read_runs(input_dir: Path) -> pd.DataFrame:
    """A row per run's folder: dataset, task, RUN, OF_FEW_SHOT, and how it stands.

    Columns folder, state, error, parameters and device say how. What is not known of a
    run, or not of its task, is None.
    """
    rows = [run_facts(f) for f in sorted(input_dir.glob("*")) if is_run(f)]
    # As objects: seeds beside None would become floats.
    return pd.DataFrame(rows, columns=[*FACTS, *MORE], dtype=object)


def is_run(folder: Path) -> bool:
    """Whether the folder is a run's: by its files, or by a name that a sweep gives."""
    if not reporting.is_dir(folder):
        return False
    named = re.fullmatch("[0-9a-f]{32}", folder.name)
    return bool(named) or any((folder / name).exists() for name in FILES)


def run_facts(folder: Path) -> dict[str, Any]:
    """The row of a run's folder."""
    about = read_json(folder / "run.json")
    # As a record they are checked as records are.
    record = reporting.parse_record(json.dumps({"step": 0, "args": about.get("args")}))
    args = (record or reporting.first_record(folder) or {}).get("args", {})
    test_envs = args.get("test_envs")
    own = RunFolder(folder)
    state = own.state
    return {
        **{name: args.get(name) for name in FACTS},
        "test_envs": None if test_envs is None else tuple(test_envs),
        "folder": folder,
        "state": state,
        "error": own.last_error() if state in ("failed", "stale") else "",
        "parameters": about.get("parameters"),
        "device": about.get("device"),
    }


def expected(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per run that one dataset should have, with its state and its folder.

    Expected is every combination of the algorithms, test environments, trials and draws
    of which there is some run. Of several folders of one run the best counts.
    """
    names = frames.in_order(runs["algorithm"], algorithm_names())
    keys = [*RUN, *(name for name in OF_FEW_SHOT if runs[name].notna().all())]
    values = [names, *(sorted(runs[name].unique()) for name in keys[1:])]
    places = runs["state"].map(STATES.index).sort_values(kind="stable").index
    best = runs.loc[places].drop_duplicates(keys)
    grid = pd.DataFrame(itertools.product(*values), columns=keys)
    grid = grid.merge(best[[*keys, *MORE]], on=keys, how="left")
    return grid.fillna({"state": "missing", "error": ""})


def coverage_block(runs: pd.DataFrame, names: list[str], root: Path) -> Block:
    """What of a dataset is done, and a row for each run that is not."""
    grid = expected(runs)
    grid["environment"] = [
        *map(functools.partial(tested, names), grid.to_dict("records"))
    ]
    rest = grid[grid["state"] != "done"]
    text = f"{len(grid) - len(rest):,} of {len(grid):,} expected runs are done."
    if rest.empty:
        return Block("Coverage", [Part(None, [text])])
    cells = grid.groupby(["algorithm", "environment"], sort=False)["state"]
    counts = cells.value_counts().unstack(fill_value=0)
    counts = counts[[state for state in STATES if state in counts]].reset_index()
    most = "Expected is every combination of what this folder has some run of."
    return Block(
        "Coverage",
        [Part(None, [f"{text} {most}"], tables=[table(counts), problems(rest, root)])],
    )


def tested(names: list[str], run: dict[str, Any]) -> str:
    """What the run is called in the column of test domains."""
    if "shots" in run:
        source = f", from {run['source']}" if run.get("source") else ""
        return f"{plural(run['shots'], 'shot')}, {run['classes']} classes{source}"
    return " + ".join(frames.environment_name(names, env) for env in run["test_envs"])


def problems(rows: pd.DataFrame, root: Path) -> Table:
    """A row per run that is not done: its last words, and a link to its log."""
    order = rows["state"].map(URGENCY.index).sort_values(kind="stable").index
    rows = rows.loc[order]
    wanted = ("state", "algorithm", "environment", "trial_seed", "hparams_seed")
    return table(rows[[*wanted, "error"]].assign(log=log_links(rows, root)))


def log_links(rows: pd.DataFrame, root: Path) -> pd.Series:
    """A link to each run's log, relative to `root`; nothing if it has none."""

    def link(folder: Any) -> str:
        if not isinstance(folder, Path) or not RunFolder(folder).log.is_file():
            return ""
        path = os.path.relpath(RunFolder(folder).log, root)
        return Markup('<a href="{}">{}</a>').format(quote(path), folder.name[:8])

    # As objects: a column of strings would forget that these are markup.
    return pd.Series([*map(link, rows["folder"])], rows.index, dtype=object)


def unknown_runs(runs: pd.DataFrame, root: Path) -> Table | None:
    """The folders of which not even the arguments are known; None if there is none."""
    rows = runs[runs["algorithm"].isna()]
    if rows.empty:
        return None
    names = [folder.name for folder in rows["folder"]]
    frame = rows[["state", "error"]].assign(log=log_links(rows, root))
    frame.insert(1, "folder", names)
    return table(frame)
