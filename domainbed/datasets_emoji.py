"""The datasets that ship with the package: emoji, by what they show, by who drew them.

Sources, licences and attribution: `assets/README.md`.
"""

import math
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from domainbed.datasets import MultipleEnvironmentImageFolder, register
from domainbed.datasets_few_shot import Item, Lists, split_by_class
from domainbed.lib.claim import Claim
from domainbed.lib.errors import InputError
from domainbed.lib.pictures import subfolders


class EmojiDataset(MultipleEnvironmentImageFolder):
    """The emoji that ship with the package, unpacked in `root/FOLDER` at first use.

    The archive's folders are `<house>/<class>/`; `place(house, name)` is where a class
    of a house is put, an environment and a class of the dataset.
    """

    ARCHIVE = Path(__file__).parent / "assets" / "emoji_dg.zip"
    N_STEPS = 501
    CHECKPOINT_FREQ = 100
    AUGMENT = False  # of shots, in the few-shot task

    @classmethod
    def place(cls, house: str, name: str) -> tuple[str, str]:
        raise NotImplementedError

    @classmethod
    def find_folder(cls, root):
        if root is None:
            raise InputError(
                f"{cls.__name__} needs --data_dir, a folder to unpack itself in."
            )
        folder = Path(root) / cls.FOLDER
        try:
            if not folder.is_dir():
                folder.parent.mkdir(parents=True, exist_ok=True)
                with Claim.beside(folder).held(math.inf):
                    if not folder.is_dir():
                        unpack(cls.ARCHIVE, folder, cls.place)
        except OSError as error:
            raise InputError(
                f"cannot unpack {cls.__name__} in {folder} "
                f"({error.strerror or error}); name another --data_dir."
            ) from error
        return folder


@register
class EmojiDG(EmojiDataset):
    """The same emoji drawn by four design houses; 17 classes. Ships with the package.

    Domains: Fluent Emoji (MIT), Noto Emoji (Apache-2.0), OpenMoji's black line art
    (CC BY-SA 4.0), Twemoji (CC BY 4.0). 514 images each, 128 x 128; the card with
    sources and attribution is `assets/README.md`, made by `tools/build_emoji_dg.py`.
    """

    FOLDER = "emoji_dg"
    ENVIRONMENTS = ("fluent", "noto", "openmoji", "twemoji")
    TASKS = (*EmojiDataset.TASKS, "few_shot")
    SOURCES = ENVIRONMENTS
    TEMPLATE = "a photo of a {name}"

    @classmethod
    def few_shot_lists(cls, root, source=None):
        source = source or cls.SOURCES[0]
        folder, names, parts = split_emoji(root)
        train, val = (drawn_by(source, parts[part]) for part in ("train", "val"))
        tests = {h: drawn_by(h, parts["test"]) for h in cls.ENVIRONMENTS}
        return Lists(folder, names, train, val, tests)

    @classmethod
    def place(cls, house, name):
        return house, name


@register
class EmojiHouses(EmojiDataset):
    """Who drew it? EmojiDG's 2,056 images, labelled with their four design houses.

    The domain is what is drawn: 476 animals, 224 faces, 604 times food, 752 objects,
    as many of each house. A style is not what CLIP's last layer was trained to tell,
    earlier layers know more of it: the question of the methods that read these. Chance
    is 25 %. Sources and licences are EmojiDG's, see `assets/README.md`.
    """

    FOLDER = "emoji_houses"
    ENVIRONMENTS = ("animals", "faces", "food", "objects")
    DRAWN: ClassVar = {
        "animals": ("bird", "insect", "mammal", "sea_animal"),
        "faces": ("face",),
        "food": ("dessert", "drink", "fruit", "meal", "plant", "vegetable"),
    }
    TASKS = (*EmojiDataset.TASKS, "few_shot")
    TEMPLATE = "a {name}."
    STYLES: ClassVar = {
        "fluent": "glossy three dimensional icon",
        "noto": "flat icon with soft shading",
        "openmoji": "black line drawing",
        "twemoji": "flat icon",
    }

    @classmethod
    def few_shot_lists(cls, root, source=None):
        folder, _, parts = split_emoji(root)
        items = {
            part: [
                (path, label)
                for label, house in enumerate(cls.STYLES)
                for path, _ in drawn_by(house, emoji)
            ]
            for part, emoji in parts.items()
        }
        names, test = [*cls.STYLES.values()], {"test": items["test"]}
        return Lists(folder, names, items["train"], items["val"], test)

    @classmethod
    def place(cls, house, name):
        kinds = (kind for kind, names in cls.DRAWN.items() if name in names)
        return next(kinds, "objects"), house


def split_emoji(root: str | None) -> tuple[Path, list[str], dict[str, list[Item]]]:
    """EmojiDG's folder, its classes, and its emoji split once for all houses.

    All houses drew the same emoji: what is tested was drawn by nobody whose drawings
    train.
    """
    folder = EmojiDG.find_folder(root)
    any_house = folder / EmojiDG.ENVIRONMENTS[0]
    names = subfolders(any_house)
    files = {
        label: [f"{name}/{file}" for file in sorted(os.listdir(any_house / name))]
        for label, name in enumerate(names)
    }
    return folder, names, split_by_class(files, seed=0)


def drawn_by(house: str, emoji: list[Item]) -> list[Item]:
    """The house's drawings of those emoji."""
    return [(f"{house}/{path}", label) for path, label in emoji]


def unpack(
    archive: Path, folder: Path, place: Callable[[str, str], tuple[str, str]]
) -> None:
    """The archive's `<a>/<b>/<image>` at `folder/<place(a, b)>/<image>`.

    The folder appears only when whole.
    """
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    with zipfile.ZipFile(archive) as source:
        for item in source.infolist():
            *groups, name = item.filename.split("/")
            item.filename = "/".join([*(place(*groups) if groups else ()), name])
            source.extract(item, part)
    part.rename(folder)
