"""Classes by name: what `@register` fills and `get_..._class` reads."""

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Sequence
from typing import TypeVar

import domainbed
from domainbed.lib.errors import UnknownNameError

Class = TypeVar("Class", bound=type)


class Registry:
    """The registered classes of one kind ("algorithm" or "dataset"), in order.

    Classes live in `domainbed/<kind>s.py`, in any `domainbed/<kind>s_<family>.py`
    beside it, and in installed packages that name a module under the entry-point
    group `domainbed.<kind>s`. Families and packages are imported at first use, not
    when this module is: they import the base class from where the registry lives.
    `order` says which names go first, and how; the others follow as they registered.
    """

    def __init__(self, kind: str, order: Sequence[str] = ()):
        self.kind, self.order = kind, order
        self.names: list[str] = []  # the contract's ALGORITHMS or DATASETS
        self._classes: dict[str, type] = {}
        self._loaded = False

    def register(self, cls: Class) -> Class:
        """The class itself, known from now on by its name and its ALIASES."""
        names = (cls.__name__, *vars(cls).get("ALIASES", ()))
        for name in names:
            if name in self._classes:
                raise ValueError(f"two {self.kind}s are called {name!r}")
            self._classes[name] = cls
        self.names.append(cls.__name__)
        return cls

    def get(self, name: str) -> type:
        """The class of that name or alias; UnknownNameError if there is none."""
        self.load()
        if name not in self._classes:
            raise UnknownNameError(self.kind, name, self.names)
        return self._classes[name]

    def load(self) -> None:
        """Import every family and plug-in once, so that all have registered."""
        if self._loaded:
            return
        self._loaded = True
        for module in pkgutil.iter_modules(domainbed.__path__):
            if module.name.startswith(f"{self.kind}s_"):
                importlib.import_module(f"domainbed.{module.name}")
        group = f"domainbed.{self.kind}s"
        for plugin in importlib.metadata.entry_points(group=group):
            plugin.load()
        place = {name: i for i, name in enumerate(self.order)}
        self.names.sort(key=lambda name: place.get(name, len(place)))
