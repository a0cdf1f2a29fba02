"""Packages that only some methods need, each part of an extra of this one."""

import importlib
from types import ModuleType

from domainbed.lib.errors import InputError


def require(module: str, extra: str) -> ModuleType:
    """That module; without it an InputError that names the extra it comes with."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{module} is not installed; pip install domainbed-lfa[{extra}]"
        ) from error
