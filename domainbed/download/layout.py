"""From what archives hold to `domain/class/image`, the layout that datasets read."""

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from domainbed.lib.errors import InputError
from domainbed.lib.pictures import pictures, plain
from domainbed.lib.texts import read_text

# Beery et al. (2018) have twenty places and sixteen classes; DomainBed takes these.
TERRA_LOCATIONS = ("38", "46", "100", "43")
TERRA_CLASSES = (
    "bird",
    "bobcat",
    "cat",
    "coyote",
    "dog",
    "empty",
    "opossum",
    "rabbit",
    "raccoon",
    "squirrel",
)


def arrange(raw: Path, to: Path, domains: Iterable[str]) -> None:
    """The domains' folders, wherever they are in `raw`, moved to `to`."""
    found = find_domains(raw, list(domains))
    to.mkdir()
    for domain, folder in found.items():
        folder.rename(to / domain)


def find_domains(raw: Path, domains: list[str]) -> dict[str, Path]:
    """{domain: its folder}, from the uppermost folder of `raw` that holds them all.

    Upper case, spaces and underscores in the folders' names do not matter.
    """
    level = [raw]
    best: set[str] = set()
    while level:
        below = []
        for folder in level:
            inner = [Path(entry) for entry in os.scandir(folder) if entry.is_dir()]
            by_name = {plain(path.name): path for path in sorted(inner)}
            present = {name for name in domains if plain(name) in by_name}
            if len(present) == len(domains):
                return {name: by_name[plain(name)] for name in domains}
            best = max(best, present, key=len)
            below += inner
        level = below
    missing = [name for name in domains if name not in best]
    raise InputError(f"it holds no folder {', '.join(map(repr, missing))}")


def arrange_domain_net(raw: Path, to: Path, domains: Iterable[str]) -> None:
    """As `arrange`, without the duplicates, where lists beside the data tell them.

    Either the authors' own lists (`clipart_train.txt` and `clipart_test.txt` name all
    pictures of the cleaned domain) or a list of what to remove, under DomainBed's name
    for it, `domain_net_duplicates.txt`. Without lists all pictures stay.
    """
    domains = list(domains)
    beside = {raw, *(path.parent for path in find_domains(raw, domains).values())}
    texts = {path.name: path for folder in beside for path in folder.glob("*.txt")}
    arrange(raw, to, domains)
    removed = read_list(texts.get("domain_net_duplicates.txt"))
    for domain in domains:
        lists = [texts.get(f"{domain}_{part}.txt") for part in ("train", "test")]
        kept = set().union(*map(read_list, lists)) if None not in lists else None
        for image in map(Path, pictures(to / domain)):
            name = image.relative_to(to).as_posix()
            if name in removed or (kept is not None and name not in kept):
                image.unlink()


def read_list(path: Path | None) -> set[str]:
    """The pictures that the file names, one a line, `domain/class/picture[ label]`."""
    if path is None:
        return set()
    lines = read_text(path).splitlines()
    return {re.sub(r"\s+\d+$", "", line.strip()) for line in lines}


def arrange_terra_incognita(raw: Path, to: Path, domains: Iterable[str]) -> None:
    """location_38/bird/... from a heap of pictures and annotation files.

    A picture that shows several classes is copied to each, as in DomainBed. An archive
    without annotations is taken to have the layout already.
    """
    annotations = sorted(raw.rglob("*.json"))
    if not annotations:
        return arrange(raw, to, domains)
    place = {image.name: image for image in map(Path, pictures(raw))}
    lacking = 0
    to.mkdir()
    for path in annotations:
        try:
            shown = list(terra_pictures(json.loads(read_text(path))))
        except (LookupError, TypeError) as error:
            raise InputError(f"{path.name} holds no annotations") from error
        for name, location, label in shown:
            if name not in place:
                lacking += 1
                continue
            folder = to / f"location_{location}" / label
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(place[name], folder / name)
    if lacking:
        warnings.warn(f"the archive lacks {lacking} annotated pictures", stacklevel=2)


def terra_pictures(data: dict) -> Iterator[tuple[str, str, str]]:
    """(file name, location, class) of each picture of DomainBed's part, each once.

    One pass over each of the lists; DomainBed searches all annotations per picture.
    """
    classes = {row["id"]: row["name"] for row in data["categories"]}
    pictures = {
        row["id"]: (PurePosixPath(row["file_name"]).name, str(row["location"]))
        for row in data["images"]
        if str(row["location"]) in TERRA_LOCATIONS
    }
    seen = set()
    for row in data["annotations"]:
        label = classes.get(row["category_id"])
        if row["image_id"] not in pictures or label not in TERRA_CLASSES:
            continue
        picture = (*pictures[row["image_id"]], label)
        if picture not in seen:
            seen.add(picture)
            yield picture
