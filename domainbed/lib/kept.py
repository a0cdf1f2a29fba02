"""Arrays that take seconds to make, kept on the disk for the next process.

They lie in ~/.cache/domainbed/kept (or below XDG_CACHE_HOME), each named by all that it
depends on. The folder may be deleted at any time; what nobody has read for a month goes
when something new is kept.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

UNREAD = 30 * 86_400  # seconds


def kept(make: Callable[[], np.ndarray], facts: Any) -> np.ndarray:
    """What `make` gives, or what it once gave for these facts, of plain types.

    A folder that cannot be written or read costs the time to make it, and no more.
    """
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    path = folder() / f"{name}.npy"
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # not there, or not whole
        array = make()
        with contextlib.suppress(OSError):
            keep(path, array)
        return array
    with contextlib.suppress(OSError):
        os.utime(path)
    return array


def folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "domainbed" / "kept"


def keep(path: Path, array: np.ndarray) -> None:
    """Write the file, which appears whole; several processes may at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.iterdir():
        if time.time() - old.stat().st_mtime > UNREAD:
            old.unlink(missing_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent)
    try:
        with open(handle, "wb") as file:
            np.save(file, array)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        Path(part).unlink(missing_ok=True)
