"""What is a picture: one answer for those who read, download and name data."""

import errno
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from domainbed.lib.errors import InputError

# torchvision's IMG_EXTENSIONS; it would take seconds to import.
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# Of pictures that ImageFolder leaves out.
OTHER_ENDINGS = (".gif", ".jfif", ".jpe", ".avif", ".heic", ".heif", ".jp2", ".tga")
# What file systems, archives and file managers leave beside the data.
LITTER = ("@eadir", "@tmp", "@recycle", "@recently-snapshot", "@__thumb")  # NAS systems
LITTER += ("#recycle", "#snapshot", "~snapshot", "lost+found", "network trash folder")
LITTER += ("$recycle.bin", "recycler", "system volume information", "temporary items")
LITTER += ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")


def is_litter(name: str) -> bool:
    """Whether a file or folder of that name is none of the data, at any depth."""
    return name.startswith((".", "__")) or name.casefold() in LITTER


def is_picture(name: str) -> bool:
    """Whether a file is a picture, by its ending, as for torchvision's ImageFolder."""
    return name.lower().endswith(ENDINGS) and not is_litter(name)


def subfolders(folder: Path) -> list[str]:
    """Names of the folders inside, sorted, without litter."""
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.is_dir() and not is_litter(entry.name)
    )


def pictures(folder: Path | str, left_out: Counter[str] | None = None) -> list[str]:
    """Paths of the pictures in the folder, at any depth, in ImageFolder's order.

    Links are followed, but no folder is read twice, nor one that holds this one.
    `left_out` counts the endings of those that are no pictures to ImageFolder.
    """
    levels = []
    for root, names in walk(folder):
        own = sorted(filter(is_picture, names))
        levels.append((root, own))
        if left_out is not None and len(own) < len(names):
            endings = (ending(name) for name in names if not is_litter(name))
            left_out.update(filter(OTHER_ENDINGS.__contains__, endings))
    return [os.path.join(r, name) for r, names in sorted(levels) for name in names]


def ending(name: str) -> str:
    """The file name's ending, in lower case."""
    return os.path.splitext(name)[1].lower()


def walk(folder: Path | str) -> Iterator[tuple[str, list[str]]]:
    """Each folder from this one on, with the names of its files.

    InputError for one that cannot be looked into: its pictures would be missing.
    """

    def refuse(error: OSError) -> None:
        place = f"{error.filename}: {error.strerror}"
        raise InputError(f"cannot look for pictures in {place}.") from error

    own = Path(os.path.realpath(folder))
    seen = {own, *own.parents}
    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        kept = []
        for name in folders:
            real = Path(os.path.realpath(os.path.join(root, name)))
            if not is_litter(name) and real not in seen:
                seen.add(real)
                kept.append(name)
        folders[:] = kept
        yield root, names


def read_image(path: str) -> Image.Image:
    """The picture in RGB, 8 bits; InputError with its path if it cannot be read."""
    try:
        check_file(os.stat(path), path)
        with Image.open(path) as image:
            return narrow(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read the image {path}: {error}") from error


def check_file(facts: os.stat_result, path: str) -> None:
    """OSError for a pipe, a socket and the like, whose content is waited for."""
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(errno.EINVAL, "not a file", path)


def links_among(paths: list[str]) -> list[str]:
    """Those of the pictures that are links to another of them, or to one file."""
    folders = {path.rpartition(os.sep)[0] for path in paths}
    found = (os.scandir(folder) for folder in folders)
    linked = {e.path for entries in found for e in entries if e.is_symlink()}
    if not linked:
        return []
    seen, twice = {*map(os.path.abspath, paths)} - {*map(os.path.abspath, linked)}, []
    for path in filter(linked.__contains__, paths):
        place = os.path.abspath(os.path.join(path, os.pardir, os.readlink(path)))
        if place in seen:
            twice.append(path)
        seen.add(place)
    return twice


def narrow(image: Image.Image) -> Image.Image:
    """Grey of 16 bits in its upper 8; ValueError where the range is not known.

    Pillow's own conversion cuts off what is above 255: nearly all is white.
    """
    if image.mode.startswith("I;16") or (
        image.mode == "I" and image.format in ("PNG", "PPM")  # 16 bits, in a wide mode
    ):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(
            f"its pixels have 32 bits (Pillow's mode {image.mode}), whose range is not "
            "known; save it with 8 or 16 bits"
        )
    return image


def unreadable(paths: list[str]) -> list[str]:
    """Those pictures that cannot be read."""
    broken = []
    for path in paths:
        try:
            read_image(path)
        except InputError:
            broken.append(path)
    return broken


def with_others(error: InputError, path: str, paths: list[str]) -> InputError:
    """The error of that picture, with those of the pictures that cannot be read too."""
    if not (others := sorted(set(unreadable(paths)) - {path})):
        return error
    return InputError(
        f"{str(error).rstrip('.')}; nor can {len(others)} more be read: "
        f"{', '.join(others[:20])}; replace or remove them."
    )


def plain(name: str) -> str:
    """The name without what people spell differently: "Real World" is real_world."""
    name = unicodedata.normalize("NFC", name)
    return re.sub(r"[\W_]+", "", name).casefold()


def same(name: str) -> str:
    """The name as it is compared: one spelling of what looks alike (NFC)."""
    return unicodedata.normalize("NFC", name)
