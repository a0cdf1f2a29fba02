"""Datasets of the few-shot task: lists of images to train, validate and test on.

What such a dataset gives is `few_shot_lists`; the task draws from them the environments
of a run, `Shots`. Files and folders are those that CoOp's users have:
https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md
"""

import json
import os
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from domainbed.datasets import (
    ImageDataset,
    ImageEnvironment,
    MultipleDomainDataset,
    get_dataset_class,
)
from domainbed.lib.errors import InputError
from domainbed.lib.layout import folder_of
from domainbed.lib.misc import seed_hash
from domainbed.lib.shots import half, k_shots
from domainbed.lib.texts import read_text

Item = tuple[str, int]  # path of an image below the lists' folder, label
PARTS = ("train", "val", "test")


class Lists(NamedTuple):
    """What the few-shot task draws from. `tests` may have several lists, by name."""

    folder: Path
    class_names: list[str]
    train: list[Item]
    val: list[Item]
    tests: dict[str, list[Item]]


class FewShotDataset(MultipleDomainDataset):
    """A dataset for the few-shot task alone; each is a card.

    Images lie in `root/FOLDER/IMAGES`, the lists in the file SPLIT beside it: an object
    of `train`, `val` and `test`, lists of [path, label, class name]. The order of the
    items decides which are drawn.
    """

    TASKS = ("few_shot",)
    FOLDER: str
    IMAGES: str
    SPLIT: str
    TEMPLATE = "a photo of a {name}."
    AUGMENT = True  # whether shots are cropped anew at each step, by default

    @classmethod
    def few_shot_lists(cls, root: str | None, source: str | None = None) -> Lists:
        """The lists in the data folder `root`; InputError for what is not there."""
        folder = folder_of(cls, root)
        return read_split_file(folder / cls.SPLIT, folder / cls.IMAGES, cls.__name__)


def read_split_file(path: Path, images: Path, dataset: str) -> Lists:
    """The lists of a `split_zhou_<name>.json`; InputError, with the place, for others.

    Nobody can make up a missing one: CoOp's code made it with the random state of
    whoever ran it first.
    """
    if not path.is_file():
        raise InputError(
            f"{dataset} lacks its split file {path}; it decides which images are drawn "
            "and is published with CoOp (DATASETS.md there links it)."
        )
    try:
        content = json.loads(read_text(path))
        parts = {part: content[part] for part in PARTS}
        rows = {
            part: [(str(p), y, str(n)) for p, y, n in parts[part]] for part in PARTS
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"the split file {path} is not an object of train, val and test, lists of "
            f"[path, label, class name] ({type(error).__name__}: {error})."
        ) from error
    return lists_of(rows, images, path)


def lists_of(
    rows: dict[str, list[tuple[str, int, str]]], images: Path, source: Path
) -> Lists:
    """Lists of rows (path, label, class name), checked; `source` is where they stand.

    InputError for labels with gaps or two names, paths outside of `images` and an image
    that stands twice.
    """
    names: dict[int, str] = {}
    seen: dict[str, str] = {}
    for part, own in rows.items():
        for path, label, name in own:
            if type(label) is not int or names.setdefault(label, name) != name:
                raise InputError(
                    f"{source}: the label {label!r} of {path} is no number or has two "
                    f"class names, {names.get(label)!r} and {name!r}."
                )
            if os.path.isabs(path) or ".." in Path(path).parts:
                raise InputError(f"{source}: {path!r} leads out of {images}.")
            if seen.setdefault(path, part) != part:
                raise InputError(
                    f"{source}: the image {path!r} stands in {seen[path]} and again in "
                    f"{part}."
                )
    missing = sorted(set(range(max(names, default=-1) + 1)) - names.keys())
    if missing or not names or min(names) < 0:
        raise InputError(
            f"{source}: labels must be 0, 1, ... without gaps; missing: "
            f"{', '.join(map(str, missing[:5])) or 'all'}."
        )
    items = {part: [(path, label) for path, label, _ in rows[part]] for part in rows}
    class_names = [names[label] for label in sorted(names)]
    tests = {"test": items["test"]}
    return Lists(images, class_names, items["train"], items["val"], tests)


def split_by_class(files: dict[int, list[str]], seed: int) -> dict[str, list[Item]]:
    """Half of each class's files to train on, a fifth to validate, the rest to test.

    CoOp's rule for datasets without official parts, here with a seed of its own.
    """
    generator = random.Random(seed)
    parts: dict[str, list[Item]] = {part: [] for part in PARTS}
    for label, own in files.items():
        order = list(own)
        generator.shuffle(order)
        n_train, n_val = round(0.5 * len(order)), round(0.2 * len(order))
        cuts = {
            "train": order[:n_train],
            "val": order[n_train : n_train + n_val],
            "test": order[n_train + n_val :],
        }
        for part, chosen in cuts.items():
            parts[part] += [(file, label) for file in chosen]
    return parts


class ListedEnvironment(ImageEnvironment):
    """The images of a list, in its order: `folder/path` -> (transform(image), label).

    It is asked with class names and a template of its own.
    """

    def __init__(
        self,
        folder: Path,
        items: Iterable[Item],
        classes: list[str],
        name: str = "",
        template: str = "",
    ):
        self.items, self.name, self.template = list(items), name, template
        super().__init__(folder, classes)

    @property
    def key(self):
        return None  # many lists may be of one folder

    def siblings(self):
        return [path for path, _ in self.samples]

    def find_samples(self, left_out):
        return [(os.path.join(self.root, path), label) for path, label in self.items]


