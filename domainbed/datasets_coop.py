"""CoOp's eleven datasets and the four shifts of ImageNet, as cards.

Zhou et al., 2022, https://arxiv.org/abs/2109.01134. Names are CoOp's classes'; how the
files get where they are: https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md.
Counts are of images to train, validate and test on, in CoOp's own split.
"""

from pathlib import Path

from domainbed.datasets import register
from domainbed.datasets_few_shot import (
    FewShotDataset,
    Item,
    Lists,
    lists_of,
)
from domainbed.lib.errors import InputError, UnknownNameError
from domainbed.lib.layout import folder_of
from domainbed.lib.pictures import subfolders
from domainbed.lib.texts import lines


class ImageNetFolders(FewShotDataset):
    """Folders named by synset; a label is the folder's place in sorted order.

    Class names are the rest of a synset's line in `classnames.txt`. Where the folders
    are 200 of the 1000, only their names are asked. There is a test list alone.
    """

    TEST = ""  # the folder of the test images below IMAGES

    @classmethod
    def few_shot_lists(cls, root, source=None):
        folder = folder_of(cls, root)
        images = folder / cls.IMAGES
        names = cls.names_of(folder, subfolders(existing(images / cls.TEST)))
        test = items_of(images, cls.TEST)
        return Lists(images, names, cls.train_items(images), [], {"test": test})

    @classmethod
    def train_items(cls, images: Path) -> list[Item]:
        return []

    @classmethod
    def names_of(cls, folder: Path, folders: list[str]) -> list[str]:
        """The class names of those image folders."""
        by_synset = dict(
            line.split(" ", 1) for line in lines(folder / "classnames.txt")
        )
        unknown = [name for name in folders if name not in by_synset]
        if unknown:
            raise InputError(
                f"{folder / 'classnames.txt'} has no line for the folder {unknown[0]}."
            )
        return [by_synset[name].strip() for name in folders]


def items_of(images: Path, below: str) -> list[Item]:
    """The images of each class folder, sorted, their labels the folders' places."""
    folder = existing(images / below)
    return [
        (str(Path(below) / name / file.name), label)
        for label, name in enumerate(subfolders(folder))
        for file in sorted((folder / name).iterdir())
        if not file.name.startswith(".")
    ]


def existing(folder: Path) -> Path:
    """The folder; InputError if it is not there."""
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder} of images.")
    return folder


@register
class ImageNet(ImageNetFolders):
    """1000 things; 1,281,167 to train on, 50,000 to test. Terms: research.

    CoOp draws from folders as the file system lists them, so its shots differ between
    machines; here files are sorted.
    """

    FOLDER, IMAGES, TEST = "imagenet", "images", "val"

    @classmethod
    def train_items(cls, images):
        return items_of(images, "train")


@register
class Caltech101(FewShotDataset):
    """Objects, 100 classes; 4,128, 1,649, 2,465."""

    FOLDER, IMAGES = "caltech-101", "101_ObjectCategories"
    SPLIT = "split_zhou_Caltech101.json"


@register
class OxfordPets(FewShotDataset):
    """Breeds of cats and dogs, 37 classes; 2,944, 736, 3,669."""

    FOLDER, IMAGES = "oxford_pets", "images"
    SPLIT = "split_zhou_OxfordPets.json"
    TEMPLATE = "a photo of a {name}, a type of pet."


@register
class StanfordCars(FewShotDataset):
    """Models of cars, 196 classes; 6,509, 1,635, 8,041."""

    FOLDER, IMAGES = "stanford_cars", ""
    SPLIT = "split_zhou_StanfordCars.json"


@register
class OxfordFlowers(FewShotDataset):
    """Flowers, 102 classes; 4,093, 1,633, 2,463."""

    FOLDER, IMAGES = "oxford_flowers", "jpg"
    SPLIT = "split_zhou_OxfordFlowers.json"
    TEMPLATE = "a photo of a {name}, a type of flower."


