"""Launchers: each runs a list of shell commands and gives their exit statuses."""

import contextlib
import functools
import importlib
import inspect
import itertools
import multiprocessing
import os
import pkgutil
import queue
import shlex
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

import domainbed
from domainbed.launchers.slurm import SlurmLauncher
from domainbed.lib import misc
from domainbed.lib.errors import InputError, UnknownNameError

Launcher = Callable[..., list[int]]
TRAIN = ["python", "-m", "domainbed.scripts.train"]
CURVES = "torch.utils.tensorboard"  # which a run imports late


def run_command(command: str, **environment: str) -> int:
    """The exit status of one command; its `python` is the one that runs this."""
    variables = {**misc.with_own_python(os.environ), **environment}
    return subprocess.run(command, shell=True, env=variables).returncode


def local_launcher(commands: list[str]) -> list[int]:
    """One after another, here."""
    return [run_command(command) for command in commands]


def dummy_launcher(commands: list[str]) -> list[int]:
    """Only print them."""
    for command in commands:
        print(f"Dummy launcher: {command}")
    return [0] * len(commands)


def visible_gpus() -> list[str]:
    """The names by which CUDA_VISIBLE_DEVICES can give each visible GPU to a job.

    As for CUDA, the first invalid name, such as -1, hides those after it.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(i) for i in range(torch.cuda.device_count())]
    names = (name.strip() for name in named.split(","))
    return [*itertools.takewhile(lambda n: n and not n.startswith("-"), names)]


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


def pool_launcher(commands: list[str], jobs: int | None = None) -> list[int]:
    """`jobs` commands at a time, in children of a process that has imported all.

    Importing torch takes seconds, most of a job's time where a small head trains on
    stored features. A job still has a process of its own: whatever ends it, the others
    go on. GPUs are given in turn. By default there is a job for each GPU or, without
    any, for as many cores as a job's threads keep busy.
    """
    gpus = visible_gpus()
    threads = int(os.environ.get("OMP_NUM_THREADS", 1))
    jobs = jobs or len(gpus) or max(1, (os.cpu_count() or 1) // threads)
    warm = multiprocessing.get_context("forkserver")
    families = (module.name for module in pkgutil.iter_modules(domainbed.__path__))
    families = (
        name for name in families if name.startswith(("algorithms", "datasets"))
    )
    warm.set_forkserver_preload(
        [TRAIN[-1], CURVES, *(f"domainbed.{name}" for name in families)]
    )

    def run(number: int, command: str) -> int:
        gpu = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
        words = shlex.split(command)
        if words[: len(TRAIN)] != TRAIN:
            return run_command(command, **gpu)
        child = warm.Process(target=train_here, args=(words[len(TRAIN) :], gpu))
        child.start()
        child.join()
        return child.exitcode

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(run, itertools.count(), commands))


def train_here(argv: list[str], environment: dict[str, str]) -> None:
    """One run in this process; what it says stands in its out.txt and err.txt only."""
    os.environ.update(environment)
    misc.start_processes_as_usual()
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        importlib.import_module(TRAIN[-1]).main(argv)


def slurm_launcher(commands: list[str], **options: Any) -> list[int]:
    """Submit them to a cluster, see domainbed/slurm.py."""
    return SlurmLauncher(**options)(commands)


REGISTRY: dict[str, Launcher] = {
    "local": local_launcher,
    "dummy": dummy_launcher,
    "multi_gpu": multi_gpu_launcher,
    "pool": pool_launcher,
    "slurm": slurm_launcher,
}


def get_launcher(name: str, **options: Any) -> Launcher:
    """The launcher of that name with those options, None meaning its default.

    InputError if there is none, it cannot run here or has no such option.
    """
    if name not in REGISTRY:
        raise UnknownNameError("launcher", name, REGISTRY)
    if name == "multi_gpu":
        required_gpus()
    given = {option: value for option, value in options.items() if value is not None}
    # Slurm's remembers what it submitted: what builds on that has to wait for it.
    launcher = SlurmLauncher if name == "slurm" else REGISTRY[name]
    for option in given:
        if option not in inspect.signature(launcher).parameters:
            raise InputError(f"--{option} means nothing to the launcher {name}.")
    return (
        launcher(**given) if name == "slurm" else functools.partial(launcher, **given)
    )
