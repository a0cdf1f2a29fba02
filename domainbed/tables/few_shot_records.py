"""What tables read of few-shot runs: accuracies of what was chosen, and protocols.

A block is what stands in one table: a number of shots, classes, source and targets.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

from domainbed import datasets
from domainbed.datasets_few_shot import names_of_targets, names_of_tests
from domainbed.lib.errors import InputError
from domainbed.lib.query import Q
from domainbed.model_selection import (
    IIDAccuracySelectionMethod,
    LastEpochSelectionMethod,
    SelectionMethod,
    environments,
)
from domainbed.names import algorithm_names
from domainbed.tables.frames import in_order
from domainbed.tables.protocol import AS_PUBLISHED, Made, Reading, Rows, Runs, of_rows

BLOCK = ["classes", "shots", "drawn_from", "transfer_to"]  # what tells tables apart
METHODS = (LastEpochSelectionMethod, IIDAccuracySelectionMethod)  # the protocol's first
BASE, NEW, TEST, TARGET = "base", "new", "test", "target"  # kinds of tests


def all_few_shot(records: Q, tasks: Iterable[str] = ()) -> bool:
    """Whether these, and runs of those tasks, are; InputError if only some are."""
    every = {*tasks, *(r["args"].get("task") for r in records)}
    kinds = {task == "few_shot" for task in every}
    if len(kinds) > 1:
        raise InputError(
            "few-shot runs stand beside others in --input_dir; give each their own."
        )
    return kinds == {True}


def row_of(record: dict[str, Any]) -> str:
    """The label of the record's row."""
    marked = record["hparams"].get("as_published", False)
    return record["args"]["algorithm"] + (AS_PUBLISHED if marked else "")


def in_table_order(labels: Iterable[str]) -> list[str]:
    """Each label of a row once."""
    names, marks = algorithm_names(), ("", AS_PUBLISHED)
    return in_order(labels, [name + mark for name in names for mark in marks])


def accuracies(records: Q, method: type[SelectionMethod]) -> pd.DataFrame:
    """What the method chose: a row per block, dataset, row, test and trial.

    Columns BLOCK, dataset, algorithm (the row's label), test_env, environment, kind (of
    the test), trial_seed, acc; in the order of the tables.
    """
    rows = []
    for (*block, dataset), label, trial, record in chosen(records, method):
        for env, (name, kind) in tests_of(record).items():
            acc = float(record[f"env{env}_in_acc"])
            rows.append((*block, dataset, label, env, name, kind, trial, acc))
    columns = ["dataset", "algorithm", "test_env", "environment", "kind", "trial_seed"]
    frame = pd.DataFrame(rows, columns=[*BLOCK, *columns, "acc"])
    places = {
        "dataset": in_order(frame["dataset"], datasets.of_task("few_shot")),
        "algorithm": in_table_order(frame["algorithm"]),
    }
    return frame.sort_values(
        [*BLOCK, *places, "test_env", "trial_seed"],
        key=lambda c: c.map(places[c.name].index) if c.name in places else c,
        ignore_index=True,
    )


def chosen(
    records: Q, method: type[SelectionMethod]
) -> Iterator[tuple[tuple, str, int, dict[str, Any]]]:
    """What the method chose: (values of BLOCK and dataset), row, trial, record."""
    for (*place, label, trial), own in records.group(cell_of):
        alone = own.map(of_one_test)
        if draws := method.hparams_accs(alone):
            _, best = method.chosen(draws[0][1])
            record = next(r for r, one in zip(own, alone, strict=True) if one is best)
            yield tuple(place), label, trial, record


def cell_of(record: dict[str, Any]) -> tuple:
    """Its values of BLOCK, dataset, row and trial: where one draw is chosen."""
    args = record["args"]
    source, targets = args.get("source") or "", args.get("transfer_to") or ()
    block = (args.get("classes", "all"), args.get("shots", 0))
    block += (source, " ".join(targets))
    return *block, args["dataset"], row_of(record), args["trial_seed"]


def title_of(place: tuple, whole: bool = False) -> str:
    """What stands above the table of these values of BLOCK and dataset.

    Unless it is `whole` it does not say what is transferred to.
    """
    classes, shots, source, targets, dataset = place
    about = f"{shots} {'shot' if shots == 1 else 'shots'}, {classes} classes"
    title = f"{dataset}, {about}" + (f", from {source}" if source else "")
    return title + (f", to {targets}" if whole and targets else "")


def of_one_test(record: dict[str, Any]) -> dict[str, Any]:
    """The record as one of its first test alone: what is chosen, is for all."""
    args = record["args"]
    return record | {"args": args | {"test_envs": args["test_envs"][:1]}}


def tests_of(record: dict[str, Any]) -> dict[int, tuple[str, str]]:
    """{environment: (name, kind)} of the tests that the record has accuracies of."""
    args = record["args"]
    own, targets = names_of(record)
    halves = args.get("classes") == BASE
    kinds = [(name, name.split(" ")[-1] if halves else TEST) for name in own]
    kinds += [(name, TARGET) for name in targets]
    return {
        env: pair
        for env, pair in enumerate(kinds, start=1)
        if f"env{env}_in_acc" in record
    }


def names_of(record: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What the record's own tests are called, and those that it transfers to.

    A dataset of the user's own may lie elsewhere by now: its records know the names.
    Tests of one that is not registered here have numbers.
    """
    args = record["args"]
    try:
        targets = names_of_targets(args.get("transfer_to") or ())
        if "environments" in record:
            return record["environments"][1 : -len(targets) or None], targets
        return names_of_tests(args["dataset"], args.get("classes", "all")), targets
    except (OSError, ValueError):
        return [f"env{env}" for env in environments(record, "in") if env], []


def protocols(
    runs: Runs,
    made: Made,
    method: type[SelectionMethod],
) -> Rows:
    """By the values of BLOCK and dataset: how each row's runs came about.

    Which images are drawn is another in each trial, of the data as of the split. Epochs
    are the method's own; at which step a run can be chosen says nothing of the last.
    """

    def place(record: dict[str, Any]) -> tuple[tuple, str]:
        *there, label, _ = cell_of(record)
        return tuple(there), label

    def cell(record: dict[str, Any]) -> tuple:
        return place(record)[0], record["args"]["trial_seed"]

    def held_out(record: dict[str, Any]) -> str:
        whole = record["hparams"].get("train_on_val", False)
        return "nothing" if whole else "the validation shots"

    def steps(record: dict[str, Any]) -> str:
        args = record["args"]
        asked, every = args.get("steps"), args.get("checkpoint_freq")
        words = "of the method's own epochs" if asked is None else str(asked)
        if every and method is not LastEpochSelectionMethod:
            words += f", chosen from every {every}th"
        return words

    read = Reading(place, cell, ("fingerprint", "split"), held_out, steps)
    return of_rows(runs, made, read)