@register
class Food101(FewShotDataset):
    """Dishes, 101 classes; 50,500, 20,200, 30,300."""

    FOLDER, IMAGES = "food-101", "images"
    SPLIT = "split_zhou_Food101.json"
    TEMPLATE = "a photo of {name}, a type of food."


@register
class FGVCAircraft(FewShotDataset):
    """Variants of aircraft, 100 classes; 3,334, 3,333, 3,333.

    Its lists are the official ones, `images_variant_<part>.txt` of lines such as
    `0034958 Boeing 717`; labels follow `variants.txt`.
    """

    FOLDER, IMAGES = "fgvc_aircraft", "images"
    TEMPLATE = "a photo of a {name}, a type of aircraft."

    @classmethod
    def few_shot_lists(cls, root, source=None):
        folder = folder_of(cls, root)
        label = {name: i for i, name in enumerate(lines(folder / "variants.txt"))}
        rows = {}
        for part in ("train", "val", "test"):
            own = lines(folder / f"images_variant_{part}.txt")
            pairs = [line.split(" ", 1) for line in own]
            if unknown := [n for _, n in pairs if n not in label]:
                raise UnknownNameError(
                    f"class in {folder}/images_variant_{part}.txt", unknown[0], label
                )
            rows[part] = [(f"{i}.jpg", label[n], n) for i, n in pairs]
        return lists_of(rows, folder / cls.IMAGES, folder / "variants.txt")


@register
class SUN397(FewShotDataset):
    """Scenes, 397 classes; 15,880, 3,970, 19,850."""

    FOLDER, IMAGES = "sun397", "SUN397"
    SPLIT = "split_zhou_SUN397.json"


@register
class DescribableTextures(FewShotDataset):
    """Textures, 47 classes; 2,820, 1,128, 1,692."""

    FOLDER, IMAGES = "dtd", "images"
    SPLIT = "split_zhou_DescribableTextures.json"
    TEMPLATE = "{name} texture."


@register
class EuroSAT(FewShotDataset):
    """Land seen by a satellite, 10 classes; 13,500, 5,400, 8,100."""

    FOLDER, IMAGES = "eurosat", "2750"
    SPLIT = "split_zhou_EuroSAT.json"
    TEMPLATE = "a centered satellite photo of {name}."


@register
class UCF101(FewShotDataset):
    """Actions in a video's middle frame, 101 classes; 7,639, 1,898, 3,783."""

    FOLDER, IMAGES = "ucf101", "UCF-101-midframes"
    SPLIT = "split_zhou_UCF101.json"
    TEMPLATE = "a photo of a person doing {name}."


@register
class ImageNetV2(ImageNetFolders):
    """ImageNet's classes, photographed anew; to test on. Folders count its lines."""

    FOLDER, IMAGES = "imagenetv2", "imagenetv2-matched-frequency-format-val"

    @classmethod
    def few_shot_lists(cls, root, source=None):
        folder = folder_of(cls, root)
        names = [
            line.split(" ", 1)[1].strip() for line in lines(folder / "classnames.txt")
        ]
        images = existing(folder / cls.IMAGES)
        items = []
        for name in subfolders(images):
            if not name.isdecimal() or int(name) >= len(names):
                raise InputError(
                    f"{images / name} is not one of the folders 0 to {len(names) - 1}."
                )
            files = sorted((images / name).iterdir())
            items += [(f"{name}/{file.name}", int(name)) for file in files]
        items.sort(key=lambda item: item[1])
        return Lists(images, names, [], [], {"test": items})


@register
class ImageNetSketch(ImageNetFolders):
    """ImageNet's classes in sketches; to test on."""

    FOLDER, IMAGES = "imagenet-sketch", "images"


@register
class ImageNetA(ImageNetFolders):
    """200 of ImageNet's classes, photographs that mislead classifiers; to test on."""

    FOLDER, IMAGES = "imagenet-adversarial", "imagenet-a"


@register
class ImageNetR(ImageNetFolders):
    """200 of ImageNet's classes in art, toys and the like; to test on."""

    FOLDER, IMAGES = "imagenet-rendition", "imagenet-r"
