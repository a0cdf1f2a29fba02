import math

import pytest

from domainbed import model_selection as ms
from domainbed.lib.query import Q

NAN = math.nan


def record(test_envs, step, ins, outs, hparams_seed=0, **more):
    """A record with in- and out-accuracies of environments 0, 1, ..."""
    accs = {f"env{i}_in_acc": acc for i, acc in enumerate(ins)}
    accs |= {f"env{i}_out_acc": acc for i, acc in enumerate(outs)}
    args = {"test_envs": test_envs, "hparams_seed": hparams_seed}
    return {"step": step, "args": args, **accs, **more}


def test_oracle_takes_the_last_step():
    run = Q(
        [
            record([1], 2, [0, 0.5, 0], [0, 0.6, 0]),
            record([1], 0, [0, 0.9, 0], [0, 0.9, 0]),
        ]
    )
    acc = ms.OracleSelectionMethod.run_acc(run)
    assert acc == {"val_acc": 0.6, "test_acc": 0.5}


def test_iid_takes_the_best_step_by_the_other_domains_out_splits():
    run = Q(
        [
            record([1], 0, [0, 0.1, 0], [0.2, 1.0, 0.4]),
            record([1], 1, [0, 0.2, 0], [0.6, 0.0, 0.6]),
            record([1], 2, [0, 0.3, 0], [0.5, 0.0, 0.7]),  # a tie: the first stays
        ]
    )
    acc = ms.IIDAccuracySelectionMethod.run_acc(run)
    assert acc == {"val_acc": pytest.approx(0.6), "test_acc": 0.2}


def test_auto_lr_reports_the_run_on_all_data():
    run = Q([record([0], 0, [0.1, 0], [0, 0.5], fd_env0_in_acc=0.8)])
    acc = ms.IIDAutoLRAccuracySelectionMethod.run_acc(run)
    assert acc == {"val_acc": 0.5, "test_acc": 0.8}


def pairs(step, single, others):
    """What leave-one-out needs at a step, for test environment 0 of three."""
    yield record([0], step, single, [0, 0, 0])
    for env, acc in others.items():
        yield record([0, env], step, [0, *(acc if i == env else 0 for i in (1, 2))], [])


def test_leave_one_out_averages_the_left_out_domains():
    run = Q(
        [
            *pairs(0, [0.3, 0, 0], {1: 0.5, 2: 0.7}),
            *pairs(1, [0.4, 0, 0], {1: 0.9, 2: 0.1}),
        ]
    )
    acc = ms.LeaveOneOutSelectionMethod.run_acc(run)
    assert acc == {"val_acc": pytest.approx(0.6), "test_acc": 0.3}


@pytest.mark.parametrize("left_out", [{1: 0.5}, {}])
def test_leave_one_out_needs_every_pair(left_out):
    run = Q(pairs(0, [0.3, 0, 0], left_out))
    assert ms.LeaveOneOutSelectionMethod.run_acc(run) is None


def test_leave_one_out_needs_one_single_run():
    run = Q(pairs(0, [0.3, 0, 0], {1: 0.5, 2: 0.7}))
    assert ms.LeaveOneOutSelectionMethod.run_acc(run + run[:1]) is None
    assert ms.LeaveOneOutSelectionMethod.run_acc(run[1:]) is None


METHODS = [ms.OracleSelectionMethod, ms.IIDAccuracySelectionMethod]


@pytest.mark.parametrize("method", METHODS)
def test_pairs_alone_say_nothing(method):
    assert method.run_acc(Q([record([0, 1], 0, [0, 0, 0], [0, 0, 0])])) is None


@pytest.mark.parametrize("method", METHODS)
def test_a_record_without_accuracies_says_nothing(method):
    assert method.run_acc(Q([record([0], 0, [], [])])) is None
    assert method.sweep_acc(Q([record([0], 0, [], [])])) is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("nothing", [(None, 0.5), (0.5, None)])
def test_a_null_accuracy_is_none(method, nothing):
    test_acc, val_acc = nothing
    accs = [test_acc, 0.1, 0.1], [val_acc, val_acc, 0.1]
    assert method.run_acc(Q([record([0], 0, *accs)])) is None


@pytest.mark.parametrize("method", METHODS)
def test_the_best_draw_wins_and_nan_never_does(method):
    records = Q(
        [
            record([0], 0, [0.1, 0], [0.3, 0.3], hparams_seed=0),
            record([0], 0, [0.2, 0], [0.8, 0.8], hparams_seed=1),
            record([0], 0, [0.3, 0], [NAN, NAN], hparams_seed=2),
        ]
    )
    accs = method.hparams_accs(records)
    assert [acc["test_acc"] for acc, _ in accs] == [0.2, 0.1, 0.3]
    assert method.sweep_acc(records) == 0.2
    assert method.sweep_acc(Q()) is None


def test_of_equal_draws_the_last_wins_as_upstream_has_it():
    draws = [record([0], 0, [i, 0], [0.5, 0.5], hparams_seed=i) for i in range(3)]
    assert ms.OracleSelectionMethod.sweep_acc(Q(draws)) == 2


@pytest.mark.parametrize(
    "method", [ms.OracleSelectionMethod, ms.LastEpochSelectionMethod]
)
def test_the_last_record_stands_for_its_run(method):
    run = Q([record([0], step, [0.1 * step, 0], [0.9 - step, 0.9]) for step in (3, 1)])
    acc, chosen = method.chosen(run)
    assert chosen is run[0]
    assert method.run_acc(run) == acc
    assert acc["test_acc"] == chosen["env0_in_acc"]


def test_ten_environments_are_all_counted():
    outs = [0.0] + [0.5] * 9 + [1.0]
    run = Q([record([0], 0, [0.3] + [0] * 10, outs)])
    acc = ms.IIDAccuracySelectionMethod.run_acc(run)
    assert acc["val_acc"] == pytest.approx(0.55)


def test_names_are_the_contracts():
    methods = [
        ms.OracleSelectionMethod,
        ms.IIDAccuracySelectionMethod,
        ms.LeaveOneOutSelectionMethod,
    ]
    assert [method.name for method in methods] == [
        "test-domain validation set (oracle)",
        "training-domain validation set",
        "leave-one-domain-out cross-validation",
    ]
    assert ms.IIDAutoLRAccuracySelectionMethod.name == (
        "auto lr training-domain validation set"
    )
