"""Datasets: each class is a card, and gives one environment per domain.

`dataset[i]` is environment i, a map from an index to (x, label). An image folder is
`root/<FOLDER>/<environment>/<class>/<image>`, environments and classes in sorted order.
A class registered here, in `datasets_<family>.py` or in an installed package's
entry-point group `domainbed.datasets` is in DATASETS.

A card is known without torch, which takes seconds: who makes environments imports it.
"""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domainbed.lib.errors import InputError
from domainbed.lib.layout import (
    all_classes,
    check_classes,
    check_pictures,
    folder_of,
    in_order,
)
from domainbed.lib.once import once
from domainbed.lib.paths import own_place
from domainbed.lib.pictures import pictures, read_image, same, subfolders, with_others
from domainbed.lib.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch.utils.data import Dataset, TensorDataset

ANY_FOLDER = "ImageFolder:"
REGISTRY = Registry("dataset")
register = REGISTRY.register
# Datasets that are made of what stands behind a prefix, a path.
MADE: dict[str, Callable[[Path], type[MultipleDomainDataset]]] = {}
# Those of them that may be away by now, as their runs' records know them.
AWAY: dict[str, type[MultipleDomainDataset]] = {}


def get_dataset_class(name: str) -> type[MultipleDomainDataset]:
    """The dataset of that name; NotImplementedError if there is none.

    `ImageFolder:PATH` is the folder PATH/<environment>/<class>/<image>, `Manifest:FILE`
    the images that a file lists. `ImageFolder:NAME=PATH` is called NAME in tables.
    """
    REGISTRY.load()
    for prefix, make in MADE.items():
        if name.startswith(prefix):
            try:
                return make(own_place(name.removeprefix(prefix)))
            except InputError:
                if name in AWAY:
                    return AWAY[name]
                raise
    return REGISTRY.get(name)


def is_own(name: str) -> bool:
    """Whether the dataset's name is a place: what lies there is the user's."""
    REGISTRY.load()
    return name.startswith((*MADE,))


def remember(name: str, environments: Sequence[str]) -> None:
    """Let the user's own dataset be known by its environments where its place is gone.

    For what lists and tabulates its runs; nothing can train on it.
    """
    tasks = (*MultipleDomainDataset.TASKS, "few_shot")
    facts = {"ENVIRONMENTS": tuple(environments), "TASKS": tasks}
    facts |= {"TEMPLATE": "", "AUGMENT": False}  # asked of datasets of few-shot runs
    AWAY[name] = type("Away", (MultipleDomainDataset,), facts)


def num_environments(name: str) -> int:
    """How many domains a dataset has."""
    return len(get_dataset_class(name).ENVIRONMENTS)


def of_task(task: str) -> list[str]:
    """The datasets that a task can take, in the order of the tables."""
    REGISTRY.load()
    return [name for name in REGISTRY.names if task in REGISTRY.get(name).TASKS]


