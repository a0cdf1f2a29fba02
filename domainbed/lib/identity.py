"""Which of a run's arguments change its numbers: what makes two runs one.

Resuming, merging copies and warnings about mixtures all ask here.
"""

import contextlib
import json
from typing import Any

# Where and how a run works, not what it finds. Data are compared by their digest.
NEUTRAL = (
    "output_dir",
    "data_dir",
    "feature_dir",
    "strict_fingerprint",
    "num_workers",
    "skip_model_save",
    "save_model_every_checkpoint",
    "no_resume",
    "no_tensorboard",
    "no_predictions",
    "eval",
    "quiet",
)
# All others, with their defaults: a flag that a later version adds is put here, and an
# old run, which does not know it, stays the run that it was.
DECISIVE = {
    "dataset": "RotatedMNIST",
    "algorithm": "ERM",
    "task": "domain_generalization",
    "hparams": None,
    "hparams_seed": 0,
    "trial_seed": 0,
    "seed": 0,
    "steps": None,
    "checkpoint_freq": None,
    "test_envs": [0],
    "holdout_fraction": 0.2,
    "uda_holdout_fraction": 0,
    "allow_missing_classes": False,
    "no_feature_store": False,
    "auto_lr": False,
    "shots": None,  # these four of few-shot runs alone
    "classes": None,
    "source": None,
    "transfer_to": None,
    "precision": "float32",
}


def identity(args: dict[str, Any]) -> dict[str, Any]:
    """The arguments that change a run's numbers; what nobody gave has its default.

    Arguments that this version does not know are among them. However they were written,
    equal ones are written alike: 1.0 as 1, test environments in their order.
    """
    known = DECISIVE | {n: v for n, v in args.items() if n not in NEUTRAL}
    known |= {"hparams": parsed(known["hparams"])}
    with contextlib.suppress(TypeError):  # what another program has written
        known |= {"test_envs": sorted(known["test_envs"])}
    return in_whole_numbers(known)


def in_whole_numbers(value: Any) -> Any:
    """The value with each whole number in it as an int."""
    if isinstance(value, dict):
        return {name: in_whole_numbers(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [*map(in_whole_numbers, value)]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def parsed(hparams: Any) -> Any:
    """What the text after --hparams says, however it is written; {} of none."""
    try:
        return json.loads(hparams or "{}")
    except (TypeError, ValueError, RecursionError):
        return hparams


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """`--name was X and is Y` for each argument that makes them two runs."""
    old, new = identity(before), identity(now)
    return [
        f"--{name} was {old.get(name)} and is {new.get(name)}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
