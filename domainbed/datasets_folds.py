"""`Folds:PATH`: a folder of classes without domains, dealt into folds that stand for
them, so that leaving one out is cross-validation.
"""

import os
import random
from pathlib import Path

from domainbed.datasets import MADE, ImageDataset
from domainbed.datasets_few_shot import Item, ListedEnvironment
from domainbed.lib.errors import InputError
from domainbed.lib.layout import are_parts
from domainbed.lib.pictures import pictures, subfolders

PREFIX = "Folds:"
FOLDS = 5


class FoldsDataset(ImageDataset):
    """The pictures of `PATH/<class>/`, each class's shuffled once and dealt in turn."""

    CHECKPOINT_FREQ = 300
    ENVIRONMENTS = tuple(f"fold {i}" for i in range(1, FOLDS + 1))
    PATH: Path

    def __init__(self, root, test_envs, hparams):
        self.class_names = subfolders(self.PATH)
        self.num_classes = len(self.class_names)
        dealt: list[list[Item]] = [[] for _ in self.ENVIRONMENTS]
        for label, name in enumerate(self.class_names):
            paths = pictures(self.PATH / name)
            if len(paths) < FOLDS:
                raise InputError(
                    f"{self.PATH / name} holds {len(paths)} pictures; a class needs at "
                    f"least {FOLDS}, one for each fold."
                )
            random.Random(0).shuffle(paths)
            for i, path in enumerate(paths):
                item = os.path.relpath(path, self.PATH), label
                dealt[i % FOLDS].append(item)
        environments = [
            ListedEnvironment(self.PATH, items, self.class_names, name)
            for items, name in zip(dealt, self.ENVIRONMENTS, strict=True)
        ]
        self.set_environments(environments, test_envs, hparams)


def folds(path: Path) -> type[FoldsDataset]:
    """The dataset of that folder; InputError unless it holds folders of two classes."""
    path = path.expanduser()
    if not path.is_dir():
        raise InputError(f"there is no folder {str(path)!r} to take a dataset from.")
    if len(subfolders(path)) < 2:
        found = ", ".join(subfolders(path)) or "none"
        raise InputError(
            f"{path} should hold CLASS/PICTURE with at least two classes; it has "
            f"{found}."
        )
    if are_parts(subfolders(path)):
        raise InputError(
            f"{path} should hold CLASS/PICTURE, but it holds parts of a dataset, "
            f"{', '.join(subfolders(path))}; name one of them."
        )
    return type(f"{PREFIX}{path}", (FoldsDataset,), {"PATH": path.resolve()})


MADE[PREFIX] = folds
