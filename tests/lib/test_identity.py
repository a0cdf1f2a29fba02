"""What makes two runs one, and that every flag of a run is on one of the lists."""

import json

import pytest

from domainbed.lib.identity import DECISIVE, NEUTRAL, differences, identity
from domainbed.scripts import train


def test_every_flag_changes_numbers_or_does_not():
    flags = vars(train.parse_args([]))
    few_shot = {"shots": "1", "classes": "all", "source": "a", "transfer_to": "b"}
    given = [f"--{name}={value}" for name, value in few_shot.items()]
    # train_autolr alone sets that one.
    assert {*vars(train.parse_args(given)), "auto_lr"} == {*DECISIVE, *NEUTRAL}
    assert not {*DECISIVE} & {*NEUTRAL}
    defaults = {n: v for n, v in DECISIVE.items() if n not in {*few_shot, "auto_lr"}}
    assert {n: v for n, v in flags.items() if n not in NEUTRAL} == defaults


@pytest.mark.parametrize("name", NEUTRAL)
def test_where_and_how_a_run_works_makes_no_other_run(name):
    args = {"dataset": "PACS", "seed": 3}
    assert identity({**args, name: "x"}) == identity(args)
    assert differences({**args, name: "x"}, {**args, name: "y"}) == []


def test_an_older_version_knew_fewer_flags():
    old = {"dataset": "PACS", "seed": 3}
    assert differences(old, {**old, "no_feature_store": False, "steps": None}) == []
    assert differences(old, {**old, "steps": 5}) == ["--steps was None and is 5"]


def test_an_unknown_argument_makes_another_run():
    assert differences({}, {"shots": 4}) == ["--shots was None and is 4"]


@pytest.mark.parametrize("text", ['{"lr":0.1,"rank":2}', '{"rank": 2, "lr": 1e-1}'])
def test_hparams_are_compared_by_what_they_say(text):
    assert differences({"hparams": '{"lr": 0.1, "rank": 2}'}, {"hparams": text}) == []
    assert differences({"hparams": None}, {"hparams": "{}"}) == []
    assert differences({"hparams": text}, {}) != []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"hparams": '{"lr": 1}'}, {"hparams": '{"lr": 1.0}'}),
        ({"hparams": '{"sizes": [1, 2]}'}, {"hparams": '{"sizes": [1.0, 2]}'}),
        ({"uda_holdout_fraction": 0}, {"uda_holdout_fraction": 0.0}),
        ({"test_envs": [0, 2]}, {"test_envs": [2, 0]}),
    ],
)
def test_a_run_is_the_same_however_its_numbers_are_written(one, other):
    assert json.dumps(identity(one)) == json.dumps(identity(other))  # as copies are
    assert differences(one, other) == []


def test_true_is_no_number():
    one, other = {"hparams": '{"x": true}'}, {"hparams": '{"x": 1}'}
    assert json.dumps(identity(one)) != json.dumps(identity(other))


def test_test_environments_that_another_program_wrote_are_left_as_they_are():
    assert identity({"test_envs": None})["test_envs"] is None
    assert identity({"test_envs": [None, 1]})["test_envs"] == [None, 1]
