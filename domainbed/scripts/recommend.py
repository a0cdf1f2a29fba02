"""Say which way of adapting CLIP suits your pictures, and how to train it.

DIR holds DOMAIN/CLASS/PICTURE: each domain is left out once, and the methods that train
on stored features are ranked by their accuracy there. Or it holds CLASS/PICTURE: five
folds of the pictures are left out instead. Within the budget every method has a run for
each domain, from cheap to dear; then, for all of these, come two further draws of
hyperparameters and two further trials. The same command goes on where it ended.
"""

import argparse
import shlex
from collections.abc import Iterator
from statistics import median
from typing import NamedTuple

from domainbed import algorithms
from domainbed.datasets_folds import PREFIX as FOLDS
from domainbed.lib.errors import InputError, check_at_least, exits_on_input_error
from domainbed.lib.paths import user_path
from domainbed.lib.progress import add_quiet, silenced
from domainbed.model_selection import IIDAccuracySelectionMethod as SELECTION
from domainbed.recommend.trials import COSTS, TIME, Trials, cost_of, extent, shown
from domainbed.scripts.compare import Sweep, paired
from domainbed.tables import comparison, frames
from domainbed.tables.recommendation import Ranking, ranking

RESAMPLES = 10_000  # as of compare
INTERVALS = "Intervals: other pictures of these domains (paired bootstrap over images)."
BEST = "Being the best of several, its own accuracy is somewhat too high."


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="recommend",
        usage="python -m domainbed.scripts.recommend --data DIR --budget 10m",
        description=__doc__,
    )
    add = parser.add_argument
    add("--data", required=True, type=user_path, metavar="DIR", help="your pictures")
    add("--budget", default="10m", help="time, as 90s, 10m or 1h; default: 10m")
    add("--clip_backbone", default="ViT-B/16", help="emoji, OpenAI's name or a path")
    add("--algorithms", nargs="+", help=f"default: {', '.join(COSTS)}")
    add("--allow_missing_classes", action="store_true", help="as of train")
    add("--jobs", type=int, help="runs at a time; default: as of the launcher pool")
    add(
        "--output_dir",
        type=user_path,
        default="recommend_output",
        help="for features and runs, which the same command finds again",
    )
    add_quiet(parser)
    return parser.parse_args(argv)


def methods_of(args: argparse.Namespace) -> list[str]:
    """The methods to try, the cheapest first; InputError for one that takes images."""
    names = []
    for name in args.algorithms or COSTS:
        cls = algorithms.get_algorithm_class(name)
        if not cls.TAKES_FEATURES:
            raise InputError(
                f"{name} does not train on stored features; --algorithms can be those "
                f"that do, such as {', '.join(COSTS)}."
            )
        names.append(cls.__name__)
    if len({*names}) < 2:
        raise InputError("--algorithms needs two names at least, to rank them.")
    return sorted({*names}, key=lambda name: (cost_of(name), names.index(name)))


class Found(NamedTuple):
    """A ranking, and the trial, draw and steps to train the best method with."""

    ranking: Ranking
    trial: int
    draw: int
    steps: int


def find(folders: list[str], dataset: str, names: list[str]) -> Found:
    """What the runs in these folders say of the methods."""
    sweep = Sweep(folders, SELECTION.name)
    records = sweep.records.filter(lambda r: r["args"]["algorithm"] in names)
    accs = frames.accuracies(records, SELECTION)
    answers = {name: sweep.answers(dataset, name) for name in names}

    def before(best: str, other: str) -> comparison.Difference:
        cells = paired(answers[best], answers[other], f"{best} and {other}")
        every = [[*trials.values()] for trials in cells.values()]
        return comparison.difference(every, RESAMPLES)

    ranked = ranking(accs, before)
    chosen: dict[tuple[int, int], list[tuple[float, int]]] = {}
    for group in sweep.groups.filter_equals("algorithm", ranked.best):
        for run_acc, run_records in SELECTION.hparams_accs(group["records"]):
            _, record = SELECTION.chosen(run_records)
            key = group["trial_seed"], record["args"]["hparams_seed"]
            chosen.setdefault(key, []).append((run_acc["val_acc"], record["step"]))
    (trial, draw), own = max(
        chosen.items(), key=lambda item: frames.mean_of(val for val, _ in item[1])
    )
    return Found(ranked, trial, draw, round(median(step for _, step in own)) + 1)


def command_of(trials: Trials, found: Found) -> str:
    """What trains the best method on all pictures."""
    best = found.ranking.best
    words = ["python", "-m", "domainbed.scripts.train", "--dataset", trials.name]
    words += ["--algorithm", best, "--hparams", trials.hparams(best)]
    words += ["--hparams_seed", str(found.draw), "--trial_seed", str(found.trial)]
    words += ["--steps", str(found.steps), "--test_envs", "none"]
    own = algorithms.get_algorithm_class(best)
    if not (own.CHOOSES or own.WATCHES):  # by what is held out
        words += ["--holdout_fraction", "0"]
    if trials.args.allow_missing_classes:
        words.append("--allow_missing_classes")
    words += ["--feature_dir", trials.features]
    words += ["--output_dir", str(trials.folder / "model")]
    return shlex.join(words)


def lines_of(
    trials: Trials, found: Found, left_out: dict[str, str], n_rounds: int
) -> Iterator[str]:
    """The report."""
    dataset, ranked = trials.dataset, found.ranking
    names = ", ".join(map(dataset.environment_name, range(len(dataset))))
    n_trials, n_draws = extent(n_rounds)
    yield (
        f"{sum(map(len, dataset)):,} pictures, {dataset.num_classes} classes; left out "
        f"in turn: {names}; trials: {n_trials}, draws of hyperparameters: {n_draws}."
    )
    yield "Draws and steps are chosen on what is held out of the others."
    yield ""
    yield from ranked.lines()
    yield ""
    yield f"{INTERVALS} {ranked.note} {BEST}"
    for why in dict.fromkeys(left_out.values()):
        who = ", ".join(name for name, own in left_out.items() if own == why)
        yield f"Left out for want of time: {who}." if why == TIME else f"{who}: {why}"
    yield ""
    by_cost = sorted((row.algorithm for row in ranked.rows), key=cost_of)
    of_folds = trials.name.startswith(FOLDS)
    here = "pictures such as these" if of_folds else "pictures of these domains"
    elsewhere = "on other folds" if of_folds else "on other domains"
    yield ranked.advice(by_cost, here, elsewhere)
    yield f"On all pictures {ranked.best} is trained by"
    yield ""
    yield f"    {command_of(trials, found)}"


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_at_least(args, jobs=1)
    names = methods_of(args)
    trials = Trials(args)
    with silenced(args.quiet, result=True):
        trials.store()
        measured, left_out = trials.first_round(names)
        if len(measured) < 2:
            why = next((why for why in left_out.values() if why != TIME), None)
            raise InputError(
                why
                or f"the budget of {args.budget} was too small: after "
                f"{shown(trials.budget.spent)} fewer than two methods had a run for "
                "each domain. What is done is kept; give more."
            )
        n_rounds = trials.further_rounds(measured)
        folders = [trials.round_folder(number) for number in range(n_rounds)]
        found = find(folders, trials.name, measured)
        for line in lines_of(trials, found, left_out, n_rounds):
            print(line)


if __name__ == "__main__":
    main()
