"""Rows of hyperparameters whose number has bounds, said where the row is declared.

    "lr": at_least(0, 1e-3, lambda r: 10 ** r.uniform(-4.5, -2.5))

is a row (default, draw) as any other, and knows what --hparams may give it.
"""

import math
from collections.abc import Callable
from typing import Any

from domainbed.lib.errors import InputError

INTEGERS = 2**63  # torch's are below
FLOATS = 1e30  # those of torch's float32 end soon above
Draw = Callable[[Any], Any]
Row = tuple[Any, Draw | None]


class Bounded(tuple):
    """A row (default, draw) whose number is from `least` to `most`."""

    least: float
    most: float


def between(
    least: float, most: float, default: Any, draw: Draw | None = None
) -> Bounded:
    """The row (default, draw); its number must be from `least` to `most`."""
    row = Bounded((default, draw))
    row.least, row.most = least, most
    return row


def at_least(least: float, default: Any, draw: Draw | None = None) -> Bounded:
    """The row (default, draw); its number must not be below `least`."""
    return between(least, math.inf, default, draw)


def instead_of(rows: dict[str, Row], own: dict[str, Row]) -> dict[str, Row]:
    """`own` go before `rows`, and have their bounds where they say none."""

    def row(name: str) -> Row:
        before = rows.get(name)
        if isinstance(before, Bounded) and not isinstance(own[name], Bounded):
            return between(before.least, before.most, *own[name])
        return own[name]

    return rows | {name: row(name) for name in own}


def check_bounds(name: str, value: Any, row: Row) -> None:
    """InputError for a number outside of the row's bounds, or one that is not finite.

    Whatever is no number is not looked at.
    """
    if type(value) not in (int, float):
        return
    if type(value) is int and abs(value) >= INTEGERS:
        raise InputError(f"hyperparameter {name!r} is {value}; it must be below 2**63.")
    if FLOATS < abs(value) < math.inf:
        raise InputError(
            f"hyperparameter {name!r} is {value}; it must be from -{FLOATS} to "
            f"{FLOATS}."
        )
    bounds = row if isinstance(row, Bounded) else at_least(-math.inf, None)
    if math.isfinite(value) and bounds.least <= value <= bounds.most:
        return
    allowed = f"at least {bounds.least}"
    if bounds.most < math.inf:
        allowed = f"from {bounds.least} to {bounds.most}"
    allowed = allowed if bounds.least > -math.inf else "a finite number"
    raise InputError(f"hyperparameter {name!r} is {value}; it must be {allowed}.")


def check_all(rows: dict[str, Row], values: dict[str, Any]) -> None:
    """InputError for the first of the rows' values that is outside of its bounds."""
    for name in [name for name in rows if name in values]:
        check_bounds(name, values[name], rows[name])
