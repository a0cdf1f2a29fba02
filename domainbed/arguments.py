"""What the arguments of a run mean: hyperparameters, counts, environments."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from domainbed import hparams_registry
from domainbed.lib import misc
from domainbed.lib.errors import InputError, check_at_least, did_you_mean
from domainbed.lib.pictures import plain

if TYPE_CHECKING:
    from domainbed.algorithms import HparamRows


SEEDS = 2**32  # numpy's are below


def resolve_hparams(
    args: argparse.Namespace, of_task: HparamRows | None = None
) -> dict[str, Any]:
    """The run's hyperparameters: default or drawn, then what --hparams says."""
    what = args.algorithm, args.dataset
    given = hparams_registry.parse_hparams(args.hparams)
    hparams_registry.check_hparams(*what, given, of_task)
    if args.hparams_seed == 0:
        hparams = hparams_registry.default_hparams(*what, of_task)
    else:
        seed = misc.seed_hash(args.hparams_seed, args.trial_seed)
        hparams = hparams_registry.random_hparams(*what, seed, of_task)
    return hparams | given


def check_numbers(args: argparse.Namespace) -> None:
    """InputError for a count below its least value, or a fraction that leaves none."""
    check_at_least(args, steps=0, checkpoint_freq=1, num_workers=0)
    check_at_least(args, seed=0, trial_seed=0, hparams_seed=0)
    if args.seed >= SEEDS:
        raise InputError(f"--seed is {args.seed}; it must be below {SEEDS}, 2**32.")
    check_fractions(args)


def check_fractions(args: argparse.Namespace) -> None:
    """InputError for a fraction that is given and leaves nothing."""
    for name in ("holdout_fraction", "uda_holdout_fraction"):
        value = getattr(args, name)
        if value is not None and not 0 <= value < 1:
            raise InputError(f"--{name} is {value}; it must be from 0 to below 1.")


def environment_number(
    env: str,
    environments: Sequence[str],
    known_as: Sequence[tuple[str, ...]] = (),
    flag: str = "--test_envs",
) -> int:
    """The number of the environment that is given by number or by name.

    `known_as` has further names of each; any spelling of a name will do. InputError if
    there is none, or if the spelling is that of two.
    """
    if env.isdecimal() and int(env) < len(environments):
        if env in environments and environments[int(env)] != env:
            print(
                f"warning: {flag} {env} is the environment number {env}, "
                f"{environments[int(env)]}; the one called {env} is number "
                f"{environments.index(env)}.",
                file=sys.stderr,
            )
        return int(env)
    if env in environments:
        return environments.index(env)
    names = [(own,) for own in environments]
    more = known_as or names
    names = [(*own, *also) for own, also in zip(names, more, strict=True)]
    is_name = env.isdecimal() or any(map(str.isalpha, env))  # -1 is no spelling of 1
    alike = [i for i, own in enumerate(names) if plain(env) in map(plain, own)]
    if is_name and len(alike) == 1:
        return alike[0]
    raise InputError(
        f"{flag} {env} is no environment; there are "
        + ", ".join(f"{i} ({name})" for i, name in enumerate(environments))
        + "."
        + did_you_mean(env, [*itertools.chain(*names)])
    )


def environment_numbers(
    wanted: list[int | str],
    environments: Sequence[str],
    known_as: Sequence[tuple[str, ...]] = (),
) -> list[int]:
    """The numbers of the environments given by number or by name, see above.

    `none` alone means none. InputError unless each is named once and one is left to
    train on.
    """
    if [*map(str, wanted)] == ["none"] and "none" not in environments:
        return []
    numbers = [environment_number(str(env), environments, known_as) for env in wanted]
    twice = next((n for n in numbers if numbers.count(n) > 1), None)
    if twice is not None:
        raise InputError(
            f"--test_envs {' '.join(map(str, wanted))} names environment {twice} "
            f"({environments[twice]}) twice; name each once."
        )
    if len(numbers) >= len(environments):
        raise InputError(
            f"--test_envs {' '.join(map(str, wanted))} leaves none to train on."
        )
    return numbers