def __getattr__(name: str) -> Any:
    """DATASETS, the names of all datasets, in the order of the tables; and each."""
    if name.startswith("__"):  # asked by the import of a family, which is half made
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    REGISTRY.load()
    if name == "DATASETS":
        return of_task("domain_generalization")
    if name in REGISTRY.names:
        return REGISTRY.get(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class MultipleDomainDataset:
    """Environments that share their classes and the shape of their images.

    Made from (root, test_envs, hparams). Training environments, those not in
    `test_envs`, may be augmented when `hparams["data_augmentation"]` says so.
    """

    N_STEPS = 5001  # DomainBed's defaults
    CHECKPOINT_FREQ = 100
    N_WORKERS = 8
    ENVIRONMENTS: Sequence[str] = ()
    INPUT_SHAPE: tuple[int, ...] = ()
    KNOWN_AS: Sequence[tuple[str, ...]] = ()  # further names of each environment
    ALIASES: tuple[str, ...] = ()
    TASKS: tuple[str, ...] = ("domain_generalization", "domain_adaptation")
    SOURCES: Sequence[str] = ()  # the domains that a few-shot run can draw from, if any
    VAL_SHOTS: int | None = 4  # of each class, at most, validate a few-shot run
    TRAIN_ON_VAL = False  # whether those train, too, by default
    BENCHMARK = ""  # of several datasets, which methods may have settings for

    datasets: list[Dataset]
    input_shape: tuple[int, ...]
    num_classes: int
    class_names: list[str] | None = None  # in label order, where classes have names

    def __getitem__(self, index: int) -> Dataset:
        return self.datasets[index]

    def __len__(self) -> int:
        return len(self.datasets)

    def environment_name(self, index: int) -> str:
        """What a reader calls environment `index`."""
        return self.ENVIRONMENTS[index]

    def unaugmented(self, index: int) -> Dataset:
        """Environment `index` as evaluation sees it: same items, never augmented."""
        return self.datasets[index]


class Debug(MultipleDomainDataset):
    """Random images, for tests: three environments of 16, two classes."""

    ENVIRONMENTS = ("0", "1", "2")

    def __init__(self, root, test_envs, hparams):
        import torch
        from torch.utils.data import TensorDataset

        self.input_shape = self.INPUT_SHAPE
        self.num_classes = 2
        self.datasets = [
            TensorDataset(
                torch.randn(16, *self.INPUT_SHAPE),
                torch.randint(0, self.num_classes, (16,)),
            )
            for _ in self.ENVIRONMENTS
        ]


@register
class Debug28(Debug):
    INPUT_SHAPE = (3, 28, 28)


@register
class Debug224(Debug):
    INPUT_SHAPE = (3, 224, 224)


class MNISTEnvironments(MultipleDomainDataset):
    """The 70,000 digits of MNIST, shuffled and dealt out to the environments.

    `root/MNIST/raw` holds them, as torchvision downloads them. A subclass makes an
    environment of its share in `environment(images, labels, i)`.
    """

    def __init__(self, root, test_envs, hparams):
        import torch
        from torchvision.datasets import MNIST

        if root is None:
            raise InputError(f"{type(self).__name__} needs --data_dir, MNIST's folder.")
        try:
            halves = [MNIST(root, train=train) for train in (True, False)]
        except RuntimeError as error:
            raise InputError(
                f"MNIST is not in {root}; fetch it with python -m "
                f"domainbed.scripts.download --data_dir {root} --dataset MNIST."
            ) from error
        images = torch.cat([half.data for half in halves])
        labels = torch.cat([half.targets for half in halves])
        order = torch.randperm(len(images))
        n = len(self.ENVIRONMENTS)
        self.datasets = [
            self.environment(images[order[i::n]], labels[order[i::n]], i)
            for i in range(n)
        ]
        self.input_shape = self.INPUT_SHAPE

    def environment(
        self, images: torch.Tensor, labels: torch.Tensor, i: int
    ) -> TensorDataset:
        """Environment i of grey images (N, 28, 28), 0 to 255, and their digits (N,)."""
        raise NotImplementedError


@register
class ColoredMNIST(MNISTEnvironments):
    """Digits below 5 or not, a quarter of the labels wrong, in red or green.

    Arjovsky et al., 2019, https://arxiv.org/abs/1907.02893. The colour agrees with the
    label in 90 %, 80 % and, where nothing can be learnt from it, 10 %.
    """

    ENVIRONMENTS = ("+90%", "+80%", "-90%")
    INPUT_SHAPE = (2, 28, 28)
    num_classes = 2
    FLIPPED = (0.1, 0.2, 0.9)  # how many colours disagree with the label

    def environment(self, images, labels, i):
        import torch
        from torch.utils.data import TensorDataset

        labels = (labels < 5) ^ (torch.rand(len(labels)) < 0.25)
        green = labels ^ (torch.rand(len(labels)) < self.FLIPPED[i])
        channels = torch.stack([~green, green], 1)[:, :, None, None]
        return TensorDataset(images[:, None] / 255 * channels, labels.long())


@register
class RotatedMNIST(MNISTEnvironments):
    """The ten digits, turned by 0 to 75 degrees.

    Ghifary et al., 2015, https://arxiv.org/abs/1508.07680
    """

    ENVIRONMENTS = ("0", "15", "30", "45", "60", "75")
    INPUT_SHAPE = (1, 28, 28)
    num_classes = 10

    def environment(self, images, labels, i):
        import torch
        from torch.utils.data import TensorDataset
        from torchvision.transforms import functional as F

        # Of pictures, not tensors: Pillow rounds to whole grey levels, as upstream.
        angle, bilinear = float(self.ENVIRONMENTS[i]), F.InterpolationMode.BILINEAR
        turned = (F.rotate(F.to_pil_image(image), angle, bilinear) for image in images)
        return TensorDataset(torch.stack([*map(F.to_tensor, turned)]), labels)


class ImageEnvironment:
    """One domain: `folder/<class>/<image>` -> (transform(image), label)."""

    transform: Callable[[Any], torch.Tensor] | None = None  # set by the dataset

    def __init__(self, folder: Path, classes: list[str]):
        self.root, self.classes = str(folder), classes
        found = once(self.find, "samples", self.key)
        self.samples, self.targets, self.left_out = found

    @property
    def key(self) -> Hashable:
        """What names its files for `once`, None if nothing does."""
        return self.root, *self.classes

    def find(self) -> tuple[list[tuple[str, int]], list[int], Counter[str]]:
        """`find_samples`, the labels alone, and of which endings what is left out."""
        left_out: Counter[str] = Counter()
        samples = self.find_samples(left_out)
        return samples, [label for _, label in samples], left_out

    def find_samples(self, left_out: Counter[str]) -> list[tuple[str, int]]:
        """The path and the label of each image; `left_out` as of `pictures`."""
        folders = {same(name): name for name in subfolders(Path(self.root))}
        return [
            (path, label)
            for label, name in enumerate(self.classes)
            if same(name) in folders
            for path in pictures(Path(self.root, folders[same(name)]), left_out)
        ]

    def siblings(self) -> list[str]:
        """All pictures of the dataset, this domain's and the others'."""
        return pictures(Path(self.root).parent)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, label = self.samples[index]
        try:
            return self.transform(read_image(path)), label
        except InputError as error:
            raise with_others(error, path, self.siblings()) from error


class ImageDataset(MultipleDomainDataset):
    """Environments of images, each with a `transform` that this class sets.

    Images are resized to 224 x 224 and normalised for ImageNet, or, if
    `hparams["clip_transform"]` is set, transformed as `hparams["clip_backbone"]` wants.
    """

    INPUT_SHAPE = (3, 224, 224)
    AUGMENTATION = "AUGMENT"  # a name in lib.transforms

    def set_environments(
        self,
        environments: list[Dataset],
        test_envs: list[int],
        hparams: dict[str, Any],
    ) -> None:
        """Take the environments; those that train are augmented if hparams say so."""
        from domainbed.backbones import clip_transform
        from domainbed.lib import transforms

        self.datasets, self.input_shape = environments, self.INPUT_SHAPE
        self.evaluate = train = transforms.EVALUATE
        if hparams["data_augmentation"]:
            train = getattr(transforms, self.AUGMENTATION)
        if hparams.get("clip_transform"):  # only CLIP algorithms declare it
            train = self.evaluate = clip_transform(hparams["clip_backbone"])
            size = transforms.size_of(train)
            self.input_shape = (3, size, size)
        for i, environment in enumerate(environments):
            environment.transform = self.evaluate if i in test_envs else train

    def unaugmented(self, index):
        environment = copy.copy(self.datasets[index])
        environment.transform = self.evaluate
        return environment


class MultipleEnvironmentImageFolder(ImageDataset):
    """Domains in folders of images; class names are the folders' names."""

    CHECKPOINT_FREQ = 300
    FOLDER: str

    def __init__(self, root, test_envs, hparams):
        folder = self.find_folder(root)
        environments = in_order(type(self), folder)
        self.class_names = all_classes(folder, environments)
        self.num_classes = len(self.class_names)
        datasets = [
            ImageEnvironment(folder / name, self.class_names) for name in environments
        ]
        known = known_classes().get(type(self).__name__, [])
        check_classes(folder, self.class_names, known)
        allowed = hparams.get("allow_missing_classes", False)
        check_pictures(datasets, allowed)
        self.set_environments(datasets, test_envs, hparams)

    def environment_name(self, index):
        return Path(self.datasets[index].root).name

    def find_folder(self, root: str | None) -> Path:
        """Where the dataset is, under the data folder `root`."""
        return folder_of(type(self), root)


@functools.cache
def known_classes() -> dict[str, list[str]]:
    """The classes that datasets are known to have, by the datasets' names."""
    text = (Path(__file__).parent / "assets" / "classes.txt").read_text()
    return {name: own for name, *own in map(str.split, text.split("\n\n"))}


def image_folder(folder: Path) -> type[MultipleEnvironmentImageFolder]:
    """The dataset in that folder; its environments are called as their folders are."""
    folder = folder.expanduser()
    if not folder.is_dir():
        raise InputError(f"there is no folder {str(folder)!r} to take a dataset from.")
    facts = {"FOLDER": str(folder.resolve()), "ENVIRONMENTS": tuple(subfolders(folder))}
    if not facts["ENVIRONMENTS"]:
        raise InputError(f"{folder} holds no folders of environments.")
    return type(f"{ANY_FOLDER}{folder}", (MultipleEnvironmentImageFolder,), facts)


MADE[ANY_FOLDER] = image_folder


@register
class VLCS(MultipleEnvironmentImageFolder):
    """Photographs from Caltech101, LabelMe, SUN09 and VOC2007; 5 classes.

    Fang et al., 2013. 1,415 + 2,656 + 3,282 + 3,376 images. Terms: each source's own.
    """

    FOLDER = "VLCS"
    ENVIRONMENTS = ("C", "L", "S", "V")
    KNOWN_AS = (
        ("Caltech101", "Caltech"),
        ("LabelMe",),
        ("SUN09", "SUN"),
        ("VOC2007", "VOC", "PASCAL", "Pascal VOC"),
    )


@register
class PACS(MultipleEnvironmentImageFolder):
    """Art paintings, cartoons, photographs and sketches; 7 classes.

    Li et al., 2017, https://arxiv.org/abs/1710.03077. 2,048 + 2,344 + 1,670 + 3,929
    images. Terms: research.
    """

    FOLDER = "PACS"
    ENVIRONMENTS = ("A", "C", "P", "S")
    KNOWN_AS = (("art_painting", "art"), ("cartoon",), ("photo",), ("sketch",))


@register
class OfficeHome(MultipleEnvironmentImageFolder):
    """Everyday objects: art, clip art, product and real-world pictures; 65 classes.

    Venkateswara et al., 2017, https://arxiv.org/abs/1706.07522. 2,427 + 4,365 + 4,439
    + 4,357 images. Terms: research.
    """

    FOLDER = "office_home"
    ENVIRONMENTS = ("A", "C", "P", "R")
    KNOWN_AS = (("Art",), ("Clipart",), ("Product",), ("Real World", "Real"))


@register
class TerraIncognita(MultipleEnvironmentImageFolder):
    """Animals before camera traps at four places; 10 classes.

    Beery et al., 2018, https://arxiv.org/abs/1807.04975. Terms: CDLA-permissive.
    """

    FOLDER = "terra_incognita"
    ENVIRONMENTS = ("L100", "L38", "L43", "L46")
    KNOWN_AS = (
        ("location_100", "100"),
        ("location_38", "38"),
        ("location_43", "43"),
        ("location_46", "46"),
    )


@register
class DomainNet(MultipleEnvironmentImageFolder):
    """Clip art, infographics, paintings, quick drawings, photographs, sketches.

    Peng et al., 2019, https://arxiv.org/abs/1812.01754. 345 classes; 48,129 + 51,605 +
    72,266 + 172,500 + 172,947 + 69,128 images. Terms: non-commercial research.
    """

    FOLDER = "domain_net"
    ENVIRONMENTS = ("clip", "info", "paint", "quick", "real", "sketch")
    KNOWN_AS = (
        ("clipart",),
        ("infograph",),
        ("painting",),
        ("quickdraw",),
        ("real",),
        ("sketch",),
    )
    CHECKPOINT_FREQ = 1000


@register
class SVIRO(MultipleEnvironmentImageFolder):
    """What sits on the rear bench of ten cars; 7 classes.

    Dias Da Cruz et al., 2020, https://sviro.kl.dfki.de. Terms: CC BY-NC-SA 4.0.
    """

    FOLDER = "sviro"
    ENVIRONMENTS = (
        "aclass",
        "escape",
        "hilux",
        "i3",
        "lexus",
        "tesla",
        "tiguan",
        "tucson",
        "x5",
        "zoe",
    )
