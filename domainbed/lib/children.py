"""Functions in processes of their own, and processes that end with their parent."""

import ctypes
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from domainbed.lib.errors import InputError, one_line

PR_SET_PDEATHSIG = 1  # of prctl(2)


def die_with(parent: int) -> None:
    """Linux kills this process when its parent ends, however that ends.

    `parent` is its number: if that has ended already, this process ends at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)


def in_child(function: Callable, *args: Any) -> Any:
    """What the function returns in a new process, or {"error": a sentence}.

    Linux counts the peak memory of this process into that of the new one, so this one
    should load no more than the function will.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as pool:
        try:
            return pool.submit(caught, function, *args).result()
        except BrokenProcessPool:
            return {
                "error": "its process ended early, perhaps killed for want of memory"
            }


def caught(function: Callable, *args: Any) -> Any:
    """What the function returns, or {"error": a sentence} for what it raises."""
    try:
        return function(*args)
    except InputError as error:
        sentence = str(error)
    except Exception as error:
        traceback.print_exc()
        sentence = f"{type(error).__name__}: {error}"
    return {"error": one_line(sentence)}
