"""What the user gave was wrong: one sentence on standard error, exit status 2."""

import argparse
import difflib
import errno
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any

# A disk that is full (also for this user, or this file), cannot be written, or fails.
DISK_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EIO,
)
# A place that cannot be what is asked of it: what was given is wrong.
PLACE_ERRORS = (
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ELOOP,
)


class InputError(ValueError):
    """A mistake in what the user gave; its text is one sentence with the remedy."""


class UnknownNameError(InputError, NotImplementedError):
    """A name that is not registered; also what DomainBed raises for one."""

    def __init__(self, kind: str, name: object, known: Iterable[str]):
        known = list(known)
        super().__init__(
            f"Unknown {kind} {str(name)!r}; known: {', '.join(known)}."
            + did_you_mean(str(name), known)
        )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' Did you mean X?' for the known name nearest to `name`, or nothing."""
    by_lower = {word.lower(): word for word in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return f" Did you mean {by_lower[near[0]]!r}?" if near else ""


def one_line(error: object, most: int | None = None) -> str:
    """What it says on one line, cut; of an error that says nothing, what it is."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def check_at_least(args: argparse.Namespace, **bounds: int) -> None:
    """InputError for the first argument that is given and below its least value."""
    for name, bound in bounds.items():
        value = getattr(args, name)
        if value is not None and value < bound:
            raise InputError(f"--{name} is {value}; it must be at least {bound}.")


def check_choice(hparams: dict[str, Any], name: str, known: Iterable[str]) -> str:
    """The value of that hyperparameter; UnknownNameError unless it is known."""
    if (value := hparams[name]) not in known:
        raise UnknownNameError(f"value of the hyperparameter {name}:", value, known)
    return value


def divided(width: int, hparams: dict[str, Any], name: str) -> int:
    """width / that hyperparameter; InputError unless it divides the width."""
    value = hparams[name]
    if value < 1 or width % value:
        divisors = (n for n in range(1, width + 1) if width % n == 0)
        nearest = min(divisors, key=lambda n: abs(n - value))
        raise InputError(
            f"hyperparameter {name} is {value}; it must divide {width}, and the "
            f"nearest number that does is {nearest}."
        )
    return width // value


def exits_on_input_error(function: Callable[..., None]) -> Callable[..., None]:
    """The function, but an InputError becomes its sentence and exit status 2.

    A disk that refuses becomes a sentence and 1, a place that is of another kind one
    and 2. A reader that goes away, as in `| head`, ends it without a word. What
    standard output cannot print is escaped.
    """

    @functools.wraps(function)
    def wrapped(*args: Any) -> None:
        if hasattr(sys.stdout, "reconfigure"):  # what a caller put there may have none
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            function(*args)
            sys.stdout.flush()
        except BrokenPipeError:
            # What Python would write at its end goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(128 + signal.SIGPIPE) from None
        except OSError as error:
            if error.errno not in (*DISK_ERRORS, *PLACE_ERRORS):
                raise
            place = f" {error.filename}" if error.filename else ""
            print(f"error: cannot use{place}: {error.strerror}.", file=sys.stderr)
            raise SystemExit(2 if error.errno in PLACE_ERRORS else 1) from None
        except InputError as error:
            # A DataLoader's worker puts its traceback before the sentence.
            sentence = str(error).split("domainbed.lib.errors.InputError: ")[-1]
            print(f"error: {' '.join(sentence.split())}", file=sys.stderr)
            raise SystemExit(2) from None

    return wrapped
