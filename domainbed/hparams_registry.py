"""Hyperparameters: the common rows, and those that an algorithm declares.

A row is a default and a random draw, perhaps with bounds (`lib/bounds.py`). Each draw
has a generator of its own, seeded by the row's name, so a new row never changes
another's draw.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from domainbed.lib import misc
from domainbed.lib.bounds import at_least, between, check_bounds, instead_of
from domainbed.lib.errors import InputError, did_you_mean
from domainbed.lib.paths import user_path
from domainbed.lib.texts import read_text

if TYPE_CHECKING:
    from domainbed.algorithms import Draw, HparamRows

ALSO = {"pretrained": (str,), "prompt": (str, list)}  # a path, several templates
PYTHONS = {"True": True, "False": False, "None": None}  # JSON's true, false, null
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)  # .001, too


def common_rows(dataset: str) -> HparamRows:
    """DomainBed's rows: name -> (default, draw); a draw of None is the default."""
    from domainbed.algorithms import SMALL_IMAGES

    dropout = between(0, 1, 0.0, lambda r: r.choice([0.0, 0.1, 0.5]))
    rows: HparamRows = {
        "data_augmentation": (True, None),
        "augment_validation": (False, None),  # upstream augments training's out-splits
        "resnet18": (False, None),
        "resnet50_augmix": (True, None),
        "dinov2": (False, None),
        "vit": (False, None),
        "vit_attn_tune": (False, None),
        "freeze_bn": (False, None),
        "lars": (False, None),
        "linear_steps": at_least(0, 500),
        "resnet_dropout": dropout,
        "vit_dropout": dropout,
        "class_balanced": (False, None),
        "nonlinear_classifier": (False, lambda r: bool(r.choice([False, False]))),
    }
    if dataset in SMALL_IMAGES:
        return rows | {
            "lr": at_least(0, 1e-3, lambda r: 10 ** r.uniform(-4.5, -2.5)),
            "weight_decay": at_least(0, 0.0),
            "batch_size": at_least(1, 64, lambda r: int(2 ** r.uniform(3, 9))),
        }
    largest = 5 if dataset == "DomainNet" else 5.5
    return rows | {
        "lr": at_least(0, 5e-5, lambda r: 10 ** r.uniform(-5, -3.5)),
        "weight_decay": at_least(0, 0.0, lambda r: 10 ** r.uniform(-6, -2)),
        "batch_size": at_least(1, 32, lambda r: int(2 ** r.uniform(3, largest))),
    }


def hparam_rows(
    algorithm: str, dataset: str, of_task: HparamRows | None = None
) -> HparamRows:
    """All rows of an algorithm on a dataset; its own go before the common ones, and a
    task's before those.
    """
    from domainbed.algorithms import get_algorithm_class  # which takes torch

    own = get_algorithm_class(algorithm).hparam_rows(dataset)
    return instead_of(instead_of(common_rows(dataset), own), of_task or {})


def default_hparams(
    algorithm: str, dataset: str, of_task: HparamRows | None = None
) -> dict[str, Any]:
    """Every hyperparameter's default."""
    rows = hparam_rows(algorithm, dataset, of_task)
    return {name: default for name, (default, _) in rows.items()}


def random_hparams(
    algorithm: str, dataset: str, seed: int, of_task: HparamRows | None = None
) -> dict[str, Any]:
    """One random draw of every hyperparameter, in plain Python types."""

    def value(name: str, default: Any, draw: Any) -> Any:
        if draw is None:
            return default
        return misc.plain(draw(np.random.RandomState(misc.seed_hash(seed, name))))

    rows = hparam_rows(algorithm, dataset, of_task)
    return {name: value(name, *row) for name, row in rows.items()}


