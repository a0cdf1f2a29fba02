"""A run's folder: who works in it, how far it is, what went wrong.

Beside the contract's files (results.jsonl, out.txt, err.txt, model.pkl, done) it holds

    run.json    what the run was made from: arguments, versions, data; see training
    state.pt    where the run goes on, renewed at each checkpoint; gone when it is done
    lock        locked (flock) by the process that works here; dies with it
    heartbeat   who that is; touched every few seconds, gone when it ends in order
    failed      why the last attempt ended, if it failed
    slurm       its job on a cluster and that job's log, if Slurm runs it
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from domainbed.lib import misc
from domainbed.lib.errors import InputError

BEAT = 10  # seconds between heartbeats
SILENCE = 6 * BEAT  # without one for so long, a run on another machine is dead
LAST_LINES = 5  # of a log, kept in `failed`
STATES = ("done", "running", "failed", "stale", "waiting", "not launched")


class RunFolder:
    """What a folder's files say about its run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @property
    def log(self) -> Path:
        """Where the last error stands: err.txt or, if it never began, Slurm's log."""
        own = self.path / "err.txt"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if not (own.exists() and own.stat().st_size):
                return Path(json.loads((self.path / "slurm").read_text())["log"])
        return own

    @property
    def state(self) -> str:
        """One of STATES.

        Stale: its process ended without a word. Waiting: nobody works on it and nothing
        went wrong; it may have come far.
        """
        if (self.path / "done").exists():
            return "done"
        if not self.path.exists():
            return "not launched"
        if self.is_alive():
            return "running"
        if (self.path / "failed").exists():
            return "failed"
        return "stale" if (self.path / "heartbeat").exists() else "waiting"

    def is_alive(self) -> bool:
        """Whether a process works here, on this machine or on another.

        The lock tells, wherever the file system has locks that all its machines see;
        elsewhere a fresh heartbeat of another machine does.
        """
        if not (self.path / "lock").exists():
            return False
        lock = FileLock(self.path / "lock")
        try:
            lock.acquire(timeout=0)
            lock.release()
        except (Timeout, OSError, NotImplementedError):
            return True
        beat = self.heartbeat()
        elsewhere = beat is not None and beat["host"] != socket.gethostname()
        return elsewhere and abs(beat["age"]) < SILENCE

    def heartbeat(self) -> dict[str, Any] | None:
        """{host, pid, age in seconds} of the last process here that did not end."""
        try:
            beat = json.loads((self.path / "heartbeat").read_text())
            age = time.time() - (self.path / "heartbeat").stat().st_mtime
            return {"host": str(beat["host"]), "pid": int(beat["pid"]), "age": age}
        except (OSError, ValueError, TypeError, KeyError):
            return None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The folder is this process's own inside; InputError if it is another's."""
        lock = FileLock(self.path / "lock")
        try:
            lock.acquire(timeout=2)  # whoever only asks for the state holds it shortly
        except Timeout:
            beat = self.heartbeat() or {"host": "this machine", "pid": "unknown"}
            raise InputError(
                f"another process works in {self.path} (process {beat['pid']} on "
                f"{beat['host']}); wait for it or name another --output_dir."
            ) from None
        beat = {"host": socket.gethostname(), "pid": os.getpid()}
        misc.write_whole(self.path / "heartbeat", json.dumps(beat))
        ended = threading.Event()
        threading.Thread(target=self._beat, args=(ended,), daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            (self.path / "heartbeat").unlink(missing_ok=True)
            lock.release()

    def delete(self) -> bool:
        """Remove the folder; False, and it stays, while a process works in it."""
        if self.is_alive():
            return False
        lock = FileLock(self.path / "lock")
        try:
            lock.acquire(timeout=0)  # nobody can start here from now on
        except Timeout:
            return False
        shutil.rmtree(self.path)
        lock.release()
        return True

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self.path / "heartbeat")

    def fail(self, status: int, error: str | None = None) -> None:
        """Record that the run failed with that exit status, negative for a signal.

        `error` is what was said last; by default the log's last lines.
        """
        facts = {
            "exit_status": status,
            "signal": signal_name(status),
            "error": self.last_lines() if error is None else error,
            "log": str(self.log),
        }
        with contextlib.suppress(OSError):  # the disk may be what failed
            misc.write_whole(self.path / "failed", json.dumps(facts, indent=1))

    def forget_failure(self) -> None:
        """A new attempt has begun."""
        (self.path / "failed").unlink(missing_ok=True)

    def failure(self) -> dict[str, Any] | None:
        """What `fail` recorded, {} if that cannot be read, None if nothing."""
        try:
            facts = json.loads((self.path / "failed").read_text())
            return facts if isinstance(facts, dict) else {}
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return {}

    def last_lines(self) -> str:
        """The end of the log, without blank lines."""
        try:
            with open(self.log, "rb") as file:
                file.seek(max(0, os.path.getsize(self.log) - 10_000))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join([x for x in text.split("\n") if x.strip()][-LAST_LINES:])

    def last_error(self) -> str:
        """Why it does not go on, in one line; the log's last line has the word."""
        failure = self.failure() or {}
        lines = str(failure.get("error") or self.last_lines()).strip().split("\n")
        word = f"killed by {failure['signal']}" if failure.get("signal") else ""
        return ": ".join(filter(None, [word, lines[-1].strip()])) or "no log"


def signal_name(status: int) -> str | None:
    """The signal that an exit status tells of (-9, or a shell's 137), None for none."""
    number = -status if status < 0 else status - 128
    try:
        return signal.Signals(number).name
    except ValueError:
        return None
