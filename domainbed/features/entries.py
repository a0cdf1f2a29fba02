"""The feature store's files: what an entry holds, and what may be wrong with it.

    <feature_dir>/<key>/        the entry of one environment, whole
        facts.json    all that its features depend on; the key digests it
        z.npy         features (N, *shape), in the environment's order
        y.npy         labels (N,), places in the facts' classes
    <feature_dir>/<key>.part/   the same while it is being extracted, and
        rows          how many images are done
    <feature_dir>/<key>.lock    locked by the process that extracts, see lib/claim.py
    <feature_dir>/<key>.heartbeat   who that is

The time of facts.json is when the entry was last read. Locks stay when an entry goes:
whoever waits for one must not come to hold another file than who comes later.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from domainbed.datasets import ImageEnvironment
from domainbed.datasets_few_shot import ListedEnvironment
from domainbed.lib.claim import Claim, TakenError
from domainbed.lib.errors import InputError
from domainbed.lib.misc import digest, write_whole
from domainbed.lib.once import once
from domainbed.lib.pictures import check_file, with_others

ENTRY = re.compile(r"[0-9a-f]{16}(\.part)?")
FACTS = {"backbone", "transform", "folder", "files", "strict", "classes"}
FACTS |= {"images", "layers", "dtype"}
OF_LISTS = ("items", "views")  # further facts of lists of images
CHUNK = 1024  # images that are looked at together: memory stays bounded


class DamagedError(InputError):
    """An entry does not hold what it should."""

    def __init__(self, path: Path, reason: object):
        self.reason = shown(str(reason))
        super().__init__(
            f"the stored features in {path} are damaged ({self.reason}); python -m "
            f"domainbed.scripts.features prune --feature_dir {path.parent} removes "
            "what is damaged (verify only names it)."
        )


class Entry:
    """One environment's folder in the store."""

    def __init__(self, path: Path):
        self.path, self.key = path, path.name.removesuffix(".part")
        self.whole = self.key == path.name
        self.part = path.with_name(f"{self.key}.part")  # where it is made
        self.claim = Claim.beside(path.with_name(self.key))

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        """What the key digests, so a changed file is found out: DamagedError."""
        try:
            facts = json.loads((self.path / "facts.json").read_text())
        except (OSError, ValueError) as error:
            raise DamagedError(self.path, f"facts.json: {error}") from error
        if (
            not isinstance(facts, dict)
            or key_of(facts) != self.key
            or facts.keys() - {*OF_LISTS} != FACTS
        ):
            raise DamagedError(self.path, "facts.json is not what this version writes")
        return facts

    def arrays(self) -> tuple[np.memmap, np.ndarray]:
        """z (N, *shape), a memory map, and y (N,); DamagedError if they do not fit."""
        z, y = (self._map(name) for name in ("z.npy", "y.npy"))
        n, dtype = self.facts["images"], self.facts["dtype"]
        if z.ndim < 2 or (len(z), str(z.dtype)) != (n, dtype):
            found = f"{z.shape} {z.dtype}, not ({n}, ...) {dtype}"
            raise DamagedError(self.path, f"z.npy is {found}")
        known = range(len(self.facts["classes"]))
        if y.shape != (n,) or not np.isin(y, known).all():
            raise DamagedError(self.path, f"y.npy is not {n} labels of the classes")
        return z, np.array(y)

    def _map(self, name: str) -> np.memmap:
        try:
            return np.lib.format.open_memmap(self.path / name, mode="r")
        except (OSError, ValueError) as error:
            raise DamagedError(self.path, f"{name}: {error}") from error

    def check(self) -> None:
        """DamagedError unless its files fit together and every feature is finite."""
        z, _ = self.arrays()
        for start in range(0, len(z), CHUNK):
            if not np.isfinite(z[start : start + CHUNK]).all():
                where = f"from {start} to {min(start + CHUNK, len(z)) - 1}"
                raise DamagedError(
                    self.path, f"features of the images {where} are not finite"
                )

    def staleness(self) -> str | None:
        """Why nothing reads it any more, None if its folder is as it was.

        That holds, too, of a folder that is away: its disk may come back.
        """
        folder = Path(self.facts["folder"])
        if is_away(folder):
            return None
        if not folder.is_dir():
            return "its images are gone"
        environment = ImageEnvironment(folder, self.facts["classes"])
        if "items" in self.facts:
            environment = ListedEnvironment(
                folder, self.facts["items"], self.facts["classes"]
            )
        if digest_files(environment, self.facts["strict"]) != self.facts["files"]:
            return "its images have changed"
        return None

    @property
    def done(self) -> int:
        """How many images have their features."""
        if self.whole:
            return self.facts["images"]
        try:
            return int((self.path / "rows").read_text())
        except (OSError, ValueError):
            return 0

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(file.stat().st_size for file in self.path.glob("*"))

    @property
    def days(self) -> tuple[float, float]:
        """Days since it was written, and since it was last read."""
        files = (self.path / "z.npy", self.path / "facts.json")
        times = [(f if f.exists() else self.path).stat().st_mtime for f in files]
        written, read = (max(0, time.time() - t) / 86_400 for t in times)
        return written, min(written, read)

    def touch(self) -> None:
        """It is read now, if the store can be written."""
        with contextlib.suppress(OSError):
            os.utime(self.path / "facts.json")

    def follow(self, folder: str) -> None:
        """Its images are in that folder now, if the store can be written."""
        if self.facts["folder"] != folder:
            self.facts["folder"] = folder
            with contextlib.suppress(OSError):
                write_whole(self.path / "facts.json", json.dumps(self.facts, indent=1))

    def is_locked(self) -> bool:
        """Whether a process extracts it."""
        return self.claim.is_alive()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """No other process extracts it inside; one that does is waited for."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self.claim.held(patience=0))
            except TakenError:
                print(
                    f"waiting for the process that writes {self.path}", file=sys.stderr
                )
                stack.enter_context(self.claim.held(patience=math.inf))
            yield

    def remove(self) -> bool:
        """Delete it; False, and it stays, while a process extracts it."""
        return self.claim.remove(self.path)


def entries(feature_dir: Path) -> list[Entry]:
    """All of a store, whole or partial, in the order of their keys."""
    return [
        Entry(path)
        for path in sorted(feature_dir.iterdir())
        if ENTRY.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    ]


def is_away(folder: Path) -> bool:
    """Whether the place of an environment looks like that of a disk not mounted.

    Neither it nor its dataset's folder nor the data folder is there, or the nearest of
    them that is there is empty.
    """
    places = (folder, folder.parent, folder.parent.parent)
    nearest = next((place for place in places if place.is_dir()), None)
    return nearest is None or not any(nearest.iterdir())


def key_of(facts: dict[str, Any]) -> str:
    """16 hex digits that name the facts; where images are known by content, not where
    they lie.
    """
    named = {k: v for k, v in facts.items() if k != "folder" or not facts.get("strict")}
    text = json.dumps(named, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_files(environment: ImageEnvironment, strict: bool) -> str:
    """16 hex digits that name the images by path in the environment and by state.

    A file's state is its size and time of change or, if strict, its content.
    """

    def state(path: str) -> str:
        facts = os.stat(path)
        check_file(facts, path)
        if strict:
            return hashlib.sha256(Path(path).read_bytes()).hexdigest()
        return f"{facts.st_size} {facts.st_mtime_ns}"

    def whole() -> str:
        root = len(environment.root)
        return digest(
            text
            for path, _ in environment.samples
            for text in (path[root:], state(path))
        )

    try:
        return once(whole, "files", strict, environment.key)
    except OSError as error:
        first = InputError(f"cannot read the image {error.filename}: {error.strerror}.")
        raise with_others(first, error.filename, environment.siblings()) from error


def shown(text: str) -> str:
    """The text on one line, with what a terminal would obey escaped."""
    return repr(text)[1:-1]


def size_text(size: int) -> str:
    """Bytes in decimal MB, or from a thousand of them in GB."""
    unit, name = (1e9, "GB") if size >= 1e9 else (1e6, "MB")
    return f"{size / unit:,.1f} {name}"
