"""Paths from the command line."""

import os


def user_path(text: str) -> str:
    """The path, with the ~ that a shell leaves alone in --flag=~/place expanded."""
    return os.path.expanduser(text)
