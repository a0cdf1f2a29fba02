"""VTAB-1k and FGVC as cards: train, validation and test lists as they are given.

VTAB-1k: Zhai et al., 2020, https://arxiv.org/abs/1910.04867: 800 images of each task
train, 200 more choose hyperparameters and then train, too. FGVC: the five sets of Jia
et al., 2022, https://arxiv.org/abs/2203.12119, with the lists published there. ARC and
Head2Toe report on them. Counts are of images to train, validate and test on; a class
gives all it has to more `--shots` than that.

A class is called by its line of `classnames.txt` beside the lists or, without such a
file, by its folder, where each has one of its own.
"""

import json
import re
from pathlib import Path

from domainbed.datasets import register
from domainbed.datasets_few_shot import PARTS, FewShotDataset, Lists, lists_of
from domainbed.lib.errors import InputError
from domainbed.lib.layout import folder_of
from domainbed.lib.texts import lines, read_text

Pairs = list[tuple[str, int]]  # path of an image, label
NAMES = "classnames.txt"


def named_lists(folder: Path, images: Path, parts: dict[str, Pairs]) -> Lists:
    """Lists of (path below `images`, label), with the classes' names."""
    n = 1 + max((label for own in parts.values() for _, label in own), default=-1)
    found = (folder / NAMES).is_file()
    names = lines(folder / NAMES) if found else names_of_folders(parts, n)
    if len(names) < n:
        raise InputError(f"{folder / NAMES} has {len(names)} names for {n} classes.")
    rows = {
        part: [(path, label, names[label]) for path, label in own]
        for part, own in parts.items()
    }
    return lists_of(rows, images, folder)


def names_of_folders(parts: dict[str, Pairs], n: int) -> list[str]:
    """The classes' folders, without their numbers; else `class 0` and so on."""
    folders: dict[int, set[str]] = {label: set() for label in range(n)}
    for own in parts.values():
        for path, label in own:
            if label in folders:
                folders[label].add(Path(path).parent.name)
    names = [
        re.sub(r"^n?\d+[-._]?", "", min(own, default="")) for own in folders.values()
    ]
    if all(len(own) == 1 for own in folders.values()) and len({*names} - {""}) == n:
        return names
    print(f"no {NAMES}: classes are called class 0, ..., which says nothing to CLIP")
    return [f"class {label}" for label in range(n)]


class VTAB(FewShotDataset):
    """A task of VTAB-1k: the lists' lines are `PATH LABEL`, the path from FOLDER on.

    As published what validates trains, too (hyperparameter `train_on_val`), and
    images are not augmented.
    """

    IMAGES, VAL_SHOTS, TRAIN_ON_VAL, AUGMENT = "", None, True, False
    FILES = ("train800.txt", "val200.txt", "test.txt")
    BENCHMARK = "VTAB-1k"

    @classmethod
    def few_shot_lists(cls, root, source=None):
        folder = folder_of(cls, root)
        files = zip(PARTS, cls.FILES, strict=True)
        return named_lists(folder, folder, {p: pairs_of(folder / f) for p, f in files})


def pairs_of(path: Path) -> Pairs:
    """The pairs on a list's lines; InputError for a line that is none."""
    pairs = []
    for line in lines(path):
        image, _, label = line.strip().rpartition(" ")
        if not (image and label.isdecimal()):
            raise InputError(f"{path}: the line {line!r} is no path and label.")
        pairs.append((image, int(label)))
    return pairs


class FGVC(FewShotDataset):
    """One of the five: `train.json` and so on are objects {path below IMAGES: class}.

    Classes are numbered in sorted order.
    """

    VAL_SHOTS = None
    BENCHMARK = "FGVC"

    @classmethod
    def few_shot_lists(cls, root, source=None):
        folder = folder_of(cls, root)
        given = {part: classes_of(folder / f"{part}.json") for part in PARTS}
        known = {name for own in given.values() for name in own.values()}
        if len({*map(type, known)}) > 1:
            raise InputError(f"{folder}: some classes are numbers, others texts.")
        label = {name: i for i, name in enumerate(sorted(known))}
        parts = {
            part: [(path, label[name]) for path, name in own.items()]
            for part, own in given.items()
        }
        return named_lists(folder, folder / cls.IMAGES, parts)


def classes_of(path: Path) -> dict[str, int | str]:
    """The object in the file; InputError if it is no {path: class}."""
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no JSON ({error}).") from error
    if not isinstance(content, dict) or not all(
        isinstance(name, int | str) for name in content.values()
    ):
        raise InputError(f"{path} is not an object of paths and their classes.")
    return content


@register
class VTABCaltech101(VTAB):
    """Objects, 102 classes; 800, 200, 6,084."""

    FOLDER = "vtab-1k/caltech101"


