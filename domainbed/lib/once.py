"""What is made once, for a process and all that fork from it afterwards.

A run makes anew what it reads from a disk, so that it notices what has changed. Runs
that are forked from one process, see `launchers/warm.py`, begin with what it had.
"""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

Made = TypeVar("Made")

MADE: dict[Hashable, Any] | None = None  # None: nothing is remembered


def remember() -> None:
    """From now on `once` remembers, here and in all that fork from this process."""
    global MADE
    MADE = {} if MADE is None else MADE


def once(make: Callable[[], Made], *key: Hashable) -> Made:
    """What `make` gives or, where that is remembered, has given for that key.

    None in a key stands for what has no name: that is made every time.
    """
    if MADE is None or None in key:
        return make()
    if key not in MADE:
        MADE[key] = make()
    return MADE[key]
