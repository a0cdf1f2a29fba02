"""Pictures out of what was downloaded: zip and tar archives, and the hub's parquet.

An archive is material of unknown origin: only plain files and folders are taken from
it, each at a place inside the folder, and anything else refuses the whole archive.
"""

import gzip
import json
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from lzma import LZMAError
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from domainbed.lib.errors import InputError, one_line
from domainbed.lib.optional import require
from domainbed.lib.pictures import is_litter

DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    LZMAError,
    EOFError,
    RuntimeError,  # zipfile's for a password and for a compression it does not know
    FileExistsError,  # one name for a file and a folder
    IsADirectoryError,
    NotADirectoryError,
)
Entry = tuple[str, bool, Callable[[], IO[bytes]]]  # name, is a folder, open


class ArchiveError(InputError):
    """The file is damaged or unsafe; another copy of it may not be."""


def unpack(path: Path, to: Path) -> None:
    """The file's pictures (and lists) under `to`, whatever kind of file it is."""
    to.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        unpack_parquet(path, to)
    elif path.suffix in (".txt", ".json"):
        shutil.copyfile(path, to / path.name)
    elif zipfile.is_zipfile(path):
        extract(path, zip_entries(path), to)
    elif tarfile.is_tarfile(path):
        extract(path, tar_entries(path, to), to)
    else:
        raise ArchiveError(f"{path.name} is no zip, tar or parquet file")


def extract(path: Path, entries: Iterator[Entry], to: Path) -> None:
    """The archive's files under `to`; ArchiveError at the first that may not be."""
    try:
        for name, is_folder, open_entry in entries:
            place = inside(name, path)
            if any(map(is_litter, place.parts)):
                continue
            target = to.joinpath(*place.parts)
            if is_folder:
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with open_entry() as source, open(target, "wb") as file:
                shutil.copyfileobj(source, file)
    except DAMAGED as error:
        raise ArchiveError(f"{path.name} is damaged: {one_line(error)}") from error


def inside(name: str, path: Path) -> PureWindowsPath:
    """The entry's place, relative; ArchiveError if it would lie outside the folder."""
    place = PureWindowsPath(name)  # splits at / and at \, and knows drives
    if place.anchor or ".." in place.parts:
        raise ArchiveError(f"{path.name} is refused: {name!r} points out of the folder")
    return place


def zip_entries(path: Path) -> Iterator[Entry]:
    """The entries of a zip archive, plain files and folders or ArchiveError."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0: made without Unix modes
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise not_plain(path, info.filename)
            yield info.filename, info.is_dir(), partial(archive.open, info)


def tar_entries(path: Path, to: Path) -> Iterator[Entry]:
    """The entries of a tar archive, plain files and folders or ArchiveError."""
    with tarfile.open(path) as archive:
        for member in archive:
            if not (member.isfile() or member.isdir()):
                raise not_plain(path, member.name)
            inside(member.name, path)
            if hasattr(tarfile, "data_filter"):  # Python 3.12; 3.10 and 3.11 got it
                tarfile.data_filter(member, str(to))
            yield member.name, member.isdir(), partial(archive.extractfile, member)


def not_plain(path: Path, name: str) -> ArchiveError:
    return ArchiveError(
        f"{path.name} is refused: {name!r} is a link or a device, not a plain file"
    )


def unpack_parquet(path: Path, to: Path) -> None:
    """Each row's picture at to/<domain>/<class>/<its name>.

    Columns as the `datasets` library writes them: `image` (bytes, path), `domain`,
    and `label` or `category`; a ClassLabel's names are in the schema's metadata. A
    picture without a name is called after its file and row, so that the order stays.
    """
    pyarrow = require("pyarrow", "download")
    parquet = require("pyarrow.parquet", "download")
    try:
        with parquet.ParquetFile(path) as file:
            names = label_names(file.schema_arrow)
            label = label_column(file.schema_arrow.names, path)
            for number, row in enumerate(rows(file, label)):
                if not (row["image"] or {}).get("bytes"):
                    raise ArchiveError(f"{path.name} has no picture in row {number}")
                domain = named(row["domain"], names.get("domain"), path)
                folder = to / domain / named(row[label], names.get(label), path)
                write_picture(row, f"{path.stem}-{number:06d}", folder)
    except (pyarrow.ArrowException, LookupError, TypeError, AttributeError) as error:
        raise ArchiveError(f"{path.name} is damaged: {one_line(error)}") from error


def label_column(columns: list[str], path: Path) -> str:
    """The column that holds the classes; ArchiveError if these are no pictures."""
    for label in ("label", "category"):
        if {"image", "domain", label} <= {*columns}:
            return label
    raise ArchiveError(f"{path.name} has other columns: {', '.join(columns)}")


def rows(file: Any, label: str) -> Iterator[dict]:
    """The file's rows, a few at a time in memory."""
    wanted = {"image", "domain", label, "image_path"}
    columns = [name for name in file.schema_arrow.names if name in wanted]
    for batch in file.iter_batches(batch_size=64, columns=columns):
        yield from batch.to_pylist()


def label_names(schema: Any) -> dict[str, list[str]]:
    """{column: its classes' names} for the columns that hold numbers of classes."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    features = json.loads(text)["info"]["features"]
    return {
        column: feature["names"]
        for column, feature in features.items()
        if "names" in feature
    }


def named(value: int | str, names: list[str] | None, path: Path) -> str:
    """The name of a domain or class, fit to name a folder."""
    if isinstance(value, int):
        if names is None or not 0 <= value < len(names):
            raise ArchiveError(f"{path.name} does not say what class {value} is called")
        value = names[value]
    if not isinstance(value, str) or len(inside(value, path).parts) != 1:
        raise ArchiveError(f"{path.name} is refused: {value!r} names no folder")
    return value


def write_picture(row: dict, unnamed: str, folder: Path) -> None:
    """The row's picture in `folder`, under its own name, made unique if taken."""
    image = row["image"]
    own = row.get("image_path") or image.get("path") or ""
    place = PurePosixPath(PurePosixPath(own.replace("\\", "/")).name)
    if not place.suffix:
        ending = ".png" if image["bytes"].startswith(b"\x89PNG") else ".jpg"
        place = PurePosixPath((place.name or unnamed) + ending)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / place.name
    if target.exists():
        target = folder / f"{place.stem}-{unnamed}{place.suffix}"
    target.write_bytes(image["bytes"])
