"""Launchers: each runs a list of shell commands and gives their exit statuses."""

import itertools
import os
import queue
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from domainbed.lib.errors import InputError, UnknownNameError

Launcher = Callable[[list[str]], list[int]]


def run_command(command: str, **environment: str) -> int:
    """The exit status of one command; its `python` is the one that runs this."""
    own = str(Path(sys.executable).parent)
    path = os.pathsep.join([own, os.environ.get("PATH", "")])
    variables = {**os.environ, "PATH": path, **environment}
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

    InputError if there is none. As for CUDA, the first invalid name, such as -1, hides
    those after it.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        gpus = [str(i) for i in range(torch.cuda.device_count())]
    else:
        names = (name.strip() for name in named.split(","))
        gpus = [*itertools.takewhile(lambda n: n and not n.startswith("-"), names)]
    if not gpus:
        raise InputError(
            "the launcher multi_gpu finds no GPU here (CUDA_VISIBLE_DEVICES counts); "
            "use local."
        )
    return gpus


def multi_gpu_launcher(commands: list[str]) -> list[int]:
    """One command at a time on each visible GPU."""
    gpus = visible_gpus()
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


REGISTRY: dict[str, Launcher] = {
    "local": local_launcher,
    "dummy": dummy_launcher,
    "multi_gpu": multi_gpu_launcher,
}


def get_launcher(name: str) -> Launcher:
    """The launcher of that name; InputError if there is none or it cannot run here."""
    if name not in REGISTRY:
        raise UnknownNameError("launcher", name, REGISTRY)
    if name == "multi_gpu":
        visible_gpus()
    return REGISTRY[name]
