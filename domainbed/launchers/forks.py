"""Runs as children of one process that has imported and read what they all need."""

import importlib
import itertools
import multiprocessing
import os
import shlex
import threading
import time
from collections.abc import Callable, Iterable
from multiprocessing import connection, forkserver
from multiprocessing.process import BaseProcess
from typing import Any

TRAIN = ["python", "-m", "domainbed.scripts.train"]
WARM = "domainbed.launchers.warm"
FIRST = "DOMAINBED_FIRST_RUNS"  # the variable that tells it commands, one a line
LONGEST = 100_000  # characters of a variable; Linux allows a few more
CONTEXT = multiprocessing.get_context("forkserver")
STATUSES = threading.Lock()


def start_server(commands: Iterable[str]) -> None:
    """Start what forks the runs, made ready for one of each kind of these."""
    if first := of_each_kind(filter(is_train, commands)):
        CONTEXT.set_forkserver_preload([WARM])
        os.environ[FIRST] = "\n".join(first)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop(FIRST, None)


def is_train(command: str) -> bool:
    return shlex.split(command)[: len(TRAIN)] == TRAIN


def of_each_kind(commands: Iterable[str]) -> list[str]:
    """The first command of each dataset and algorithm, as many as there is room for."""
    first: dict[tuple[str | None, ...], str] = {}
    for command in commands:
        given = dict(itertools.pairwise(shlex.split(command)))
        first.setdefault((given.get("--dataset"), given.get("--algorithm")), command)
    lengths = itertools.accumulate(len(command) + 1 for command in first.values())
    room = sum(length < LONGEST for length in lengths)
    return [*first.values()][:room]


def start(function: Callable[..., Any], *args: Any) -> BaseProcess:
    """A process of its own for the function, forked from the one that is ready."""
    child = CONTEXT.Process(target=function, args=args)
    with STATUSES:
        child.start()
    return child


def wait(child: BaseProcess, until: float | None = None) -> int | None:
    """Its exit status once it has ended, negative the signal that has ended it.

    At `until`, of time.monotonic, it is told to end (SIGTERM); the status is then None.
    Each start asks for the statuses of all children, and each can be read only once:
    two threads that read one at the same time would find another, 255.
    """
    left = None if until is None else max(0.0, until - time.monotonic())
    in_time = bool(connection.wait([child.sentinel], left))
    if not in_time:
        child.terminate()
        connection.wait([child.sentinel])
    with STATUSES:
        return child.exitcode if in_time else None


def train(command: str) -> None:
    """The run of a command, in this process."""
    importlib.import_module(TRAIN[-1]).main(shlex.split(command)[len(TRAIN) :])
