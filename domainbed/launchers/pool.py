"""Runs in children of one process that has imported all that they need."""

import contextlib
import importlib
import itertools
import multiprocessing
import os
import pkgutil
import shlex
from concurrent.futures import ThreadPoolExecutor

import domainbed
from domainbed.launchers.local import run_command, visible_gpus
from domainbed.lib import misc

TRAIN = ["python", "-m", "domainbed.scripts.train"]
CURVES = "torch.utils.tensorboard"  # which a run imports late


def pool_launcher(commands: list[str], jobs: int | None = None) -> list[int]:
    """`jobs` commands at a time, in children of a process that has imported all.

    Importing torch takes seconds, most of a job's time where a small head trains on
    stored features. A job still has a process of its own: whatever ends it, the others
    go on. GPUs are given in turn. By default there is a job for each GPU or, without
    any, for as many cores as a job's threads keep busy.
    """
    gpus = visible_gpus()
    threads = misc.threads()
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
