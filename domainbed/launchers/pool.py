"""Runs at a time on one machine, each in a process that begins with all ready."""

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from domainbed.launchers import forks
from domainbed.launchers.local import run_command, visible_gpus
from domainbed.lib import misc
from domainbed.lib.memory import free_bytes

RUN = 2**30  # bytes that a run is taken to need; one that needs more is tried alone


def pool_launcher(
    commands: list[str], jobs: int | None = None, until: float | None = None
) -> list[int | None]:
    """`jobs` commands at a time, in children of a process that has all ready (`warm`).

    Importing torch and reading a CLIP takes seconds, most of a job's time where a small
    head trains on stored features. A job still has a process of its own: whatever ends
    it, the others go on. Each gets the GPU on which the fewest run. By default as many
    run at once as `at_once` says; what was killed for want of memory then goes on
    alone, once.
    At `until`, of time.monotonic, what runs saves its state and ends and nothing more
    is begun; the status of these is None.
    """
    gpus = visible_gpus()
    if jobs is None:
        jobs = at_once(len(gpus))
    slots = Slots(gpus)
    if any(map(forks.is_train, commands)):
        forks.start_server(commands)

    def run(command: str) -> tuple[int | None, bool]:
        """Its exit status, and whether the machine ran out of memory meanwhile."""
        before = out_of_memory_kills()
        with slots.one() as gpu:
            if until is not None and time.monotonic() >= until:
                status = None
            elif forks.is_train(command):
                status = forks.wait(forks.start(train_here, command, gpu), until)
            else:
                status = run_command(command, **gpu)
        killed = status in (-signal.SIGKILL, 128 + signal.SIGKILL)
        return status, killed and out_of_memory_kills() > before

    with ThreadPoolExecutor(jobs) as pool:
        ended = list(pool.map(run, commands))
    if n_killed := sum(killed for _, killed in ended):
        print(f"{n_killed} runs were killed for want of memory; each goes on alone.")
    return [
        run(command)[0] if killed else status
        for command, (status, killed) in zip(commands, ended, strict=True)
    ]


def at_once(n_gpus: int) -> int:
    """How many runs start together, and says why.

    One on each GPU or, without any, as many as a run's threads leave cores for; fewer
    where memory is short.
    """
    cores, free = os.cpu_count() or 1, free_bytes()
    busy = n_gpus or max(1, cores // misc.threads())
    jobs = max(1, min(busy, free // RUN))
    what = f"{n_gpus} GPUs" if n_gpus else f"{cores} cores"
    print(f"pool: {jobs} runs at once ({what}, {free / 2**30:.1f} GiB free).")
    return jobs


class Slots:
    """The GPUs, and how many jobs each has."""

    def __init__(self, gpus: list[str]):
        self.busy, self.lock = Counter(dict.fromkeys(gpus, 0)), threading.Lock()

    @contextlib.contextmanager
    def one(self) -> Iterator[dict[str, str]]:
        """The environment that gives a job the least busy GPU; {} without any."""
        if not self.busy:
            yield {}
            return
        with self.lock:
            gpu = min(self.busy, key=self.busy.__getitem__)
            self.busy[gpu] += 1
        try:
            yield {"CUDA_VISIBLE_DEVICES": gpu}
        finally:
            with self.lock:
                self.busy[gpu] -= 1


def out_of_memory_kills() -> int:
    """How many processes the kernel has killed so far to get memory back."""
    try:
        with open("/proc/vmstat") as file:
            return next(int(x.split()[1]) for x in file if x.startswith("oom_kill "))
    except (OSError, StopIteration):  # not Linux
        return 0


def train_here(command: str, environment: dict[str, str]) -> None:
    """One run in this process; what it says stands in its out.txt and err.txt only."""
    os.environ.update(environment)
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        forks.train(command)
