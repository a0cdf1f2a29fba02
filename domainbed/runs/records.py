"""What a run writes, so that a kill at any moment loses nothing that it finished.

results.jsonl grows by a line per checkpoint; state.pt, renewed whole after it, says how
long it was then. A run that starts again cuts off what came later and goes on.
"""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from domainbed.lib import misc
from domainbed.lib.errors import InputError
from domainbed.lib.identity import differences
from domainbed.runs import provenance


class OtherRunError(InputError):
    """The folder holds another run than the one that was asked for."""


class RunRecords:
    """The files run.json, results.jsonl, state.pt and done of one folder."""

    # Raises when another process has the folder by now; set by who holds it.
    check_own: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, folder: Path):
        self.folder = folder
        self.about, self.state = folder / "run.json", folder / "state.pt"
        self.results, self.done = folder / "results.jsonl", folder / "done"

    def check(self, about: dict[str, Any]) -> None:
        """OtherRunError if what the folder was made from is not what this run is.

        `about` is what `training.Run` says of itself; the error has every difference.
        """
        if changes := changed(self.made_from(), about):
            raise OtherRunError(
                f"{self.folder} holds another run: {', '.join(changes)}."
                " Name another --output_dir, or start over with --no_resume."
            )

    def made_from(self) -> dict[str, Any]:
        """What run.json says, {} if nothing is known."""
        return misc.read_json(self.about)

    def begin(self, about: dict[str, Any], step: int) -> None:
        """Write run.json: what the run is made from, and an attempt from that step on.

        An attempt that goes on leaves what was said of the first.
        """
        attempt = provenance.attempt(step)
        before = self.made_from()
        earlier = before.get("attempts", [])
        if step:
            about = about | before
        for name, version in attempt["versions"].items():
            was = earlier[-1]["versions"][name] if earlier else version
            if step and was != version:
                print(
                    f"warning: {self.folder} goes on with {name} {version}; the last "
                    f"attempt had {was}",
                    file=sys.stderr,
                )
        whole = about | {"attempts": [*earlier, attempt]}
        self.write(self.about.name, json.dumps(whole, indent=1))

    def write(self, name: str, content: str | bytes) -> None:
        """That file of the folder's, whole, and only while this process has the folder.

        It may have been stopped at any moment, for as long as another took its place.
        """
        misc.write_whole(self.folder / name, content, self.check_own)

    def clear(self) -> None:
        """Forget the run that was here."""
        for file in (self.done, self.state, self.results, self.about):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.folder / "tensorboard", ignore_errors=True)

    def append(self, record: dict[str, Any]) -> None:
        """Add a line to results.jsonl: all of it or, after an error, nothing."""
        self.check_own()
        with open(self.results, "ab") as file:
            end = file.tell()
            try:
                file.write(as_line(record).encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                error.filename = str(self.results)
                with contextlib.suppress(OSError):  # what closing would write again
                    file.close()
                os.truncate(self.results, end)
                raise

    def read(self) -> list[dict[str, Any]]:
        """Every record so far."""
        if not self.results.exists():
            return []
        return [json.loads(line) for line in self.results.read_text().splitlines()]

    def save_state(self, state: dict[str, Any]) -> None:
        """Renew state.pt; `state` is of tensors and plain types."""
        length = self.results.stat().st_size if self.results.exists() else 0
        self.save(self.state.name, state | {"results_length": length})

    def save(self, name: str, value: Any) -> None:
        """The same of what torch saves."""
        misc.save_whole(self.folder / name, value, self.check_own)

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
        self.write(self.done.name, "done")
        self.state.unlink(missing_ok=True)


def changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """In what two contents of run.json are two runs; only what both know counts."""

    def facts(name: str) -> Iterator[tuple[str, Any, Any]]:
        old, new = before.get(name), now[name]
        if isinstance(old, dict):
            for key in sorted(old.keys() & new.keys()):
                if old[key] != new[key]:
                    yield key, old[key], new[key]

    args = before.get("args")
    if isinstance(args, dict) and (changes := differences(args, now["args"])):
        return changes  # the others follow from them
    changes = [f"{name} was {x} and is {y}" for name, x, y in facts("hparams")]
    changes += [f"{name} had {x} images and has {y}" for name, x, y in facts("images")]
    for name, words in (("dataset", "the data"), ("split", "the splits")):
        if not changes and before.get(name, now[name]) != now[name]:
            changes.append(f"{words} were other ones (images renamed or moved?)")
    return changes


def as_line(record: dict[str, Any]) -> str:
    """The record as results.jsonl has it."""
    return json.dumps(misc.plain(record), sort_keys=True) + "\n"
