"""Locks as some file systems have them: refused, or granted to everybody.

On the PYTHONPATH of a process it does so from the start. TORTURE_FLOCK is the number of
the error that `flock` gives, 0 for none, and nothing changes without it.
"""

import fcntl
import os


def flock(fd: object, operation: int) -> None:
    """What stands for fcntl.flock: it locks nothing."""
    if number := int(os.environ["TORTURE_FLOCK"]):
        raise OSError(number, os.strerror(number))


if "TORTURE_FLOCK" in os.environ:
    fcntl.flock = flock
