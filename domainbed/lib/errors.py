"""What the user gave was wrong: one sentence on standard error, exit status 2."""

import difflib
import functools
import sys
from collections.abc import Callable, Iterable


class InputError(ValueError):
    """A mistake in what the user gave; its text is one sentence that says the remedy."""


class UnknownNameError(InputError, NotImplementedError):
    """A name that is not registered; also what DomainBed raises for one."""

    def __init__(self, kind: str, name: object, known: Iterable[str]):
        known = sorted(known)
        by_lower = {word.lower(): word for word in known}
        near = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.5)
        guess = f" Did you mean {by_lower[near[0]]!r}?" if near else ""
        super().__init__(
            f"Unknown {kind} {str(name)!r}; known: {', '.join(known)}.{guess}"
        )


def exits_on_input_error(main: Callable[..., None]) -> Callable[..., None]:
    """`main`, but an InputError becomes its sentence and exit status 2."""

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> None:
        try:
            main(argv)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None

    return wrapped
