"""Runs as tasks of a Ray cluster (https://docs.ray.io), on clouds and Kubernetes.

One task is one run. A task whose node dies is tried again on another; a run that failed
is not, `launch --retry` does that. The nodes see the same folders and have this package
installed. The launcher waits for all, and says so if its own node is lost.
"""

import contextlib
import functools
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

from domainbed.lib import misc
from domainbed.lib.children import die_with
from domainbed.lib.errors import InputError, UnknownNameError, one_line
from domainbed.lib.optional import require

# What --ray takes, and Ray's name for it.
KEYS = {"gpus": "num_gpus", "cpus": "num_cpus", "mem": "memory", "address": "address"}
SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)B?", re.IGNORECASE)
RETRIES = 10  # of a task, each after the death of its node
LOOK = 5  # seconds between two looks at the cluster
PATIENCE = 60  # seconds that it may take to answer
LOST = 1  # the exit status of a run that Ray gave up


class RayLauncher:
    """Runs commands as tasks, each with the share of a node that `ray` says.

    `ray` holds key=value pairs, see KEYS. Without an address RAY_ADDRESS counts;
    without that a cluster is started here.
    """

    def __init__(self, ray: Iterable[str] = ()):
        self.ray = require("ray", "ray")
        self.options = parse_options(ray)
        self.address = self.options.pop("address", os.environ.get("RAY_ADDRESS"))

    def __call__(self, commands: list[str]) -> list[int]:
        self.connect()
        task = self.ray.remote(run_task).options(
            **self.options, max_retries=RETRIES, retry_exceptions=False
        )
        threads = os.environ.get("OMP_NUM_THREADS")
        tasks = [task.remote(command, threads) for command in commands]
        waiting = tasks
        while waiting:
            _, waiting = self.ray.wait(waiting, num_returns=len(waiting), timeout=LOOK)
            self.check_node()
        return [self.status_of(task) for task in tasks]

    def connect(self) -> None:
        """Join the cluster, or start one; InputError if none answers."""
        if self.ray.is_initialized():
            return
        how = {"log_to_driver": False, "logging_level": "warning"}
        if not self.address:
            how["include_dashboard"] = False
        try:
            self.ray.init(self.address or "local", **how)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(
                f"no Ray cluster answers at {self.address} "
                f"({one_line(error, 200)}); name another with --ray "
                "address=HOST:PORT, or use pool."
            ) from error

    def check_node(self) -> None:
        """InputError if the node that this process is on is not in the cluster.

        What it waits for would then never come.
        """
        own = self.ray.get_runtime_context().get_node_id()
        nodes = within(PATIENCE, self.ray.nodes)
        if not any(node["NodeID"] == own and node["Alive"] for node in nodes or ()):
            raise InputError(
                "this launcher's node is no longer in the Ray cluster, and what runs "
                "there is not known here; launch --retry goes on with what is not done."
            )

    def status_of(self, task: Any) -> int:
        """The run's exit status."""
        try:
            return self.ray.get(task)
        except self.ray.exceptions.RayError as error:
            line = str(error).strip().split("\n")[0]
            print(f"Ray gave a run up: {line}", file=sys.stderr)
            return LOST


def run_task(command: str, threads: str | None) -> int:
    """The exit status of a command, which dies with this process.

    `threads` is the launcher's OMP_NUM_THREADS. Ray's own would follow the task's
    cpus, and sums in another order end in other digits.
    """
    environment = misc.with_own_python(os.environ)
    environment.pop("OMP_NUM_THREADS", None)
    if threads:
        environment["OMP_NUM_THREADS"] = threads
    dies = functools.partial(die_with, os.getpid())
    return subprocess.run(
        f"exec {command}", shell=True, env=environment, preexec_fn=dies
    ).returncode


def within(seconds: float, function: Any) -> Any:
    """What the function gives, None if it fails or takes longer."""
    answer: Future = Future()

    def ask() -> None:
        try:
            answer.set_result(function())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    with contextlib.suppress(Exception):
        return answer.result(seconds)
    return None


def parse_options(pairs: Iterable[str]) -> dict[str, Any]:
    """Ray's options for what --ray says; InputError for what it may not."""
    options: dict[str, Any] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key not in KEYS:
            raise UnknownNameError("key of --ray", key, KEYS)
        if not value:
            raise InputError(f"--ray {pair!r} gives {key} no value; write {key}=VALUE.")
        if KEYS[key] in options:
            raise InputError(f"--ray gives {key} twice; give one value.")
        convert = {"gpus": share, "cpus": share, "mem": size}.get(key, lambda _, v: v)
        options[KEYS[key]] = convert(key, value)
    return options


def share(key: str, value: str) -> float:
    """A number of GPUs or cores; less than one is a part of one."""
    with contextlib.suppress(ValueError):
        number = float(value)
        if 0 < number < 1 or (number >= 1 and number.is_integer()):
            return number
    raise InputError(
        f"--ray {key}={value} must be a whole number of at least 1 or a part of one, "
        "such as 0.25."
    )


def size(key: str, value: str) -> int:
    """Bytes of a size such as 16G."""
    match = SIZE.fullmatch(value)
    if not match or not float(match[1]):
        raise InputError(f"--ray {key}={value} is no size; write one such as 16G.")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))
