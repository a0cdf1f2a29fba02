"""Model selection: which run and which step count, as pure functions of records.

Gulrajani & Lopez-Paz, 2021, https://arxiv.org/abs/2007.01434, section 3.
"""

import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from domainbed.lib.query import Q

RunAcc = dict[str, float]


def get_test_records(records: Q) -> Q:
    """The records with a single test environment."""
    return records.filter(lambda record: len(record["args"]["test_envs"]) == 1)


def environments(record: dict[str, Any], part: str) -> Sequence[int]:
    """The numbers of the environments of which the record has that part's accuracy."""
    return _environments(tuple(record), part)


@functools.lru_cache(
    maxsize=64
)  # all records of a sweep have the same few sets of keys
def _environments(keys: tuple[str, ...], part: str) -> tuple[int, ...]:
    matches = (re.fullmatch(rf"env(\d+)_{part}_acc", key) for key in keys)
    return tuple(sorted(int(match[1]) for match in matches if match))


def held_out_accs(record: dict[str, Any]) -> list[float]:
    """The accuracies on the out-splits of all environments but the tested one."""
    test_env = record["args"]["test_envs"][0]
    others = [env for env in environments(record, "out") if env != test_env]
    return [record[f"env{env}_out_acc"] for env in others]


def rank(val_acc: float) -> float:
    """What accuracies are compared by: NaN is worse than all."""
    return -math.inf if math.isnan(val_acc) else val_acc


def best(steps: list[tuple[RunAcc, Any]]) -> tuple[RunAcc, Any] | None:
    """The first of those whose val_acc is highest, None of none."""
    return max(steps, key=lambda step: rank(step[0]["val_acc"]), default=None)


class SelectionMethod:
    """A way to choose; a subclass says in `chosen` what a run is worth."""

    name: str

    def __init__(self):
        raise TypeError(f"{type(self).__name__} has class methods only")

    @classmethod
    def chosen(cls, run_records: Q) -> tuple[RunAcc, dict[str, Any]] | None:
        """(run_acc, the record that has that test_acc) of one draw, or None."""
        raise NotImplementedError

    @classmethod
    def run_acc(cls, run_records: Q) -> RunAcc | None:
        """{val_acc, test_acc} of the records of one hyperparameter draw, or None."""
        chosen = cls.chosen(run_records)
        return chosen and chosen[0]

    @classmethod
    def hparams_accs(cls, records: Q) -> Q:
        """(run_acc, records) of every draw in a group, best val_acc first."""
        runs = (
            records.group("args.hparams_seed")
            .map(lambda _, run_records: (cls.run_acc(run_records), run_records))
            .filter(lambda run_acc, _: run_acc is not None)
        )
        return runs.sorted(key=lambda run_acc, _: rank(run_acc["val_acc"]))[::-1]

    @classmethod
    def sweep_acc(cls, records: Q) -> float | None:
        """The test_acc of the draw with the best val_acc, None if there is none."""
        accs = cls.hparams_accs(records)
        return accs[0][0]["test_acc"] if accs else None


class OracleSelectionMethod(SelectionMethod):
    """The last step, by the test domain's own validation split."""

    name = "test-domain validation set (oracle)"

    @classmethod
    def chosen(cls, run_records):
        records = get_test_records(run_records).sorted("step")
        if not records:
            return None
        last = records[-1]
        test_env = last["args"]["test_envs"][0]
        val_acc = last.get(f"env{test_env}_out_acc")
        test_acc = last.get(f"env{test_env}_in_acc")
        if val_acc is None or test_acc is None:
            return None
        return {"val_acc": val_acc, "test_acc": test_acc}, last


class IIDAccuracySelectionMethod(SelectionMethod):
    """The step, and the draw, by the training domains' validation splits."""

    name = "training-domain validation set"
    test_key = "env{}_in_acc"

    @classmethod
    def _step_acc(cls, record: dict[str, Any]) -> RunAcc | None:
        test_env = record["args"]["test_envs"][0]
        test_acc = record.get(cls.test_key.format(test_env))
        val_accs = held_out_accs(record)
        if not val_accs or None in (test_acc, *val_accs):
            return None
        return {"val_acc": float(np.mean(val_accs)), "test_acc": test_acc}

    @classmethod
    def chosen(cls, run_records):
        records = get_test_records(run_records)
        steps = [(cls._step_acc(record), record) for record in records]
        return best([step for step in steps if step[0] is not None])


class LastEpochSelectionMethod(SelectionMethod):
    """The last step, whatever it is worth, and the draw by the validation splits.

    Of no such split all draws are alike. The few-shot task's.
    """

    name = "last epoch"

    @classmethod
    def chosen(cls, run_records):
        records = get_test_records(run_records).sorted("step")
        if not records:
            return None
        last, val_accs = records[-1], held_out_accs(records[-1])
        test_acc = last.get(f"env{last['args']['test_envs'][0]}_in_acc")
        if test_acc is None:
            return None
        val_acc = float(np.mean(val_accs)) if val_accs else 0.0
        return {"val_acc": val_acc, "test_acc": test_acc}, last


class IIDAutoLRAccuracySelectionMethod(IIDAccuracySelectionMethod):
    """As above, of runs that learned again with all training data (`fd_`)."""

    name = "auto lr training-domain validation set"
    test_key = "fd_env{}_in_acc"


class LeaveOneOutSelectionMethod(SelectionMethod):
    """The step, and the draw, by training domains left out one at a time.

    At each step it needs the run that tests on t alone and, for every other domain v,
    the run that tests on t and v.
    """

    name = "leave-one-domain-out cross-validation"

    @classmethod
    def _step_acc(cls, records: Q) -> tuple[RunAcc, dict[str, Any]] | None:
        """Of the records of one step."""
        single = get_test_records(records)
        if len(single) != 1:
            return None
        single = single[0]
        test_env = single["args"]["test_envs"][0]
        others = [env for env in environments(single, "in") if env != test_env]
        val_accs = {}
        for record in records:
            left_out = set(record["args"]["test_envs"]) - {test_env}
            if len(left_out) == 1:
                env = left_out.pop()
                val_accs[env] = record.get(f"env{env}_in_acc")
        test_acc = single.get(f"env{test_env}_in_acc")
        accs = [val_accs.get(env) for env in others]
        if not accs or None in accs or test_acc is None:
            return None
        return {"val_acc": float(np.mean(accs)), "test_acc": test_acc}, single

    @classmethod
    def chosen(cls, run_records):
        steps = run_records.group("step").map(lambda _, step: cls._step_acc(step))
        return best(steps.filter_not_none())