def as_json(words: list[str] | None) -> str | None:
    """The JSON text that the words after --hparams mean, None for none.

    They are JSON already, `@FILE` with JSON in it, or `name=value` pairs, whose values
    are JSON, Python's True, False, None and .001 or, failing that, strings; of one name
    the last counts, as of flags.
    """
    if words is None:
        return None
    if len(words) == 1 and words[0].startswith("@"):
        try:
            text = read_text(user_path(words[0][1:]))
        except InputError as error:
            raise InputError(f"--hparams {words[0]}: {error}") from error
        return json.dumps(parse_hparams(text))
    pairs = [word.partition("=") for word in words]
    if any(not equals or name.startswith("{") for name, equals, _ in pairs):
        return " ".join(words)
    return json.dumps({name: json_or_string(value) for name, _, value in pairs})


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dict; InputError if two of one name disagree."""
    values = dict(pairs)
    if twice := next((name for name, value in pairs if value != values[name]), None):
        raise InputError(f"--hparams gives {twice!r} twice; give one value.")
    return values


def json_or_string(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        if NUMBER.fullmatch(text):
            return float(text)
        return PYTHONS.get(text, text)


def parse_hparams(text: str | None) -> dict[str, Any]:
    """The JSON object in `text`, {} for None; InputError if it is anything else."""
    try:
        hparams = json.loads(text or "{}", object_pairs_hook=once_each)
    except json.JSONDecodeError as error:
        raise InputError(
            f"--hparams {text!r} is not JSON ({error}); write an object such as "
            """'{"lr": 0.001}', or lr=0.001.""" + advice(text or "")
        ) from error
    if not isinstance(hparams, dict):
        raise InputError(f"--hparams {text!r} must be a JSON object.")
    return hparams


def advice(text: str) -> str:
    """What in a text is not JSON, where one can tell."""
    if '\\"' in text:
        return """ The shell left backslashes before its quotes: leave them out."""
    if re.search(r"\b(True|False|None)\b", text):
        return " JSON writes true, false and null."
    return " JSON's quotes are double ones." if "'" in text else ""


def given_to(algorithm: str, hparams: dict[str, Any]) -> dict[str, Any]:
    """What a sweep's --hparams say of an algorithm: NAME is for all of them,
    ALGORITHM.NAME for that one, and goes before what is for all.
    """
    own = f"{algorithm}."
    for_all = {n: value for n, value in hparams.items() if "." not in n}
    for_it = {n.removeprefix(own): v for n, v in hparams.items() if n.startswith(own)}
    return for_all | for_it


def check_hparams(
    algorithm: str,
    dataset: str,
    hparams: dict[str, Any],
    of_task: HparamRows | None = None,
) -> None:
    """InputError if a name is unknown or a value is of another kind than its default.

    `class_names`, a fact of the dataset, is always allowed.
    """
    rows = hparam_rows(algorithm, dataset, of_task) | {"class_names": ([], None)}
    known = {name: default for name, (default, _) in rows.items()}
    for name, value in hparams.items():
        if name not in known:
            raise InputError(
                f"{algorithm} has no hyperparameter {name!r}."
                + did_you_mean(name, known)
                + f" It has: {', '.join(sorted(known))}."
            )
        default = known[name]
        check_bounds(name, value, rows[name])
        if name == "class_names" and not all(isinstance(own, str) for own in value):
            raise InputError(f"class_names are {value!r}; each must be a string.")
        if not same_kind(value, *rows[name]) and type(value) not in ALSO.get(name, ()):
            raise InputError(
                f"hyperparameter {name!r} of {algorithm} is {value!r}; it must be "
                f"of the kind of its default, {default!r}{spelling(value, default)}."
            )


def spelling(value: Any, default: Any) -> str:
    """How the value that was perhaps meant is written, after a semicolon."""
    meant = None
    if type(default) is int and type(value) is float and value.is_integer():
        meant = int(value)
    elif type(default) is bool and value in (0, 1):
        meant = bool(value)
    return "" if meant is None else f"; write {json.dumps(meant)}"


def same_kind(value: Any, default: Any, draw: Draw | None = None) -> bool:
    """Whether a value can stand where that default stood.

    An int can for a float, and a float for an int whose draw gives floats.
    """
    if default is None or type(value) is type(default):
        return True
    if type(default) is int and type(value) is float and draw is not None:
        return isinstance(draw(np.random.RandomState(0)), float)
    return (type(default), type(value)) == (float, int)