@register
class VTABCIFAR100(VTAB):
    """Small photographs, 100 classes; 800, 200, 10,000."""

    FOLDER = "vtab-1k/cifar"


@register
class VTABDTD(VTAB):
    """Textures, 47 classes; 800, 200, 1,880."""

    FOLDER = "vtab-1k/dtd"
    TEMPLATE = "{name} texture."


@register
class VTABFlowers102(VTAB):
    """Flowers, 102 classes; 800, 200, 6,149."""

    FOLDER = "vtab-1k/oxford_flowers102"
    TEMPLATE = "a photo of a {name}, a type of flower."


@register
class VTABPets(VTAB):
    """Breeds of cats and dogs, 37 classes; 800, 200, 3,669."""

    FOLDER = "vtab-1k/oxford_iiit_pet"
    TEMPLATE = "a photo of a {name}, a type of pet."


@register
class VTABSVHN(VTAB):
    """House numbers, 10 digits; 800, 200, 26,032."""

    FOLDER = "vtab-1k/svhn"


@register
class VTABSUN397(VTAB):
    """Scenes, 397 classes; 800, 200, 21,750."""

    FOLDER = "vtab-1k/sun397"


@register
class VTABCamelyon(VTAB):
    """Tissue, with a tumour or without, 2 classes; 800, 200, 32,768."""

    FOLDER = "vtab-1k/patch_camelyon"


@register
class VTABEuroSAT(VTAB):
    """Land seen by a satellite, 10 classes; 800, 200, 5,400."""

    FOLDER = "vtab-1k/eurosat"
    TEMPLATE = "a centered satellite photo of {name}."


@register
class VTABResisc45(VTAB):
    """Places seen from above, 45 classes; 800, 200, 6,300."""

    FOLDER = "vtab-1k/resisc45"


@register
class VTABRetinopathy(VTAB):
    """Retinas, 5 grades of disease; 800, 200, 42,670."""

    FOLDER = "vtab-1k/diabetic_retinopathy"


@register
class VTABClevrCount(VTAB):
    """How many things, 8 classes; 800, 200, 15,000."""

    FOLDER = "vtab-1k/clevr_count"


@register
class VTABClevrDistance(VTAB):
    """How far the nearest is, 6 classes; 800, 200, 15,000."""

    FOLDER = "vtab-1k/clevr_dist"


@register
class VTABDMLab(VTAB):
    """How far a thing in a maze is, 6 classes; 800, 200, 22,735."""

    FOLDER = "vtab-1k/dmlab"


@register
class VTABKITTI(VTAB):
    """How far the nearest vehicle is, 4 classes; 800, 200, 711."""

    FOLDER = "vtab-1k/kitti"


@register
class VTABDSpritesLocation(VTAB):
    """Where a shape is, 16 classes; 800, 200, 73,728."""

    FOLDER = "vtab-1k/dsprites_loc"


@register
class VTABDSpritesOrientation(VTAB):
    """How a shape is turned, 16 classes; 800, 200, 73,728."""

    FOLDER = "vtab-1k/dsprites_ori"


@register
class VTABSmallNORBAzimuth(VTAB):
    """From which side, 18 classes; 800, 200, 12,150."""

    FOLDER = "vtab-1k/smallnorb_azi"


@register
class VTABSmallNORBElevation(VTAB):
    """From how high, 9 classes; 800, 200, 12,150."""

    FOLDER = "vtab-1k/smallnorb_ele"


@register
class CUB200(FGVC):
    """Birds, 200 species; 5,394, 600, 5,794."""

    FOLDER, IMAGES = "fgvc/CUB_200_2011", "images"
    TEMPLATE = "a photo of a {name}, a type of bird."


@register
class NABirds(FGVC):
    """Birds of North America, 555 kinds; 21,536, 2,393, 24,633."""

    FOLDER, IMAGES = "fgvc/nabirds", "images"
    TEMPLATE = "a photo of a {name}, a type of bird."


@register
class FGVCFlowers(FGVC):
    """Flowers, 102 classes; 1,020, 1,020, 6,149."""

    FOLDER, IMAGES = "fgvc/OxfordFlower", ""
    TEMPLATE = "a photo of a {name}, a type of flower."


@register
class StanfordDogs(FGVC):
    """Breeds of dogs, 120 classes; 10,800, 1,200, 8,580."""

    FOLDER, IMAGES = "fgvc/Stanford-dogs", "Images"
    TEMPLATE = "a photo of a {name}, a type of dog."


@register
class FGVCCars(FGVC):
    """Models of cars, 196 classes; 7,329, 815, 8,041."""

    FOLDER, IMAGES = "fgvc/Stanford-cars", ""
