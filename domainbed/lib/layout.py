"""Whether a folder has the shape of a dataset, domain/class/picture, before a run.

What is wrong is an InputError that names the folder and what it holds.
"""

import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from domainbed.lib.errors import InputError
from domainbed.lib.once import once
from domainbed.lib.pictures import (
    ENDINGS,
    links_among,
    pictures,
    plain,
    same,
    subfolders,
)
from domainbed.lib.reporting import listed

# Names of a dataset's parts, which are no classes of what is in the pictures.
PARTS = re.compile(
    r"(train|training|val|valid|validation|crossval|dev|test|testing|eval|full|all"
    r"|trainval|fold|split)([\W_]*(\d+|split|set|images?|data))*"
    r"|images?|imgs?|labels?|annotations?|masks?",
    re.IGNORECASE,
)


def folder_of(dataset: type, root: str | None) -> Path:
    """Where a dataset class's FOLDER is, under the data folder `root`."""
    if root is None and not Path(dataset.FOLDER).is_absolute():
        raise InputError(f"{dataset.__name__} needs --data_dir, its folder.")
    folder = Path(root or "") / dataset.FOLDER
    if not folder.is_dir():
        raise InputError(
            f"{dataset.__name__} is not at {folder}; give the folder that holds "
            f"{dataset.FOLDER}/ as --data_dir."
        )
    return folder


def names_of(dataset: type) -> list[tuple[str, ...]]:
    """Every name of each environment of a dataset class, its own first."""
    more = dataset.KNOWN_AS or [()] * len(dataset.ENVIRONMENTS)
    return [(own, *also) for own, also in zip(dataset.ENVIRONMENTS, more, strict=True)]


def in_order(dataset: type, folder: Path) -> list[str]:
    """The environments' folders, each at the place that its name has in the dataset.

    Folders none of which has a known name stand in sorted order.
    """
    found, names = subfolders(folder), names_of(dataset)
    short = ", ".join(dataset.ENVIRONMENTS)
    if len(found) != len(names):
        raise InputError(
            f"{folder} should hold the {len(names)} environments of "
            f"{dataset.__name__} ({short}), one folder each; it holds: "
            f"{', '.join(found) or 'none'}."
        )
    places = [place_of(name, names) for name in found]
    if places.count(None) == len(places):
        print(
            f"warning: no folder in {folder} has an environment's name of "
            f"{dataset.__name__}; {', '.join(found)} are taken for {short}, in that "
            "order.",
            file=sys.stderr,
        )
        return found
    if sorted(p for p in places if p is not None) != [*range(len(names))]:
        meant = (
            f"{name} ({'?' if place is None else dataset.ENVIRONMENTS[place]})"
            for name, place in zip(found, places, strict=True)
        )
        raise InputError(
            f"{folder} should hold the environments of {dataset.__name__}, {short}; "
            f"by their names its folders are {', '.join(meant)}. Rename them."
        )
    return [found[places.index(i)] for i in range(len(names))]


def place_of(name: str, names: Sequence[tuple[str, ...]]) -> int | None:
    """The number of the environment that has the name, None if none has."""
    exact = [i for i, own in enumerate(names) if same(name) == same(own[0])]
    alike = [i for i, own in enumerate(names) if plain(name) in map(plain, own)]
    return next(iter(exact or alike), None)


def all_classes(folder: Path, environments: list[str]) -> list[str]:
    """The sorted union of the environments' class names, no two of them alike."""
    check_once(folder, environments)
    own = [(env, name) for env in environments for name in subfolders(folder / env)]
    check_once(folder, [*map("/".join, own)])
    spelled = Counter((env, same(name)) for env, name in own)
    if twice := next((each for each in spelled if spelled[each] > 1), None):
        raise InputError(
            f"{folder / twice[0]} has two folders of the class {twice[1]!r}, whose "
            "names look alike and have other bytes; put their pictures into one."
        )
    return sorted({same(name): name for _, name in own}.values())


def check_once(folder: Path, places: list[str]) -> None:
    """InputError if two of the places in the folder are one, by links."""
    real = {place: os.path.realpath(folder / place) for place in places}
    counts = Counter(real.values())
    if twice := [place for place in places if counts[real[place]] > 1]:
        raise InputError(f"{listed(twice)} in {folder} are links to one folder.")


def are_parts(names: list[str]) -> bool:
    """Whether these folders are a dataset's parts, and no classes."""
    return bool(names) and all(map(PARTS.fullmatch, names))


