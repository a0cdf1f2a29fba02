"""Learning rates as functions of the step."""

import math

import torch

SCHEDULES = ("constant", "linear", "cosine")


def share(schedule: str, step: int, n_steps: int, warmup: int = 0) -> float:
    """The share of the learning rate that the step (from 0) of n_steps is taken at.

    It rises linearly over `warmup` steps, to 1 at the last of them; from there on it is
    constant, or falls to 0 at n_steps, linearly or as half a cosine.
    """
    if step < warmup:
        return (step + 1) / warmup
    gone = (step - warmup) / max(1, n_steps - warmup)
    falling = {"linear": 1 - gone, "cosine": (1 + math.cos(math.pi * gone)) / 2}
    return falling.get(schedule, 1.0)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group that rate, also where a recorded step reads it."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
