"""One process at a time works at a place, whichever machine it is on.

`lock` is locked (flock) by it and dies with it. Some file systems refuse locks, do not
know them, or show each machine only its own. So `heartbeat` says who it is, too: a file
that is touched every few seconds, and gone when the work ends in order.
"""

import contextlib
import fcntl
import json
import math
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from domainbed.lib import misc
from domainbed.lib.errors import DISK_ERRORS, InputError

BEAT = 10  # seconds between heartbeats
LOOK = 0.5  # seconds between two looks at another process's heartbeat
SILENCE = 6 * BEAT  # without one for so long, a process on another machine is dead
SAME = 5  # seconds; clocks are set, and no process has another's number so soon
AHEAD: dict[int, float] = {}  # device -> `ahead` of its file system
Beat = dict[str, Any]


class TakenError(InputError):
    """Another process works there."""

    def __init__(self, place: Path, beat: Beat | None):
        beat = beat or {"host": "this machine", "pid": "unknown"}
        super().__init__(
            f"another process works in {place} (process {beat['pid']} on "
            f"{beat['host']}); wait for it or name another folder."
        )


class Claim:
    """The right to work at a place, by its lock and its heartbeat."""

    def __init__(self, place: Path, lock: Path, beat: Path):
        self.place, self.lock, self.beat = place, lock, beat
        self.own: Beat | None = None  # what this process's heartbeat says

    @classmethod
    def beside(cls, place: Path) -> "Claim":
        """With its files at PLACE.lock and PLACE.heartbeat."""
        return cls(place, Path(f"{place}.lock"), Path(f"{place}.heartbeat"))

    def is_alive(self) -> bool:
        """Whether a process works there, on this machine or on another.

        The lock tells, wherever the file system has locks that all its machines see.
        Elsewhere the process does, if it is this machine's, or a fresh heartbeat.
        """
        if is_held(self.lock):
            return True
        beat = self.heartbeat()
        if beat is None:
            return False
        return abs(beat["age"]) < SILENCE if is_elsewhere(beat) else lives(beat)

    def heartbeat(self) -> Beat | None:
        """{host, pid, began, age in seconds, time} of who works, or died there.

        Its age is by the file system's clock, which is one for all machines.
        """
        try:
            beat = json.loads(self.beat.read_text())
            then = self.beat.stat().st_mtime
            facts = {"host": str(beat["host"]), "pid": int(beat["pid"])}
        except (OSError, ValueError, TypeError, KeyError):
            return None
        age = time.time() + ahead(self.beat.parent) - then
        return facts | {"began": beat.get("began"), "age": age, "time": then}

    @contextlib.contextmanager
    def held(self, patience: float = 2) -> Iterator[None]:
        """The place is this process's own inside.

        TakenError if it is another's for longer than so many seconds; who only asks
        for the state has the lock shortly.
        """
        with self.locked(patience):
            self._begin(patience)
            ended = threading.Event()
            threading.Thread(target=self._beat, args=(ended,), daemon=True).start()
            try:
                yield
            finally:
                ended.set()
                if self._is_own():
                    with contextlib.suppress(OSError):  # the disk may be what failed
                        self.beat.unlink(missing_ok=True)
                self.own = None

    @contextlib.contextmanager
    def locked(self, patience: float) -> Iterator[None]:
        """The lock is this process's inside, if the file system has locks.

        TakenError if another process has it for longer than so many seconds.
        """
        # filelock's own stand-in for locks outlives a process that was killed.
        lock = FileLock(self.lock, fallback_to_soft=False)
        try:
            lock.acquire(timeout=-1 if patience == math.inf else patience)
        except Timeout:
            raise TakenError(self.place, self.heartbeat()) from None
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise
        try:
            yield
        finally:
            lock.release()

    def remove(self, folder: Path) -> bool:
        """Delete a folder; False, and it stays, while a process works at the place."""
        if self.is_alive():
            return False
        try:
            with self.locked(patience=0):  # nobody can start there from now on
                if folder.exists():
                    shutil.rmtree(folder)
        except TakenError:
            return False
        return True

    def check(self) -> None:
        """TakenError if this process held the place and another has it now.

        That is so after a silence, stopped or without its disk, where there are no
        locks; what is written from then on would be there twice.
        """
        if self.own is None or self._is_own():
            return
        if (beat := self.heartbeat()) or not self.beat.exists():
            raise TakenError(self.place, beat)

    def _is_own(self) -> bool:
        beat = self.heartbeat()
        return beat is not None and self.own == {key: beat[key] for key in self.own}

    def _begin(self, patience: float) -> None:
        """Write the heartbeat; TakenError if another process has a live one then.

        Who beat a moment ago on another machine is waited for until it is silent for
        long enough, or beats again.
        """
        own = {"host": socket.gethostname(), "pid": os.getpid()}
        own |= {"began": psutil.Process().create_time()}
        new = self.beat.with_name(f"{self.beat.name}.{own['host']}.{own['pid']}")
        misc.write_whole(new, json.dumps(own))
        try:
            first = self.heartbeat()
            while not self._began(new):
                beat = self.heartbeat()
                if beat is None or not may_live(beat):
                    self.beat.unlink(missing_ok=True)
                    continue
                beats = not is_elsewhere(beat) or first is None
                beats = beats or beat["time"] != first["time"]
                if beats and patience < math.inf:
                    raise TakenError(self.place, beat)
                time.sleep(LOOK)
        finally:
            new.unlink(missing_ok=True)
        self.own = own

    def _began(self, new: Path) -> bool:
        """Make `new` the heartbeat, unless there is one."""
        try:
            os.link(new, self.beat)  # one of several makes it
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            if self.beat.exists():
                return False
            new.rename(self.beat)
        return True

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(BEAT):
            with contextlib.suppress(OSError):
                if self._is_own():
                    os.utime(self.beat)


def is_held(lock: Path) -> bool | None:
    """Whether a process holds that lock file; None if that cannot be known.

    Looked at with a shared lock, which several may have at once and which needs no
    right to write.
    """
    try:
        with open(lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError:
        return None
    return False


def is_elsewhere(beat: Beat) -> bool:
    """Whether the heartbeat is another machine's."""
    return beat["host"] != socket.gethostname()


def lives(beat: Beat) -> bool:
    """Whether the process of a heartbeat of this machine is there."""
    try:
        process = psutil.Process(beat["pid"])
        dead = process.status() == psutil.STATUS_ZOMBIE
        began = beat["began"]
        other = began is not None and abs(process.create_time() - began) > SAME
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
    return not (dead or other)


def may_live(beat: Beat) -> bool:
    """Whether another process than this one may be at work by that heartbeat."""
    if is_elsewhere(beat):
        return abs(beat["age"]) < SILENCE
    return beat["pid"] != os.getpid() and lives(beat)


def ahead(folder: Path) -> float:
    """Seconds by which the file system's clock is before this machine's.

    It is asked once, by a file that is written; 0 where it cannot be.
    """
    with contextlib.suppress(OSError):
        device = folder.stat().st_dev
        if device not in AHEAD:
            with tempfile.TemporaryFile(dir=folder) as file:
                AHEAD[device] = os.fstat(file.fileno()).st_mtime - time.time()
        return AHEAD[device]
    return 0.0
