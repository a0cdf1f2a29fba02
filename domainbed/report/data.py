"""Frames behind the report's pictures: steps, draws, what runs cost, attention.

Accuracies are in percent. A draw is a hyperparameter draw; of the runs of one
(algorithm, test environment, trial) a selection method chooses one draw.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from domainbed.lib import reporting
from domainbed.lib.misc import read_json
from domainbed.lib.query import Q
from domainbed.model_selection import SelectionMethod, get_test_records, held_out_accs
from domainbed.names import algorithm_names
from domainbed.tables import frames
from domainbed.tables.frames import environment_name

BRANCHES = ("image", "self", "cross", "states")
Weights = dict[str, dict[str, np.ndarray]]  # name -> {branch: (L,) or (L + 1,)}
CELL = ["dataset", "algorithm", "test_env", "trial_seed"]  # where one draw is chosen


def steps(records: Q) -> pd.DataFrame:
    """A row per checkpoint of the runs with one test environment.

    Columns CELL, hparams_seed, step, val (mean of the others' out-splits), test (its
    in-split), step_time in ms, mem_gb.
    """
    rows = []
    for record in get_test_records(records):
        args = record["args"]
        env = args["test_envs"][0]
        val = held_out_accs(record)
        cell = (args["dataset"], args["algorithm"], env, args["trial_seed"])
        accs = (np.mean(val) if val else np.nan, record.get(f"env{env}_in_acc", np.nan))
        cost = (1000 * number(record, "step_time"), number(record, "mem_gb"))
        draw = (args["hparams_seed"], record["step"])
        rows.append((*cell, *draw, *(100 * acc for acc in accs), *cost))
    names = ["hparams_seed", "step", "val", "test", "step_time", "mem_gb"]
    return pd.DataFrame(rows, columns=[*CELL, *names])


def number(record: dict[str, Any], key: str) -> float:
    value = record.get(key)
    return float(value) if reporting.is_number(value) else float("nan")


def draws(
    runs: list[tuple[Path, Q]], groups: Q, method: type[SelectionMethod]
) -> pd.DataFrame:
    """A row per draw of every cell: CELL, hparams_seed, val, test, chosen, hparams.

    Of those that are chosen also the step and the run's folder. `groups` are of the
    runs' records.
    """
    folders = {id(r["args"]): folder for folder, run in runs for r in run}
    rows = []
    for group in groups:
        cell = [group[name] for name in CELL]
        for place, (acc, own) in enumerate(method.hparams_accs(group["records"])):
            first = own[0]
            _, record = method.chosen(own) if place == 0 else (None, None)
            rows.append(
                (
                    *cell,
                    first["args"]["hparams_seed"],
                    100 * acc["val_acc"],
                    100 * acc["test_acc"],
                    place == 0,
                    first.get("hparams", {}),
                    record and record["step"],
                    record and folders[id(record["args"])],
                )
            )
    names = ["hparams_seed", "val", "test", "chosen", "hparams", "step", "folder"]
    frame = pd.DataFrame(rows, columns=[*CELL, *names])
    return frame.astype({"chosen": bool})


def accuracies(draws: pd.DataFrame) -> pd.DataFrame:
    """Chosen draws, as frames.accuracies gives them."""
    datasets = draws["dataset"].unique()
    names = {dataset: frames.environments(dataset) for dataset in datasets}
    pairs = zip(draws["dataset"], draws["test_env"], strict=True)
    environment = [environment_name(names[dataset], env) for dataset, env in pairs]
    return draws.assign(environment=environment, acc=draws["test"] / 100)


def wide(means: pd.DataFrame, columns: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """mean and err of a long frame, algorithms x environments, in the tables' order."""
    rows = frames.in_order(means["algorithm"], algorithm_names())
    form = means.pivot(index="algorithm", columns="environment", values=["mean", "err"])
    mean, err = (form[name].reindex(rows, columns=columns) for name in ("mean", "err"))
    return mean, err


