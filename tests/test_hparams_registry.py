import functools
import json
import math
import re

import pytest
from golden import remake
from helpers import CONTRACT

from domainbed import algorithms, datasets, hparams_registry
from domainbed.lib import misc
from domainbed.lib.bounds import at_least, between, check_bounds
from domainbed.lib.errors import InputError

UPSTREAM = json.loads((CONTRACT / "golden.json").read_text())


@pytest.mark.parametrize(
    "algorithm, dataset, hparams_seed, expected, trial_seed",
    UPSTREAM["hparams"],
)
def test_upstreams_values(algorithm, dataset, hparams_seed, expected, trial_seed):
    if hparams_seed == 0:
        ours = hparams_registry.default_hparams(algorithm, dataset)
    else:
        seed = misc.seed_hash(hparams_seed, trial_seed)
        ours = hparams_registry.random_hparams(algorithm, dataset, seed)
    assert {name: ours[name] for name in expected} == expected


def test_upstreams_seeds():
    for args, expected in UPSTREAM["seed_hash"]:
        assert misc.seed_hash(*args) == expected


def test_hparams_are_the_golden_ones():
    """Remade by: python tests/golden/remake.py"""
    assert remake.PATH.read_text() == remake.as_lines(remake.hparams())


@pytest.mark.parametrize("algorithm", algorithms.ALGORITHMS)
@pytest.mark.parametrize("dataset", datasets.DATASETS)
def test_every_draw_is_plain_json(algorithm, dataset):
    default = hparams_registry.default_hparams(algorithm, dataset)
    drawn = hparams_registry.random_hparams(algorithm, dataset, 3)
    assert drawn.keys() == default.keys()
    assert json.loads(json.dumps(drawn)) == drawn
    hparams_registry.check_hparams(algorithm, dataset, drawn)


def test_a_new_row_changes_no_other_draw(monkeypatch):
    before = hparams_registry.random_hparams("LFA", "PACS", 3)
    rows = algorithms.get_algorithm_class("LFA").hparam_rows("PACS")
    more = {"another": (0.5, lambda r: r.uniform())} | rows
    cls = algorithms.get_algorithm_class("LFA")
    monkeypatch.setattr(cls, "hparam_rows", lambda dataset: more)
    after = hparams_registry.random_hparams("LFA", "PACS", 3)
    assert after.pop("another") != 0.5
    assert after == before


def test_clip_methods_search_their_papers_space():
    drawn = [hparams_registry.random_hparams("LFA", "PACS", s) for s in range(40)]
    assert {h["momentum"] for h in drawn} == {0.0, 0.1, 0.2}
    assert {h["weight_decay"] for h in drawn} == {0.0}
    assert all(10**-4.5 <= h["lr"] <= 10**-2.5 for h in drawn)
    default = hparams_registry.default_hparams("LFA", "PACS")
    assert (default["lr"], default["momentum"], default["beta"]) == (1e-3, 0.1, 0.9)


@pytest.mark.parametrize(
    "hparams, says",
    [
        ({"betta": 0.5}, r"LFA has no hyperparameter 'betta'. Did you mean 'beta'\?"),
        ({"lr": "0.1"}, "'lr' of LFA is '0.1'; it must be of the kind of its default"),
        ({"resnet18": 1}, "'resnet18' of LFA is 1"),
        ({"batch_size": 2.5}, "'batch_size' of LFA is 2.5"),
        ({"batch_size": 100.0}, "is 100.0; it must be of the kind .* write 100"),
        ({"resnet18": 1}, "default, False; write true"),
        ({"batch_size": 0}, "'batch_size' is 0; it must be at least 1"),
        ({"batch_size": -4}, "'batch_size' is -4; it must be at least 1"),
        ({"batch_size": 10**400}, r"'batch_size' is 10+; it must be below 2\*\*63"),
        ({"rank": 0}, "'rank' is 0; it must be at least 1"),
        ({"lr": -0.1}, "'lr' is -0.1; it must be at least 0"),
        ({"lr": math.nan}, "'lr' is nan; it must be"),
        ({"lr": 1e300}, r"'lr' is 1e\+300; it must be from -1e\+30 to 1e\+30"),
        ({"beta": 1.5}, "'beta' is 1.5; it must be from 0 to 1"),
        ({"resnet_dropout": 2}, "'resnet_dropout' is 2; it must be from 0 to 1"),
        ({"momentum": math.inf}, "'momentum' is inf"),
    ],
)
def test_wrong_hparams_are_named(hparams, says):
    with pytest.raises(InputError) as error:
        hparams_registry.check_hparams("LFA", "PACS", hparams)
    assert re.search(says, str(error.value))


