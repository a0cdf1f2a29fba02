"""What a run writes, so that a kill at any moment loses nothing that it finished.

results.jsonl grows by a line per checkpoint; state.pt, renewed whole after it, says how
long it was then. A run that starts again cuts off what came later and goes on.
"""

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from domainbed.lib import misc
from domainbed.lib.errors import InputError
from domainbed.lib.identity import differences


class OtherRunError(InputError):
    """The folder holds a run that was made with other arguments."""


class RunRecords:
    """The files run.json, results.jsonl, state.pt and done of one folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.about, self.state = folder / "run.json", folder / "state.pt"
        self.results, self.done = folder / "results.jsonl", folder / "done"

    def check(self, args: dict[str, Any]) -> None:
        """OtherRunError if the folder was made with other arguments than these."""
        try:
            before = json.loads(self.about.read_text())["args"]
        except (OSError, ValueError, KeyError, TypeError):
            return  # nothing is known of it
        changes = differences(before, misc.plain(args))
        if changes:
            raise OtherRunError(
                f"{self.folder} holds a run with other arguments: {', '.join(changes)}."
                " Name another --output_dir, or start over with --no_resume."
            )

    def clear(self) -> None:
        """Forget the run that was here."""
        for file in (self.done, self.state, self.results, self.about):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.folder / "tensorboard", ignore_errors=True)

    def append(self, record: dict[str, Any]) -> None:
        """Add a line to results.jsonl: all of it or, after an error, nothing."""
        with open(self.results, "ab") as file:
            end = file.tell()
            try:
                file.write(as_line(record).encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):  # what closing would write again
                    file.close()
                os.truncate(self.results, end)
                raise

    def read(self) -> list[dict[str, Any]]:
        """Every record so far."""
        return [json.loads(line) for line in self.results.read_text().splitlines()]

    def save_state(self, state: dict[str, Any]) -> None:
        """Renew state.pt; `state` is of tensors and plain types."""
        length = self.results.stat().st_size if self.results.exists() else 0
        misc.save_whole(self.state, state | {"results_length": length})

    def load_state(self) -> dict[str, Any] | None:
        """The last state, results.jsonl cut to what it was then; None to start over."""
        try:
            state = torch.load(self.state, map_location="cpu", weights_only=True)
            length = state["results_length"]
            usable = not length or self.results.stat().st_size >= length
        except Exception:  # whatever a damaged file makes torch.load raise
            usable = False
        if not usable:
            self.results.unlink(missing_ok=True)
            return None
        if self.results.exists():
            os.truncate(self.results, length)
        return state

    def finish(self) -> None:
        """Say that the run is whole."""
        misc.write_whole(self.done, "done")
        self.state.unlink(missing_ok=True)


def as_line(record: dict[str, Any]) -> str:
    """The record as results.jsonl has it."""
    return json.dumps(misc.plain(record), sort_keys=True) + "\n"
