"""`Manifest:FILE`: any collection of images, listed in a CSV or JSON file.

A row has `path` (from the file's folder), `class`, `split` (train, val, test) and, for
domain generalization, `domain`. In JSON it is a list of objects with these keys.
"""

import csv
import io
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from domainbed.datasets import MADE, ImageDataset
from domainbed.datasets_few_shot import (
    PARTS,
    FewShotDataset,
    ListedEnvironment,
    lists_of,
)
from domainbed.lib.errors import InputError, UnknownNameError
from domainbed.lib.pictures import same
from domainbed.lib.texts import read_text

PREFIX = "Manifest:"
COLUMNS = ("path", "class", "split")
Row = dict[str, str]


class ManifestDataset(ImageDataset):
    """The images of a manifest; classes and domains in sorted order."""

    CHECKPOINT_FREQ = 300
    TEMPLATE, AUGMENT = FewShotDataset.TEMPLATE, FewShotDataset.AUGMENT
    FILE: Path
    ROWS: tuple[Row, ...]

    def __init__(self, root, test_envs, hparams):
        self.class_names = class_names(self.ROWS)
        self.num_classes = len(self.class_names)
        label = {name: y for y, name in enumerate(self.class_names)}
        environments = []
        for domain in self.ENVIRONMENTS:
            own = [row for row in self.ROWS if row.get("domain", "") == domain]
            items = [(row["path"], label[row["class"]]) for row in own]
            environments.append(
                ListedEnvironment(self.FILE.parent, items, self.class_names, domain)
            )
        self.set_environments(environments, test_envs, hparams)

    @classmethod
    def few_shot_lists(cls, root, source=None):
        label = {name: y for y, name in enumerate(class_names(cls.ROWS))}
        rows = {part: [] for part in PARTS}
        for row in cls.ROWS:
            item = (row["path"], label[row["class"]], row["class"])
            rows[row["split"]].append(item)
        return lists_of(rows, cls.FILE.parent, cls.FILE)


def class_names(rows: tuple[Row, ...]) -> list[str]:
    names = sorted({row["class"] for row in rows})
    if len(names) < 2:
        raise InputError(f"the manifest has one class, {names[0]!r}; it needs two.")
    return names


def manifest(path: Path) -> type[ManifestDataset]:
    """The dataset of that file; with domains it is one of domain generalization too."""
    path = path.expanduser()
    rows = tuple(checked(row, path) for row in read_rows(path))
    if not rows:
        raise InputError(f"the manifest {path} lists no image.")
    check_rows(rows, path)
    domains = sorted({row.get("domain", "") for row in rows})
    tasks = ("few_shot",) if len(domains) < 2 else (*ImageDataset.TASKS, "few_shot")
    facts: dict[str, Any] = {"FILE": path.resolve(), "ROWS": rows, "TASKS": tasks}
    facts["ENVIRONMENTS"] = tuple(domains) if len(domains) > 1 else ()
    return type(f"{PREFIX}{path}", (ManifestDataset,), facts)


def read_rows(path: Path) -> list[Any]:
    """The file's rows, as they are."""
    try:
        if path.suffix == ".json":
            return json.loads(read_text(path))
        return [*csv.DictReader(io.StringIO(read_text(path), newline=""))]
    except (json.JSONDecodeError, csv.Error) as error:
        raise InputError(f"cannot read the manifest {path} ({error}).") from error


def checked(row: Any, path: Path) -> Row:
    """The row; InputError if it lacks something or leads out of the folder."""
    lacking = [c for c in COLUMNS if not isinstance(row, dict) or not row.get(c)]
    if lacking:
        raise InputError(f"the manifest {path} has a row without {lacking[0]}: {row}.")
    if row["split"] not in PARTS:
        raise UnknownNameError(f"split in {path}:", row["split"], PARTS)
    row = {name: str(value) for name, value in row.items()}  # JSON has numbers, too
    place = Path(row["path"])
    if place.is_absolute() or ".." in place.parts:
        raise InputError(f"{path}: {row['path']!r} leads out of {path.parent}.")
    return row


def check_rows(rows: tuple[Row, ...], path: Path) -> None:
    """InputError for a picture that is listed twice, and for a class or domain that is
    missing in some rows or has two spellings.
    """
    for name in ("class", "domain"):
        own = sorted({row.get(name, "") for row in rows})
        spelled = Counter(same(text).strip().casefold() for text in own)
        if twice := [t for t in own if spelled[same(t).strip().casefold()] > 1]:
            raise InputError(
                f"{path} has the {name} {' and '.join(map(repr, twice))}; spell one "
                "thing in one way."
            )
        if "" in own and len(own) > 1:
            raise InputError(f"{path} says the {name} of some pictures, not of all.")
    counts = Counter(os.path.normpath(row["path"]) for row in rows)
    if twice := [place for place, n in counts.items() if n > 1]:
        raise InputError(
            f"{path} lists {len(twice)} pictures twice, as {twice[0]}, which "
            "would train and test on one; list each once."
        )


MADE[PREFIX] = manifest
