"""Q: a list of records with the few questions that tables ask of it."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

Selector = str | Callable[..., Any]


def make_selector_fn(selector: Selector) -> Callable[[Any], Any]:
    """A function of a record: 'a.b' reads record['a']['b'], 'a,b' gives a tuple.

    A function that requires several arguments takes a record, a tuple then, apart.
    """
    if isinstance(selector, str):
        if "," in selector:
            parts = [make_selector_fn(part) for part in selector.split(",")]
            return lambda record: tuple(part(record) for part in parts)
        keys = selector.strip().split(".")
        return lambda record: _descend(record, keys)
    if not callable(selector):
        raise TypeError(f"a selector is a string or a function, not {selector!r}")
    if _required_arguments(selector) > 1:
        return lambda record: selector(*record)
    return selector


def _required_arguments(fn: Callable) -> int:
    """How many arguments it needs; 1 for a built-in that has no signature."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except ValueError:
        return 1
    positional = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    return sum(p.default is p.empty and p.kind in positional for p in parameters)


def _descend(record: Any, keys: list[str]) -> Any:
    for key in keys:
        record = record[key]
    return record


def _hashable(value: Any) -> Any:
    """A stand-in that is equal when the values are; lists and dicts have no hash."""
    if isinstance(value, dict):
        return "dict", tuple(sorted((k, _hashable(v)) for k, v in value.items()))
    if isinstance(value, list | tuple):
        return type(value).__name__, tuple(map(_hashable, value))
    return value


class Q(list):
    """Records, of which every question gives a new Q or a number."""

    def __init__(self, records: Iterable = ()):
        super().__init__(records)

    def __getitem__(self, key):
        item = super().__getitem__(key)
        return Q(item) if isinstance(key, slice) else item

    def __add__(self, other):
        return Q(super().__add__(list(other)))

    def group(self, selector: Selector) -> "Q":
        """(key, Q of the records with that key) for each key, sorted by key."""
        key_of = make_selector_fn(selector)
        groups: dict[Any, tuple[Any, Q]] = {}
        for record in self:
            key = key_of(record)
            groups.setdefault(_hashable(key), (key, Q()))[1].append(record)
        try:
            return Q(groups[key] for key in sorted(groups))
        except TypeError:  # keys of several types, None among them
            return Q(groups[key] for key in sorted(groups, key=repr))

    def map(self, fn: Callable) -> "Q":
        """fn of each record; a fn of several arguments takes a record's parts."""
        return Q(map(make_selector_fn(fn), self))

    def select(self, selector: Selector) -> "Q":
        """What the selector reads from each record."""
        return Q(map(make_selector_fn(selector), self))

    def filter(self, fn: Selector) -> "Q":
        """The records for which it holds."""
        holds = make_selector_fn(fn)
        return Q(record for record in self if holds(record))

    def filter_equals(self, selector: Selector, value: Any) -> "Q":
        """The records where the selector reads that value."""
        read = make_selector_fn(selector)
        return self.filter(lambda record: read(record) == value)

    def filter_not_none(self) -> "Q":
        return self.filter(lambda record: record is not None)

    def unique(self) -> "Q":
        """Each value once, in first-seen order."""
        firsts: dict[Any, Any] = {}
        for value in self:
            firsts.setdefault(_hashable(value), value)
        return Q(firsts.values())

    def flatten(self) -> "Q":
        """The elements of the elements."""
        return Q(element for elements in self for element in elements)

    def sorted(self, key: Selector = lambda record: record) -> "Q":
        return Q(sorted(self, key=make_selector_fn(key)))

    def argmax(self, selector: Selector) -> Any:
        """The first record whose value is highest."""
        return max(self, key=make_selector_fn(selector))

    def min(self) -> Any:
        return min(self)

    def max(self) -> Any:
        return max(self)

    def mean(self) -> float:
        with np.errstate(invalid="ignore"):
            return float(np.mean(list(self)))

    def std(self) -> float:
        with np.errstate(invalid="ignore"):
            return float(np.std(list(self)))
