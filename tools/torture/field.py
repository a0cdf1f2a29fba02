"""The processes of a sweep that is tortured: what each is, and what they use."""

import contextlib
import itertools
import os
import signal
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import psutil

from domainbed.lib.claim import SILENCE
from domainbed.runs.folder import RunFolder
from tools.torture.sweep import Host, Sweep

LOOK = 0.1  # seconds between two looks


class Target(NamedTuple):
    """A process, and the run that it works for, if it is one's."""

    process: psutil.Process
    folder: Path | None = None


class Field:
    """A sweep, its hosts, and all processes that these have started."""

    def __init__(self, sweep: Sweep, hosts: list[Host]):
        self.sweep, self.hosts = sweep, hosts
        self.spared = {child.pid for child in psutil.Process().children()}
        self.used: dict[int, float] = {}  # process id -> seconds of a processor

    def processes(self) -> list[psutil.Process]:
        """All that the hosts' launchers have started, dead launchers' too.

        This process adopts these, and buries them.
        """
        found = psutil.Process().children(recursive=True)
        found = [process for process in found if process.pid not in self.spared]
        launched = {*itertools.chain(*(host.launched for host in self.hosts))}
        living = []
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess, ChildProcessError):
                if process.status() != psutil.STATUS_ZOMBIE:
                    living.append(process)
                elif process.ppid() == os.getpid() and process.pid not in launched:
                    os.waitpid(process.pid, os.WNOHANG)
        return living

    def processor_seconds(self) -> float:
        """What all of them have used so far."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                self.used[process.pid] = sum(process.cpu_times()[:2])
        return sum(self.used.values())

    def targets(self) -> dict[str, list[Target]]:
        """What each kind of blow could hit now."""
        found: dict[str, list[Target]] = defaultdict(list)
        beats = {f: RunFolder(f).heartbeat() for f in self.sweep.folders}
        own = {beat["pid"]: folder for folder, beat in beats.items() if beat}
        leaders = {pid for host in self.hosts for pid in host.launched[-1:]}
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                pid, parent = process.pid, process.ppid()
                if pid in own:
                    found["run"].append(Target(process, own[pid]))
                    if any(".part/" in f.path for f in process.open_files()):
                        found["extractor"].append(Target(process, own[pid]))
                elif parent in own:
                    found["loader"].append(Target(process, own[parent]))
                elif pid in leaders:
                    found["launcher"].append(Target(process))
                elif parent in leaders and "forkserver" in str(process.cmdline()):
                    found["forkserver"].append(Target(process))
        if any(host.warm for host in self.hosts):
            found["forkserver"] = []  # runs that have not begun look like one
        found["stop"] = found["run"]
        found["disk"] = [None]
        if not found["run"]:  # what has not begun has nothing to lose
            return {}
        return {kind: targets for kind, targets in found.items() if targets}

    def leave(self) -> int:
        """End what is left of the sweep's processes; how many outlived it.

        Each writes first where it is to its host's log.
        """
        ends = time.monotonic() + 3 * SILENCE
        while self.processes() and time.monotonic() < ends:
            time.sleep(LOOK)
        left = self.processes()
        for number in (signal.SIGABRT, signal.SIGKILL):
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
            time.sleep(1 if left else 0)
        return len(left)