@pytest.mark.parametrize(
    "algorithm, hparams, says",
    [
        ("ARC", {"arc_dim": 0}, "'arc_dim' is 0; it must be at least 1"),
        ("ARC", {"arc_dropout": 1.5}, "is 1.5; it must be from 0 to 1"),
        ("ARC", {"warmup_steps": -1}, "is -1; it must be at least 0"),
        ("MAM", {"mam_r": 0}, "is 0; it must be at least 1"),
        ("HST", {"drop_path": 2.0}, "is 2.0; it must be from 0 to 1"),
        ("T3A", {"filter_K": 0}, "is 0; it must be at least 1"),
        ("VQT", {"vqt_T": 0}, "is 0; it must be at least 1"),
        ("Head2Toe", {"h2t_target": -1}, "is -1; it must be at least 0"),
        ("Mixup", {"mixup_alpha": 0.0}, "is 0.0; it must be at least 1e-06"),
        ("DANN", {"beta1": 1.0}, "is 1.0; it must be from 0 to 0.9999"),
        ("RSC", {"rsc_f_drop_factor": 2.0}, "is 2.0; it must be from 0 to 1"),
        ("ERM", {"vector_width": 0}, "is 0; it must be at least 1"),
    ],
)
def test_bounds_are_those_of_the_row(algorithm, hparams, says):
    with pytest.raises(InputError, match=says):
        hparams_registry.check_hparams(algorithm, "PACS", hparams)


def test_an_object_gives_a_hyperparameter_once():
    """Of pairs on a command line the last counts, as of flags."""
    with pytest.raises(InputError, match="--hparams gives 'lr' twice"):
        hparams_registry.parse_hparams('{"lr": 1, "lr": 2}')
    last = hparams_registry.as_json(["lr=1", "lr=2"])
    assert hparams_registry.parse_hparams(last) == {"lr": 2}


def test_every_default_and_draw_is_within_the_bounds():
    for algorithm in algorithms.ALGORITHMS:
        rows = hparams_registry.hparam_rows(algorithm, "PACS")
        for hparams in (
            hparams_registry.default_hparams(algorithm, "PACS"),
            *(hparams_registry.random_hparams(algorithm, "PACS", s) for s in range(9)),
        ):
            for name, value in hparams.items():
                check_bounds(name, value, rows[name])


def test_nobody_elses_row_needs_bounds(monkeypatch):
    """A plain row has those of the common one that it stands in for, if there is one;
    a row of a task has the algorithm's.
    """
    rows = {"lr": (0.1, None), "mine": (1, None), "momentum": between(0, 1, 0.5)}
    monkeypatch.setattr(algorithms.ERM, "HPARAMS", rows)
    check = functools.partial(hparams_registry.check_hparams, "ERM", "PACS")
    check({"lr": 3.0, "mine": -7, "momentum": 1.0})
    assert hparams_registry.hparam_rows("ERM", "PACS")["lr"] == (0.1, None)
    of_task = {"momentum": (0.9, None), "epochs": at_least(1, 5)}
    for name, value in (("lr", -1.0), ("momentum", 2.0), ("epochs", 0)):
        with pytest.raises(InputError, match=f"{name!r} is {value}; it must be"):
            check({name: value}, of_task)


@pytest.mark.parametrize(
    "words, hparams",
    [
        (["class_balanced=True", "lr=.001"], {"class_balanced": True, "lr": 0.001}),
        (["rank=None", "lr=1e-3"], {"rank": None, "lr": 0.001}),
        (["prompt=a {name} .5", "lr=1."], {"prompt": "a {name} .5", "lr": 1.0}),
    ],
)
def test_values_may_be_spelled_as_python_does(words, hparams):
    assert json.loads(hparams_registry.as_json(words)) == hparams


@pytest.mark.parametrize(
    "text, says",
    [
        ('{"class_balanced": True}', "JSON writes true, false and null"),
        (r"{\"lr\": 1}", "backslashes"),
        ("{'lr': 1}", "double ones"),
    ],
)
def test_what_is_not_json_is_said(text, says):
    with pytest.raises(InputError, match=says):
        hparams_registry.parse_hparams(text)


def test_right_hparams_pass():
    hparams_registry.check_hparams("LFA", "PACS", {"lr": 1, "rank": 4})
    hparams_registry.check_hparams("ERM", "PACS", {"pretrained": "/weights.pt"})
    hparams_registry.check_hparams("LFA", "PACS", {"class_names": ["a", "b"]})


def test_a_row_that_draws_floats_takes_them_for_an_int_default():
    """Upstream's beta1 defaults to 0.5, its d_steps to 1: drawn as a number."""
    draws_floats, draws_ints = (lambda r: 10 ** r.uniform(0, 1)), (lambda r: 3)
    same_kind = hparams_registry.same_kind
    assert same_kind(2.5, 1, draws_floats)
    assert not same_kind(2.5, 1, draws_ints)
    assert not same_kind(2.5, 1)
    assert same_kind(2, 1.0)
    assert not same_kind(True, 1.0)
    assert not same_kind("2", 1, draws_floats)


def test_lfa_asks_imagenet_with_the_released_templates_or_with_one():
    own = hparams_registry.hparam_rows("LFA", "ImageNet")
    rows = algorithms.get_algorithm_class("LFA").few_shot_rows("ImageNet", 16)
    templates = rows["prompt"][0]
    assert len({*templates}) == 8 and templates[-1] == "a photo of a {name}."
    assert all(text.count("{name}") == 1 for text in templates)
    for prompt in ("a {name}.", ["a {name}."]):
        hparams_registry.check_hparams("LFA", "ImageNet", {"prompt": prompt}, rows)
    with pytest.raises(InputError, match="hyperparameter 'prompt' of LFA is 3"):
        hparams_registry.check_hparams("LFA", "ImageNet", {"prompt": 3}, own)
