"""Launchers: each runs a list of shell commands and gives their exit statuses."""

import functools
import inspect
import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from domainbed.launchers.local import run_command, visible_gpus
from domainbed.launchers.pool import pool_launcher
from domainbed.launchers.ray import RayLauncher
from domainbed.launchers.slurm import SlurmLauncher
from domainbed.lib.errors import InputError, UnknownNameError

Launcher = Callable[..., list[int | None]]  # None: it was not run to its end


def local_launcher(commands: list[str]) -> list[int]:
    """One after another, here."""
    return [run_command(command) for command in commands]


def dummy_launcher(commands: list[str]) -> list[int]:
    """Only print them."""
    for command in commands:
        print(f"Dummy launcher: {command}")
    return [0] * len(commands)


def required_gpus() -> list[str]:
    """The visible GPUs; InputError if there is none."""
    if gpus := visible_gpus():
        return gpus
    raise InputError(
        "the launcher multi_gpu finds no GPU here (CUDA_VISIBLE_DEVICES counts); "
        "use local or pool."
    )


def multi_gpu_launcher(commands: list[str]) -> list[int]:
    """One command at a time on each visible GPU."""
    gpus = required_gpus()
    free: queue.SimpleQueue[str] = queue.SimpleQueue()
    for gpu in gpus:
        free.put(gpu)

    def run(command: str) -> int:
        gpu = free.get()
        try:
            return run_command(command, CUDA_VISIBLE_DEVICES=gpu)
        finally:
            free.put(gpu)

    with ThreadPoolExecutor(len(gpus)) as pool:
        return list(pool.map(run, commands))


def slurm_launcher(commands: list[str], **options: Any) -> list[int]:
    """Submit them to a cluster, see launchers/slurm.py."""
    return SlurmLauncher(**options)(commands)


def ray_launcher(commands: list[str], **options: Any) -> list[int]:
    """As tasks of a Ray cluster, see launchers/ray.py."""
    return RayLauncher(**options)(commands)


REGISTRY: dict[str, Launcher] = {
    "local": local_launcher,
    "dummy": dummy_launcher,
    "multi_gpu": multi_gpu_launcher,
    "pool": pool_launcher,
    "slurm": slurm_launcher,
    "ray": ray_launcher,
}
# What is made with its options before anything is claimed. Slurm's remembers what it
# submitted: what builds on that has to wait for it.
MADE: dict[str, Callable[..., Launcher]] = {"slurm": SlurmLauncher, "ray": RayLauncher}


def get_launcher(name: str, **options: Any) -> Launcher:
    """The launcher of that name with those options, None meaning its default.

    InputError if there is none, it cannot run here or has no such option.
    """
    if name not in REGISTRY:
        raise UnknownNameError("launcher", name, REGISTRY)
    if name == "multi_gpu":
        required_gpus()
    given = {option: value for option, value in options.items() if value is not None}
    launcher = MADE.get(name, REGISTRY[name])
    for option in given:
        if option not in inspect.signature(launcher).parameters:
            raise InputError(f"--{option} means nothing to the launcher {name}.")
    return launcher(**given) if name in MADE else functools.partial(launcher, **given)
