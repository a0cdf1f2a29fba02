"""Upstream's other datasets: two of WILDS, six of Spawrious."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from domainbed.datasets import ImageDataset, register
from domainbed.lib.errors import InputError
from domainbed.lib.optional import require
from domainbed.lib.pictures import pictures, read_image, subfolders

if TYPE_CHECKING:
    import torch


class Items:
    """(transform(image), label) of items that `load(item)` reads as PIL images."""

    def __init__(self, items: list[Any], targets: list[int], load: Callable):
        self.items, self.targets, self.load = items, targets, load
        self.transform: Callable

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.load(self.items[index])), self.targets[index]


def wilds_image(data: Any, index: int) -> Image.Image:
    """The input of that number in a dataset of the package `wilds`, as a picture."""
    image = data.get_input(index)
    return image if isinstance(image, Image.Image) else Image.fromarray(image)


class WILDSDataset(ImageDataset):
    """An image dataset of WILDS, Koh et al., 2021, https://wilds.stanford.edu.

    An environment is a value of the metadata field FIELD. The class of the package
    `wilds` is MODULE.NAME; it reads `root`, where its own downloader has put it.
    """

    MODULE: str
    NAME: str
    FIELD: str
    AUGMENTATION = "AUGMENT_RESIZED"

    def __init__(self, root, test_envs, hparams):
        source = getattr(require(f"wilds.datasets.{self.MODULE}", "wilds"), self.NAME)
        try:
            data = source(root_dir=root, download=False)
        except (FileNotFoundError, ValueError) as error:
            raise InputError(
                f"{type(self).__name__} is not in {root}: {error}"
            ) from error

        field = data.metadata_array[:, data.metadata_fields.index(self.FIELD)]
        environments = []
        for value in sorted(set(field.tolist())):
            indices = (field == value).nonzero()[:, 0].tolist()
            labels = data.y_array[indices].tolist()
            environments.append(Items(indices, labels, partial(wilds_image, data)))
        self.num_classes = data.n_classes
        self.set_environments(environments, test_envs, hparams)


@register
class WILDSCamelyon(WILDSDataset):
    """Tumour or not in patches of lymph nodes from five hospitals. Terms: CC0."""

    ENVIRONMENTS = tuple(f"hospital_{i}" for i in range(5))
    MODULE, NAME, FIELD = "camelyon17_dataset", "Camelyon17Dataset", "hospital"
    class_names = ["normal tissue", "tumor tissue"]


@register
class WILDSFMoW(WILDSDataset):
    """What satellites see in six regions of the world; 62 kinds. Terms: FMoW's own."""

    ENVIRONMENTS = tuple(f"region_{i}" for i in range(6))
    MODULE, NAME, FIELD = "fmow_dataset", "FMoWDataset", "region"


class Spawrious(ImageDataset):
    """Four breeds of dog, each before a place that the training set ties to it.

    Lynch et al., 2023, https://arxiv.org/abs/2303.05470. Images at
    `root/spawrious224/<0 or 1>/<place>/<breed>/`. Breeds in the order of PLACES:
    bulldog, dachshund, labrador, corgi. In O2O both training environments tie a breed
    to one place, in 97 and 87 % of its images, the rest before FILLER; in M2M pairs of
    breeds exchange their two places. The test environment has other places.
    What trains is augmented without a crop; upstream augments both groups always.
    """

    ENVIRONMENTS = ("Test", "SC_group_1", "SC_group_2")
    class_names = ["bulldog", "corgi", "dachshund", "labrador"]
    num_classes = 4
    BREEDS = ("bulldog", "dachshund", "labrador", "corgi")
    AUGMENTATION = "AUGMENT_UNCROPPED"
    TOTAL = 3168  # images of each breed in a training environment
    PLACES: tuple[str, ...]  # of each breed when training
    TEST_PLACES: tuple[str, ...]
    FILLER: str | None = None  # given: O2O

    def __init__(self, root, test_envs, hparams):
        if root is None:
            raise InputError(f"{type(self).__name__} needs --data_dir, its folder.")
        folder = Path(root) / "spawrious224"
        folder = folder if folder.is_dir() else Path(root)
        shares = [self.test_shares(), self.train_shares(0), self.train_shares(1)]
        environments = [self.environment(folder, share) for share in shares]
        self.set_environments(environments, test_envs, hparams)

    def train_shares(self, group: int) -> list[tuple[int, str, str, int | None]]:
        """(sub-folder, place, breed, images at most) of a training environment."""
        if self.FILLER is None:
            places = self.PLACES if group == 0 else swap_pairs(self.PLACES)
            pairs = zip(places, self.BREEDS, strict=True)
            return [(0, place, breed, self.TOTAL) for place, breed in pairs]
        tied = int((0.97, 0.87)[group] * self.TOTAL)
        pairs = zip(self.PLACES, self.BREEDS, strict=True)
        return [
            *((group, place, breed, tied) for place, breed in pairs),
            *((group, self.FILLER, breed, self.TOTAL - tied) for breed in self.BREEDS),
        ]

    def test_shares(self) -> list[tuple[int, str, str, int | None]]:
        """The same of the test environment: all images."""
        one_to_one = self.FILLER is not None
        second = self.TEST_PLACES if one_to_one else swap_pairs(self.TEST_PLACES)
        return [
            (group if one_to_one else 0, place, breed, None)
            for group, places in enumerate((self.TEST_PLACES, second))
            for place, breed in zip(places, self.BREEDS, strict=True)
        ]

    def environment(self, folder: Path, shares: list) -> Items:
        paths, labels = [], []
        for group, place, breed, limit in shares:
            source = folder / str(group) / place / breed
            if not source.is_dir():
                there = ", ".join(subfolders(folder)) if folder.is_dir() else "nothing"
                raise InputError(
                    f"{type(self).__name__} has no {source}; {folder} holds {there}."
                )
            paths += pictures(source)[:limit]
            labels += [self.class_names.index(breed)] * (len(paths) - len(labels))
        return Items(paths, labels, read_image)


def swap_pairs(places: tuple[str, ...]) -> tuple[str, ...]:
    """(a, b, c, d) -> (b, a, d, c)."""
    a, b, c, d = places
    return b, a, d, c


@register
class SpawriousO2O_easy(Spawrious):
    PLACES = ("desert", "jungle", "dirt", "snow")
    TEST_PLACES = ("dirt", "snow", "desert", "jungle")
    FILLER = "beach"


@register
class SpawriousO2O_medium(Spawrious):
    PLACES = ("mountain", "beach", "dirt", "jungle")
    TEST_PLACES = ("jungle", "dirt", "beach", "snow")
    FILLER = "desert"


@register
class SpawriousO2O_hard(Spawrious):
    PLACES = ("jungle", "mountain", "snow", "desert")
    TEST_PLACES = ("mountain", "snow", "desert", "jungle")
    FILLER = "beach"


@register
class SpawriousM2M_easy(Spawrious):
    PLACES = ("desert", "mountain", "dirt", "jungle")
    TEST_PLACES = ("dirt", "jungle", "mountain", "desert")


@register
class SpawriousM2M_medium(Spawrious):
    PLACES = ("beach", "snow", "mountain", "desert")
    TEST_PLACES = ("desert", "mountain", "beach", "snow")


@register
class SpawriousM2M_hard(Spawrious):
    PLACES = ("dirt", "jungle", "snow", "beach")
    TEST_PLACES = ("snow", "beach", "dirt", "jungle")
