"""Datasets from the web or a local archive, each at its place only when whole.

A card names a dataset's mirrors, tried in order. What comes from one is kept in
`FOLDER.download` until the dataset is there, so that the same command resumes; it is
unpacked in `FOLDER.part`, and the finished folder is renamed to FOLDER.
"""

import contextlib
import http.client
import math
import shutil
import urllib.error
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from domainbed import datasets
from domainbed.download.archive import ArchiveError, unpack
from domainbed.download.cards import CARDS, Mirror
from domainbed.lib.claim import Claim
from domainbed.lib.errors import InputError, did_you_mean, one_line
from domainbed.lib.pictures import pictures, plain

SOURCES = ("auto", "hf", "url", "gdrive")
FAILURES = (OSError, http.client.HTTPException, ValueError)  # ValueError: InputError


def sources_of(name: str, source: str) -> tuple[Mirror, ...] | list[Path]:
    """The mirrors or the local files that `--source` means; InputError for neither."""
    mirrors = CARDS[name].mirrors
    if source in SOURCES:
        chosen = tuple(m for m in mirrors if source in ("auto", m.source))
        if not chosen:
            known = ", ".join(sorted({mirror.source for mirror in mirrors}))
            raise InputError(f"{name} has no {source} mirror, only: {known}.")
        return chosen
    return local_files(source)


def local_files(source: str) -> list[Path]:
    """The file, or those in the folder; InputError for neither."""
    path = Path(source)
    if path.is_dir():
        if files := sorted(file for file in path.iterdir() if file.is_file()):
            return files
        raise InputError(f"--source {path} is a folder that holds no archives.")
    if not path.is_file():
        raise InputError(
            f"--source {source} is none of {', '.join(SOURCES)}, nor is there a file "
            f"of that name.{did_you_mean(source, SOURCES)}"
        )
    return [path]


def folder_of(name: str, data_dir: Path) -> Path:
    """Where the dataset is looked for, under the data folder."""
    return data_dir / datasets.get_dataset_class(name).FOLDER


def obtain(
    name: str,
    data_dir: Path,
    source: str = "auto",
    report: Callable[[str], None] = lambda text: None,
) -> Path:
    """The dataset's folder in `data_dir`, made from the first source that gives it.

    A folder that is there already is left as it is. `report` gets a line for what is
    begun and for each mirror that failed; InputError if all did.
    """
    chosen = sources_of(name, source)
    folder = folder_of(name, data_dir)
    if folder.exists():
        report(f"{name} is at {folder} already; remove it to have it made anew")
        return folder
    with locked(folder):
        if folder.exists():  # made by another process meanwhile
            return folder
        if isinstance(chosen, list):
            report(f"{name}: unpacking {', '.join(path.name for path in chosen)}")
            try:
                build(chosen, folder, partial(arrange, name))
            except FAILURES as error:
                sentence = f"{name} could not be made from --source {source}: "
                raise InputError(sentence + reason(error)) from error
        else:
            from_mirrors(name, chosen, folder, report)
    report(f"{name} is at {folder}")
    return folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Only one process at a time makes the folder; InputError if none can."""
    with contextlib.ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(Claim.beside(folder).held(math.inf))
        except OSError as error:
            raise InputError(
                f"cannot write to --data_dir {folder.parent}: {error.strerror or error}"
            ) from error
        yield


def from_mirrors(
    name: str,
    mirrors: tuple[Mirror, ...],
    folder: Path,
    report: Callable[[str], None],
) -> None:
    """The dataset at `folder` from the first mirror that works."""
    kept = folder.with_name(f"{folder.name}.download")
    failed = []
    for mirror in mirrors:
        report(f"{name}: from {mirror}")
        kept.mkdir(exist_ok=True)
        files: list[Path] = []
        try:
            files = mirror.fetch(kept)
            build(files, folder, partial(arrange, name))
        except FAILURES as error:
            if isinstance(error, ArchiveError):  # the next attempt needs other copies
                for path in files:
                    path.unlink()
            failed.append(f"{mirror}: {reason(error)}")
            report(f"{name}: no success with {failed[-1]}")
            with contextlib.suppress(OSError):
                kept.rmdir()  # unless it holds what can be resumed
        else:
            shutil.rmtree(kept)
            return
    raise InputError(
        f"{name} could not be downloaded ({'; '.join(failed)}); try again, or get it "
        f"from {CARDS[name].website} and give the archive as --source FILE."
    )


def build(
    files: list[Path], folder: Path, arrange: Callable[[Path, Path], None]
) -> None:
    """The dataset at `folder`, whole, as `arrange(raw, to)` makes it of what is in its
    archives; nothing there if it fails.
    """
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of an attempt that was killed
    try:
        for path in files:
            unpack(path, part / "raw")
        arrange(part / "raw", part / "whole")
        (part / "whole").rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def arrange(name: str, raw: Path, to: Path) -> None:
    """The dataset's domains in `to`; InputError for one without a picture."""
    domains = CARDS[name].counts
    CARDS[name].arrange(raw, to, domains)
    if empty := [domain for domain, n in count(to, domains).items() if not n]:
        raise InputError(f"it holds no pictures of {', '.join(empty)}")


def reason(error: Exception) -> str:
    """Why a source failed, in a few words on one line."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return one_line(error.reason)
    return one_line(error).rstrip(".")


def count(folder: Path, domains: Iterable[str]) -> dict[str, int]:
    """{domain: how many pictures its folder holds}, 0 if there is no such folder."""
    by_name = {plain(path.name): path for path in folder.iterdir() if path.is_dir()}
    return {
        name: len(pictures(by_name.get(plain(name), folder / name))) for name in domains
    }


def verify(name: str, data_dir: Path) -> tuple[str, bool]:
    """What the dataset's folders hold against what was published, and if they agree.

    InputError if they should but do not.
    """
    card, folder = CARDS[name], folder_of(name, data_dir)
    if not folder.is_dir():
        raise InputError(f"{name} is not at {folder}.")
    counted = count(folder, card.counts)
    different = [
        f"{domain} has {counted[domain]} (published: {published})"
        for domain, published in card.counts.items()
        if counted[domain] != published
    ]
    if not different:
        counts = ", ".join(f"{domain} {n}" for domain, n in counted.items())
        return f"{name} has as many pictures as published: {counts}.", True
    sentence = f"{name} at {folder} has other numbers of pictures: "
    sentence += f"{', '.join(different)}.{card.hint}"
    if card.exact:
        raise InputError(sentence)
    return sentence, False
