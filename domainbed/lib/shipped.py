"""Sweeps and tables of published figures that come with the package, by name."""

from pathlib import Path

from domainbed.lib.errors import InputError, did_you_mean

PACKAGE = Path(__file__).parents[1]
# An installed package holds the folder; in a checkout it stands beside the package.
PLACES = (PACKAGE / "sweeps", PACKAGE.parent / "sweeps")


def find(name: str, pattern: str) -> str:
    """The path itself if it leads to something, else that of the shipped file so named.

    `pattern` says which of the shipped files: "*.txt", "published/*.csv". InputError
    names them.
    """
    if Path(name).exists():
        return name
    paths = [path for place in PLACES for path in sorted(place.glob(pattern))]
    known = {path.stem: str(path) for path in paths}
    if name not in known:
        raise InputError(
            f"there is no file {name}; what ships with the package is "
            f"{', '.join(known)}.{did_you_mean(name, known)}"
        )
    return known[name]