def check_classes(folder: Path, classes: list[str], known: Sequence[str]) -> None:
    """InputError unless these can be classes: two or more, not a dataset's parts.

    Of a dataset whose classes are known some must be among them; those that are not are
    said on standard error.
    """
    there = listed(map(repr, classes), 20) or "none"
    expected = f"{folder} should hold DOMAIN/CLASS/PICTURE"
    if are_parts(classes):
        raise InputError(
            f"{expected}, but its domains hold parts of a dataset, "
            f"{there}{example(folder)}; move the class folders up one level."
        )
    if len(classes) < 2:
        raise InputError(
            f"{expected} with at least two classes; it has {there}{example(folder)}. "
            "Perhaps it is a level too high or too low."
        )
    own = {*map(plain, known)}
    others = [name for name in classes if known and plain(name) not in own]
    if others and len(others) == len(classes):
        raise InputError(
            f"{expected} with the classes {listed(known, 10)}; it has "
            f"{there}{example(folder)}."
        )
    if others:
        print(
            f"warning: {folder} has the classes {listed(others)}, which are none of "
            f"the dataset's: {listed(known, 10)}.",
            file=sys.stderr,
        )


def example(folder: Path) -> str:
    """Where a picture lies, for a sentence."""
    first = next(iter(pictures(folder)), None)
    return f"; its first picture is {first}" if first else ""


def check_pictures(environments: list[Any], missing_allowed: bool) -> None:
    """InputError for an environment without pictures, or of a class unless allowed.

    What lies deeper than its class's folder, and what is left out, is said on standard
    error.
    """
    for env in environments:
        if not env.samples:
            raise InputError(
                f"the environment {Path(env.root).name!r} in {Path(env.root).parent} "
                f"holds no pictures{other_files(env.root)}; their names end in "
                f"{known_endings()}."
            )
        counts = Counter(env.targets)
        lacking = [c for label, c in enumerate(env.classes) if not counts[label]]
        if lacking and not missing_allowed:
            anywhere = {label for other in environments for label in other.targets}
            empty = [
                name for name in lacking if env.classes.index(name) not in anywhere
            ]
            where = "no environment has" if empty else "other environments have"
            raise InputError(
                f"environment {Path(env.root).name!r} in {Path(env.root).parent} has "
                f"no picture of the class {', '.join(map(repr, empty or lacking))}, "
                f"which {where}{namesake(env.classes, counts)}; "
                "--allow_missing_classes goes on without."
            )
    check_twice(environments)
    names = [Path(env.root).name for env in environments]
    if are_parts(names):
        print(
            f"warning: {Path(environments[0].root).parent} holds {', '.join(names)}, "
            "parts of a dataset, which are taken for its domains.",
            file=sys.stderr,
        )
    if left_out := sum((env.left_out for env in environments), Counter()):
        counted = ", ".join(f"{n} {ending}" for ending, n in left_out.most_common())
        print(
            f"warning: {Path(environments[0].root).parent} has pictures that are left "
            f"out: {counted}; names of pictures end in {known_endings()}.",
            file=sys.stderr,
        )
    paths = ((env.root, path) for env in environments for path, _ in env.samples)
    if all(len(Path(path).relative_to(root).parts) > 2 for root, path in paths):
        first = environments[0]
        print(
            f"warning: no picture lies in its class's folder, all lie deeper, as "
            f"{first.samples[0][0]}; the classes are {', '.join(first.classes[:10])}.",
            file=sys.stderr,
        )


def check_twice(environments: list[Any]) -> None:
    """Say on standard error which pictures are there twice, by links."""
    paths = [path for env in environments for path, _ in env.samples]
    keys = [env.key for env in environments]
    if twice := once(lambda: links_among(paths), "links", *keys):
        print(
            f"warning: {len(twice)} pictures are links to others of the dataset, as "
            f"{twice[0]}: they count twice, perhaps in training and in a test.",
            file=sys.stderr,
        )


def namesake(classes: list[str], counts: Counter[int]) -> str:
    """Which class with pictures has nearly the name of one without, for a sentence."""
    there = {plain(classes[label]): classes[label] for label in counts}
    for label, name in enumerate(classes):
        if not counts[label] and (own := there.get(plain(name))):
            return f" (it has {own!r}, which is perhaps the same: rename one)"
    return ""


def known_endings() -> str:
    return f"{', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}"


def other_files(folder: str) -> str:
    """What the folder holds instead of pictures, by the files' endings."""
    endings = Counter(
        os.path.splitext(name)[1] or "no ending"
        for _, _, names in os.walk(folder)
        for name in names
    )
    counted = (f"{n} {ending}" for ending, n in endings.most_common(3))
    return f" but {', '.join(counted)}" if endings else ""
