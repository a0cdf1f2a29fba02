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
import fcntl
import json
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from domainbed.lib import misc
from domainbed.lib.errors import DISK_ERRORS, InputError

BEAT = 10  # seconds between heartbeats
LOOK = 0.5  # seconds between two looks at another machine's heartbeat
SILENCE = 6 * BEAT  # without one for so long, a run on another machine is dead
LAST_LINES = 5  # of a log, kept in `failed`
AHEAD: dict[int, float] = {}  # device -> `ahead` of its file system
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
            if not own.exists():
                return Path(json.loads((self.path / "slurm").read_text())["log"])
        return own

    def slurm_log(self) -> str:
        """What Slurm's log of its job says last, "" if there is none."""
        try:
            log = json.loads((self.path / "slurm").read_text())["log"]
            with open(log, "rb") as file:
                file.seek(max(0, os.path.getsize(log) - 10_000))
                return file.read().decode(errors="replace")
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    @property
    def state(self) -> str:
        """One of STATES.

        Stale: its process ended without a word. Waiting: nobody works on it and nothing
        went wrong; it may have come far.
        """
        try:
            if (self.path / "done").exists():
                return "done"
            if not self.path.exists():
                return "not launched"
        except PermissionError as error:
            raise InputError(f"cannot look into {self.path}: {error}.") from None
        if self.is_alive():
            return "running"
        if (self.path / "failed").exists():
            return "failed"
        return "stale" if (self.path / "heartbeat").exists() else "waiting"

    def is_alive(self) -> bool:
        """Whether a process works here, on this machine or on another.

        The lock tells, wherever the file system has locks that all its machines see;
        elsewhere, and where the lock cannot be asked, a fresh heartbeat does.
        """
        held = is_held(self.path / "lock")
        beat = self.heartbeat()
        if held or beat is None or abs(beat["age"]) >= SILENCE:
            return bool(held)
        return held is None or elsewhere(beat)

    def heartbeat(self) -> dict[str, Any] | None:
        """{host, pid, age in seconds, time} of the last process here that did not end.

        Its age is by the file system's clock, which is one for all machines.
        """
        try:
            beat = json.loads((self.path / "heartbeat").read_text())
            then = (self.path / "heartbeat").stat().st_mtime
            facts = {"host": str(beat["host"]), "pid": int(beat["pid"])}
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return facts | {"age": time.time() + ahead(self.path) - then, "time": then}

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The folder is this process's own inside; InputError if it is another's."""
        lock, shared = FileLock(self.path / "lock"), False
        try:
            lock.acquire(timeout=2)  # whoever only asks for the state holds it shortly
        except Timeout:
            raise self.taken() from None
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise
            shared = True  # no locks here: heartbeats alone keep two processes apart
        try:
            self.claim(shared)
        except BaseException:
            lock.release()
            raise
        ended = threading.Event()
        threading.Thread(target=self._beat, args=(ended,), daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            with contextlib.suppress(OSError):  # the disk may be what failed
                (self.path / "heartbeat").unlink(missing_ok=True)
            lock.release()

    def claim(self, shared: bool) -> None:
        """Write the heartbeat; InputError if another process has a live one.

        The lock may be one that other machines do not see; `shared` says that this one
        does not, either. Whoever was here a moment ago is waited for until it is silent
        for long enough, or beats again.
        """
        own = self.path / f"heartbeat.{socket.gethostname()}.{os.getpid()}"
        misc.write_whole(
            own, json.dumps({"host": socket.gethostname(), "pid": os.getpid()})
        )
        try:
            first = self.heartbeat()
            while not self._began(own):
                beat = self.heartbeat()
                fresh = beat is not None and abs(beat["age"]) < SILENCE
                if not fresh or not (may_live(beat) if shared else elsewhere(beat)):
                    (self.path / "heartbeat").unlink(missing_ok=True)
                elif first is None or beat["time"] != first["time"]:
                    raise self.taken()
                else:
                    time.sleep(LOOK)
        finally:
            own.unlink(missing_ok=True)

    def _began(self, own: Path) -> bool:
        """Make `own` the heartbeat, unless there is one."""
        try:
            os.link(own, self.path / "heartbeat")  # one of several makes it
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            if (self.path / "heartbeat").exists():
                return False
            own.rename(self.path / "heartbeat")
        return True

    def taken(self) -> InputError:
        """What to say where another process works."""
        beat = self.heartbeat() or {"host": "this machine", "pid": "unknown"}
        return InputError(
            f"another process works in {self.path} (process {beat['pid']} on "
            f"{beat['host']}); wait for it or name another --output_dir."
        )

    def delete(self) -> bool:
        """Remove the folder; False, and it stays, while a process works in it."""
        if self.is_alive():
            return False
        lock = FileLock(self.path / "lock")
        try:
            lock.acquire(timeout=0)  # nobody can start here from now on
        except (Timeout, NotImplementedError):
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
        failure = self.failure()
        if failure is None and (self.path / "heartbeat").exists():
            return self.last_step()  # what it printed last is not why it ended
        failure = failure or {}
        lines = str(failure.get("error") or self.last_lines()).strip().split("\n")
        word = f"killed by {failure['signal']}" if failure.get("signal") else ""
        said = ": ".join(filter(None, [word, lines[-1].strip()]))
        return said or self.last_step()

    def last_step(self) -> str:
        """Where a run was that ended without a word."""
        try:
            lines = (self.path / "results.jsonl").read_text().splitlines()
            where = f"after its checkpoint at step {json.loads(lines[-1])['step']}"
        except (OSError, ValueError, IndexError, TypeError, KeyError):
            where = "before its first checkpoint"
        return f"ended without a word {where}"


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


def elsewhere(beat: dict[str, Any]) -> bool:
    """Whether the heartbeat is another machine's."""
    return beat["host"] != socket.gethostname()


def may_live(beat: dict[str, Any]) -> bool:
    """Whether another process of that number may be at work."""
    try:
        os.kill(beat["pid"], 0)
    except ProcessLookupError:
        return elsewhere(beat)
    except OSError:  # somebody else's
        return True
    return elsewhere(beat) or beat["pid"] != os.getpid()


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


def signal_name(status: int) -> str | None:
    """The signal that an exit status tells of (-9, or a shell's 137), None for none."""
    number = -status if status < 0 else status - 128
    try:
        return signal.Signals(number).name
    except ValueError:
        return None