class Views(ListedEnvironment):
    """V random crops of each image of a list, the same ones every time.

    Item v n + i is view v of image i, drawn from the image's name and v alone: of more
    views the first are these.
    """

    def __init__(self, folder: Path, items: list[Item], classes: list[str], views: int):
        self.views, self.n = views, len(items)
        super().__init__(folder, items * views, classes)

    def __getitem__(self, index):
        import torch

        seed = seed_hash("view", index // self.n, self.items[index][0])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return super().__getitem__(index)


class Shots(ImageDataset):
    """The environments of a few-shot run: 0, `shots`, trains; the others are tested.

    K shots of each class, and min(K, 4) to validate, are drawn from all classes with
    Python's generator, seeded by the trial as CoOp's seeds 1, 2, 3; where hparams say
    `train_on_val`, what would validate trains. Of `base` classes
    only the first half trains, and `base` and `new` are tested, each among its own.
    `transfer_to` names datasets whose test lists are tested as well. `views`, where
    hparams ask for some, are crops of the shots, to train on instead.
    """

    views: Views | None = None

    def __init__(self, dataset_class: type, args: Any, hparams: dict[str, Any]):
        from domainbed.lib.transforms import crops

        self.N_WORKERS = dataset_class.N_WORKERS
        lists = dataset_class.few_shot_lists(args.data_dir, args.source)
        if not lists.train:
            raise InputError(
                f"{args.dataset} has images to test on only; name it in --transfer_to."
            )
        generator = random.Random(args.trial_seed + 1)
        train = take(lists.train, args.shots, generator)
        most = dataset_class.VAL_SHOTS or args.shots
        val = take(lists.val, min(args.shots, most), generator)
        if hparams.get("train_on_val"):
            train, val = train + val, []
        if few := classes_below(lists.train, args.shots):
            print(f"{few} classes have fewer than {args.shots} images: they give all.")
        labels = {"all": [*range(len(lists.class_names))]}
        if args.classes == "base":
            drawn = [y for _, y in train]
            labels = {kind: half(drawn, kind) for kind in ("base", "new")}
        own = next(iter(labels.values()))  # those that train
        train, val = within(train, own), within(val, own)
        self.n_train, self.num_classes = len(train), len(own)
        self.class_names = [lists.class_names[y] for y in own]

        def environment(items: list[Item], chosen: list[int], name: str):
            names = [lists.class_names[y] for y in chosen]
            template = hparams.get("prompt", dataset_class.TEMPLATE)
            return ListedEnvironment(lists.folder, items, names, name, template)

        environments = [environment(train + val, own, "shots")]
        for test, items in lists.tests.items():
            for kind, chosen in labels.items():
                name = name_of_test(test, kind, len(lists.tests))
                environments.append(environment(within(items, chosen), chosen, name))
        for target in args.transfer_to or ():
            environments += targets(target, args.data_dir)
        check_images(environments)
        self.ENVIRONMENTS = tuple(env.name for env in environments)
        self.set_environments(environments, [], hparams)
        if hparams.get("views"):
            self.views = Views(lists.folder, train, self.class_names, hparams["views"])
            self.views.transform = crops(self.evaluate)
        elif hparams.get("augment") and hparams.get("clip_transform"):
            environments[0].transform = crops(self.evaluate)


def take(items: list[Item], k: int, generator: random.Random) -> list[Item]:
    """k items of each label, drawn."""
    return [items[i] for i in k_shots([y for _, y in items], k, generator)]


def within(items: list[Item], labels: list[int]) -> list[Item]:
    """The items of those labels, which become 0, 1, ..."""
    place = {label: i for i, label in enumerate(labels)}
    return [(path, place[y]) for path, y in items if y in place]


def name_of_test(name: str, kind: str, n_tests: int) -> str:
    """What the test list's environment is called."""
    if kind == "all":
        return name
    return kind if n_tests == 1 else f"{name} {kind}"


def names_of_tests(dataset: str, classes: str) -> list[str]:
    """What a run's own test environments are called, without a look at its images."""
    tests = get_dataset_class(dataset).SOURCES or ("test",)
    kinds = ("base", "new") if classes == "base" else ("all",)
    return [name_of_test(test, kind, len(tests)) for test in tests for kind in kinds]


def names_of_targets(names: Iterable[str]) -> list[str]:
    """What the environments of --transfer_to are called."""
    tests = {name: names_of_tests(name, "all") for name in names}
    return [
        name_of_target(name, test, len(own))
        for name, own in tests.items()
        for test in own
    ]


def name_of_target(name: str, test: str, n_tests: int) -> str:
    return f"{name} {test}" if n_tests > 1 else name


def targets(name: str, root: str | None) -> list[ListedEnvironment]:
    """The test lists of a dataset that another one's run is tested on."""
    dataset_class = get_dataset_class(name)
    lists = dataset_class.few_shot_lists(root)
    return [
        ListedEnvironment(
            lists.folder,
            items,
            lists.class_names,
            name_of_target(name, test, len(lists.tests)),
            dataset_class.TEMPLATE,
        )
        for test, items in lists.tests.items()
    ]


def check_images(environments: list[ListedEnvironment]) -> None:
    """InputError with the first image that a list names and no file is."""
    for environment in environments:
        for path, _ in environment.samples:
            if not os.path.isfile(path):
                raise InputError(f"the list {environment.name} names {path}: no file.")


def classes_below(items: list[Item], k: int) -> int:
    """How many classes have fewer than k items."""
    return sum(n < k for n in Counter(y for _, y in items).values())
