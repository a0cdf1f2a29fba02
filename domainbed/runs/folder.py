"""A run's folder: who works in it, how far it is, what went wrong.

Beside the contract's files (results.jsonl, out.txt, err.txt, model.pkl, done) it holds

    run.json    what the run was made from: arguments, versions, data; see training
    state.pt    where the run goes on, renewed at each checkpoint; gone when it is done
    lock        locked by the process that works here, see lib/claim.py
    heartbeat   who that is
    failed      why the last attempt ended, if it failed
    slurm       its job on a cluster and that job's log, if Slurm runs it
"""

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

from domainbed.lib import misc
from domainbed.lib.claim import Beat, Claim
from domainbed.lib.errors import InputError

LAST_LINES = 5  # of a log, kept in `failed`
MOST_BYTES = 10_000  # of a log's end, that are looked at
STATES = ("done", "running", "failed", "stale", "waiting", "not launched")


class RunFolder:
    """What a folder's files say about its run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.claim = Claim(self.path, self.path / "lock", self.path / "heartbeat")

    @property
    def log(self) -> Path:
        """Where the last error stands: err.txt or, if it never began, Slurm's log."""
        own = self.path / "err.txt"
        return own if os.path.exists(own) else Path(self.slurm.get("log", own))

    @property
    def slurm(self) -> dict[str, str]:
        """Slurm's `job` that is to run it, and that job's `log`; {} without one."""
        about = misc.read_json(self.path / "slurm")
        return {name: str(value) for name, value in about.items()}

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
        """Whether a process works here, on this machine or on another."""
        return self.claim.is_alive()

    def heartbeat(self) -> Beat | None:
        """Of the last process here that did not end, see lib/claim.py."""
        return self.claim.heartbeat()

    def held(self) -> contextlib.AbstractContextManager[None]:
        """The folder is this process's own inside; InputError if it is another's."""
        return self.claim.held()

    def delete(self) -> bool:
        """Remove the folder; False, and it stays, while a process works in it."""
        return self.claim.remove(self.path)

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
        lines = [line for line in end_of(self.log).split("\n") if line.strip()]
        return "\n".join(lines[-LAST_LINES:])

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


def end_of(log: str | Path) -> str:
    """What a log says last, "" if it cannot be read."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.path.getsize(log) - MOST_BYTES))
            return file.read().decode(errors="replace")
    except (OSError, ValueError):  # ValueError: of a name that is no path
        return ""


def signal_name(status: int) -> str | None:
    """The signal that an exit status tells of (-9, or a shell's 137), None for none."""
    number = -status if status < 0 else status - 128
    try:
        return signal.Signals(number).name
    except ValueError:
        return None