def selection_losses(draws: pd.DataFrame, oracle: pd.DataFrame) -> pd.DataFrame:
    """What was chosen, what the oracle and what the best draw would have been.

    A row per algorithm, its index; means over test environments and trials.
    """
    groups = draws.groupby(CELL)["test"]
    cells = pd.DataFrame(
        {
            "chosen %": draws[draws["chosen"]].set_index(CELL)["test"],
            "oracle %": oracle[oracle["chosen"]].set_index(CELL)["test"],
            "best draw %": groups.max(),
        }
    )
    means = cells.groupby("algorithm").mean()
    means.insert(2, "lost to the oracle", means["oracle %"] - means["chosen %"])
    return means.assign(
        **{"lost to the best": means["best draw %"] - means["chosen %"]}
    )


def curves(steps: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """The chosen runs' checkpoints, averaged over trials.

    Columns algorithm, test_env, step, val, test; at most 60 steps of an algorithm.
    """
    own = steps.merge(chosen[[*CELL, "hparams_seed"]], on=[*CELL, "hparams_seed"])
    keys = ["algorithm", "test_env", "step"]
    means = own.groupby(keys, as_index=False)[["val", "test"]].mean()
    few = [every_nth(group) for _, group in means.groupby(keys[:2], sort=False)]
    return pd.concat(few) if few else means


def every_nth(rows: pd.DataFrame, most: int = 60) -> pd.DataFrame:
    """At most so many of the rows, evenly spread, the first and the last among them."""
    if len(rows) <= most:
        return rows
    return rows.iloc[np.linspace(0, len(rows) - 1, most).round().astype(int)]


def costs(steps: pd.DataFrame, runs: pd.DataFrame, mean: pd.DataFrame) -> pd.DataFrame:
    """A row per algorithm: accuracy, parameters, step_time in ms, mem_gb.

    `mean` is of algorithms x environments; the accuracy is over those environments that
    all have. The first checkpoint's step warms up: it counts where there is no other.
    """
    later = steps[steps["step"] > 0]
    time = steps.groupby("algorithm")["step_time"].median()
    time = later.groupby("algorithm")["step_time"].median().combine_first(time)
    frame = pd.DataFrame({"accuracy": mean.dropna(axis=1).mean(axis=1)})
    parameters = pd.to_numeric(runs["parameters"], errors="coerce")
    frame["parameters"] = parameters.groupby(runs["algorithm"]).median()
    frame["step_time"] = time
    frame["mem_gb"] = steps.groupby("algorithm")["mem_gb"].max()
    return frame.reset_index(names="algorithm").dropna(subset="accuracy")


def dominated_by(costs: pd.DataFrame, names: list[str]) -> pd.Series:
    """Of each row of `costs` the most accurate algorithm that beats it, or "".

    It is at least as accurate and costs no more, in each of `names` that both know, and
    is better in one of these; both know at least one.
    """

    def beats(other: pd.Series, row: pd.Series) -> bool:
        known = [n for n in names if not (np.isnan(row[n]) or np.isnan(other[n]))]
        gains = [other["accuracy"] - row["accuracy"], *(row[known] - other[known])]
        return bool(known) and min(gains) >= 0 and max(gains) > 0

    def best(row: pd.Series) -> str:
        own = [other for _, other in costs.iterrows() if beats(other, row)]
        return max(own, key=lambda other: other["accuracy"])["algorithm"] if own else ""

    return pd.Series([best(row) for _, row in costs.iterrows()], costs.index, dtype=str)


def sensitivity(draws: pd.DataFrame) -> pd.DataFrame:
    """Test accuracy against every hyperparameter that varies, over test environments.

    Columns algorithm, hparam, trial_seed, hparams_seed, value, val, test and gain, the
    test accuracy less the mean of the trial's draws.
    """
    rows = []
    draws = draws.sort_values(["trial_seed", "hparams_seed"], kind="stable")
    for algorithm, own in draws.groupby("algorithm"):
        names = {name for hparams in own["hparams"] for name in hparams}
        for name in sorted(names):
            values = own["hparams"].map(lambda hparams, name=name: hparams.get(name))
            if values.map(repr).nunique() > 1:
                own_rows = own.assign(hparam=name, value=values, algorithm=algorithm)
                rows.append(own_rows)
    keys = ["algorithm", "hparam", "trial_seed", "hparams_seed"]
    if not rows:
        return pd.DataFrame(columns=[*keys, "value", "val", "test", "gain"])
    groups = pd.concat(rows).groupby(keys, sort=False, as_index=False)
    frame = groups.agg({"value": "first", "val": "mean", "test": "mean"})
    trials = frame.groupby(keys[:3])["test"]
    return frame.assign(gain=frame["test"] - trials.transform("mean"))


def is_place(value: Any) -> bool:
    """Whether it is a number that has a place on an axis."""
    return reporting.is_number(value) and abs(value) < 1e300  # NaN is not


def rank_correlations(rows: pd.DataFrame) -> pd.Series:
    """Of `sensitivity`'s gain with the value, by (algorithm, hparam).

    0 where all gains are equal and where values are no numbers.
    """
    found = {}
    for key, own in rows.groupby(["algorithm", "hparam"]):
        values = own["value"]
        if values.map(is_place).all() and own["gain"].round(6).nunique() > 1:
            found[key] = values.astype(float).rank().corr(own["gain"].rank())
    names = pd.MultiIndex.from_frame(rows[["algorithm", "hparam"]].drop_duplicates())
    return pd.Series(found, dtype=float).reindex(names).fillna(0.0)


def attention(chosen: pd.DataFrame, names: list[str]) -> dict[str, dict[str, Weights]]:
    """algorithm -> {"domains", "classes" or "used": weights}, means over chosen runs.

    A domain's weights are of the runs that did not train on it, all others of all.
    """
    found: dict[str, dict[str, dict[str, list]]] = {}
    for run in chosen.itertuples():
        summary = read_attention(run.folder)
        unseen = environment_name(names, run.test_env)
        domains = summary.get("environments", {})
        parts = {
            "domains": {unseen: domains[unseen]} if unseen in domains else {},
            "classes": summary.get("classes", {}),
            "used": summary.get("used", {}),
        }
        for kind, own in parts.items():
            lists = found.setdefault(run.algorithm, {}).setdefault(kind, {})
            for name, weights in own.items():
                lists.setdefault(name, []).append(weights)
    return {
        algorithm: {
            kind: {name: mean_weights(lists) for name, lists in own.items()}
            for kind, own in kinds.items()
        }
        for algorithm, kinds in found.items()
    }


def read_attention(folder: Path) -> dict[str, Weights]:
    """The run's layer_attention.json; {} if that does not hold what it should."""
    try:
        return {
            kind: {
                name: {branch: shares(row, kind) for branch, row in own.items()}
                for name, own in weights.items()
            }
            for kind, weights in read_json(folder / "layer_attention.json").items()
        }
    except (AttributeError, TypeError, ValueError):
        return {}


def shares(row: list[float], kind: str) -> np.ndarray:
    """The weights of the layers, (L,); ValueError unless they are parts of 1.

    Of the kind `used` a row may have nothing: all rows together are 1.
    """
    weights = np.array([*map(float, row)])
    total = weights.sum()
    if not (weights >= 0).all() or total > 1.01 or not (total or kind == "used"):
        raise ValueError(f"weights sum to {total}")
    return weights


def mean_weights(runs: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """{branch: (L,)}, over the runs that have as many layers as the first."""
    means = {}
    for branch in BRANCHES:
        rows = [weights[branch] for weights in runs if branch in weights]
        if rows:
            means[branch] = np.mean([r for r in rows if len(r) == len(rows[0])], axis=0)
    return means


def most_unusual(weights: Weights, n: int) -> Weights:
    """The n names whose weights are farthest from the mean of all, in their order."""
    away = dict.fromkeys(weights, 0.0)
    for branch in BRANCHES:
        own = {name: w[branch] for name, w in weights.items() if branch in w}
        if not own:
            continue
        mean = np.mean([*own.values()], axis=0)
        for name, layers in own.items():
            away[name] += float(np.abs(layers - mean).sum())
    kept = {*sorted(away, key=away.get, reverse=True)[:n]}
    return {name: w for name, w in weights.items() if name in kept}
