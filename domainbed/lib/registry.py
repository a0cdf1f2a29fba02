"""Classes by name: what `@register` fills and `get_..._class` reads."""

import ast
import functools
import importlib
import importlib.metadata
import pkgutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import domainbed
from domainbed.lib.errors import UnknownNameError

Class = TypeVar("Class", bound=type)
# What is known of a class that is not imported, where its own body says it literally.
FACTS = ("ALIASES", "AFTER")


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
        for plugin in self.plugins:
            plugin.load()
        self.names = self.in_order(self.names)

    @functools.cached_property
    def plugins(self) -> importlib.metadata.EntryPoints:
        """The installed packages' modules."""
        return importlib.metadata.entry_points(group=f"domainbed.{self.kind}s")

    def in_order(self, names: Iterable[str]) -> list[str]:
        place = {name: i for i, name in enumerate(self.order)}
        return sorted(names, key=lambda name: place.get(name, len(place)))

    def known(self) -> dict[str, dict[str, Any]]:
        """The FACTS of every class by its name, in order.

        They are read from the families' sources, in a hundredth of the time that an
        import of torch takes; where that has been paid, or a plug-in, which only an
        import can ask, has to be, the classes themselves are asked.
        """
        if not self.names and not self.plugins:
            return self.declared
        self.load()
        return {
            name: {fact: vars(self._classes[name]).get(fact, ()) for fact in FACTS}
            for name in self.names
        }

    @functools.cached_property
    def declared(self) -> dict[str, dict[str, Any]]:
        """The same of the classes in this package that `@register` stands before."""
        found = {}
        for path in sorted(Path(domainbed.__file__).parent.glob(f"{self.kind}s*.py")):
            for node in ast.parse(path.read_text()).body:
                marks = map(ast.unparse, getattr(node, "decorator_list", ()))
                if isinstance(node, ast.ClassDef) and "register" in marks:
                    found[node.name] = dict.fromkeys(FACTS, ()) | literals(node)
        return {name: found[name] for name in self.in_order(found)}

    def find(self, name: str) -> dict[str, Any]:
        """The FACTS of the class of that name or alias; UnknownNameError if none is."""
        known = self.known()
        for own, facts in known.items():
            if name == own or name in facts["ALIASES"]:
                return facts
        raise UnknownNameError(self.kind, name, known)


def literals(node: ast.ClassDef) -> dict[str, Any]:
    """Those of FACTS that the class's body sets."""
    return {
        target.id: ast.literal_eval(statement.value)
        for statement in node.body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name) and target.id in FACTS
    }
