"""Paths from the command line."""

import os
from argparse import ArgumentTypeError
from pathlib import Path

from domainbed.lib.errors import InputError


def user_path(text: str) -> str:
    """The path, with the ~ that a shell leaves alone in --flag=~/place expanded.

    One that is empty, as a variable that is not set leaves it, is no path: it would
    mean the present folder. Nor is the ~ of a user who is not there.
    """
    path = os.path.expanduser(text)
    if not path:
        raise ArgumentTypeError("the path is empty")
    if path.startswith("~"):
        raise ArgumentTypeError(f"there is no user {path[1:].split(os.sep)[0]!r}")
    return path


def as_path(text: str) -> Path:
    """The same as a Path."""
    return Path(user_path(text))


def output_folder(text: str) -> Path:
    """The folder of --output_dir, made if need be; InputError if it cannot be."""
    try:
        Path(text).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make --output_dir {text}: {error.strerror}."
        ) from None
    return Path(text)


def name_and_place(text: str) -> tuple[str | None, str]:
    """The name that somebody gave a place, if any, and the place: `NAME=PLACE`.

    A name has no `/`, so that `./a=b` is a place.
    """
    name, equals, place = text.partition("=")
    return (name, place) if equals and name and "/" not in name else (None, text)


def own_place(text: str) -> Path:
    """The place alone; InputError if there is none."""
    _, place = name_and_place(text)
    if not place:
        raise InputError(
            f"{text!r} names no place of a dataset's; write its path behind the colon, "
            "as in ImageFolder:pictures."
        )
    return Path(place)
