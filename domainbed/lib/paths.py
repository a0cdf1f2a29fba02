"""Paths from the command line."""

import os
from pathlib import Path


def user_path(text: str) -> str:
    """The path, with the ~ that a shell leaves alone in --flag=~/place expanded."""
    return os.path.expanduser(text)


def as_path(text: str) -> Path:
    """The same as a Path."""
    return Path(user_path(text))


def name_and_place(text: str) -> tuple[str | None, str]:
    """The name that somebody gave a place, if any, and the place: `NAME=PLACE`.

    A name has no `/`, so that `./a=b` is a place.
    """
    name, equals, place = text.partition("=")
    return (name, place) if equals and name and "/" not in name else (None, text)
