"""What is done to a sweep, and how long it takes to go on after it."""

import contextlib
import math
import random
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from domainbed.lib.claim import SILENCE
from tools.torture.field import LOOK, Field
from tools.torture.sweep import Host, Sweep

# How often each falls where it can. The first five kill.
KINDS = {"run": 6, "loader": 4, "extractor": 6, "launcher": 1, "forkserver": 1}
KILLS = tuple(KINDS)
KINDS |= {"stop": 2, "disk": 1}
STOPPED, FULL = (0.2, 3), (0.5, 2)  # seconds, from and to
SILENT = SILENCE + 30  # seconds: longer than a run on another machine may be
STUCK = 90, 1800  # seconds of a processor, and in all, without a checkpoint


class Wound(NamedTuple):
    """A blow from which the sweep, or the run that was hit, has not recovered yet."""

    kind: str
    folder: Path | None
    progress: int
    since: float


class Tormentor:
    """Strikes a sweep on some hosts, and sees when it goes on.

    A blow falls whenever the sweep has used the processor for a random time, so that a
    busy machine is struck no harder than an idle one.
    """

    def __init__(
        self, sweep: Sweep, hosts: list[Host], rng: random.Random, pause: float
    ):
        self.field, self.sweep = Field(sweep, hosts), sweep
        self.rng, self.pause = rng, pause
        self.wounds: list[Wound] = []
        self.blows: list[str] = []
        self.recoveries: list[tuple[str, float]] = []
        self.stopped: list[tuple[psutil.Process, float]] = []  # and until when
        self.silent = False  # whether one was stopped for longer than a run may be

    def torment(self, most: int) -> bool:
        """Strike until that many kills or the sweep's end; whether it came to one."""
        due, progress, used = self.next_blow(0), 0, 0.0
        went_on = used, time.monotonic()
        while not self.sweep.is_done:
            time.sleep(LOOK)
            self.resume(time.monotonic())
            self.heal()
            used = self.field.processor_seconds()
            if self.sweep.progress() > progress:
                progress = self.sweep.progress()
                went_on = used, time.monotonic()
            since = used - went_on[0], time.monotonic() - went_on[1]
            if since[0] > STUCK[0] or since[1] > STUCK[1]:
                return False
            if used > due and self.kills < most:
                self.strike()
                due = self.next_blow(used)
        self.resume(math.inf)
        self.heal()
        return True

    @property
    def kills(self) -> int:
        return sum(kind in KILLS for kind in self.blows)

    def next_blow(self, used: float) -> float:
        """Sooner while features are extracted, which does not last."""
        pause = self.pause if self.sweep.has_features else self.pause / 4
        return used + self.rng.uniform(0.2, 1.8) * pause

    def strike(self) -> None:
        """A blow of a random kind at a random target."""
        targets = self.field.targets()
        if not targets:
            return
        weights = [KINDS[kind] for kind in targets]
        kind = self.rng.choices([*targets], weights)[0]
        target = self.rng.choice(targets[kind])
        folder = target and target.folder
        progress = self.sweep.progress(folder)
        with contextlib.suppress(psutil.NoSuchProcess):
            if kind == "disk":
                self.fill()
            elif kind == "stop":
                self.stop(target.process)
            else:
                target.process.kill()
            self.blows.append(kind)
            self.wounds.append(Wound(kind, folder, progress, time.monotonic()))

    def stop(self, process: psutil.Process) -> None:
        """Stop the process for a while; once, where locks fail, for a long one."""
        seconds = self.rng.uniform(*STOPPED)
        if not self.silent and any(host.flock is not None for host in self.field.hosts):
            self.silent, seconds = True, SILENT
        process.suspend()
        self.stopped.append((process, time.monotonic() + seconds))

    def resume(self, now: float) -> None:
        """Let go on what has been stopped for long enough."""
        for process, until in [*self.stopped]:
            if until <= now:
                self.stopped.remove((process, until))
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()

    def fill(self) -> None:
        """Leave no room on the sweep's disk for a while."""
        ballast = self.sweep.folder / "ballast"
        with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
            while True:
                file.write(bytes(2**12))
        time.sleep(self.rng.uniform(*FULL))
        ballast.unlink()

    def heal(self) -> None:
        """Note what has gone further than it was when it was hit."""
        for wound in [*self.wounds]:
            if self.sweep.progress(wound.folder) > wound.progress:
                self.wounds.remove(wound)
                taken = time.monotonic() - wound.since
                self.recoveries.append((wound.kind, taken))
