"""CoOp's datasets and the shifts of ImageNet: from the web or archives, and verified.

Addresses are those of https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md. What
each class has is in `assets/few_shot_counts.json`, as far as it is published: totals by
part, of each class where its makers or the splits' rule say so.
"""

import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from domainbed.datasets import get_dataset_class
from domainbed.datasets_few_shot import PARTS, Lists
from domainbed.download import fetch, steps
from domainbed.lib.errors import InputError, UnknownNameError
from domainbed.lib.reporting import listed

COUNTS = Path(__file__).parents[1] / "assets" / "few_shot_counts.json"
VGG = "https://www.robots.ox.ac.uk/~vgg/data"
CAR = "http://ai.stanford.edu/~jkrause/car196"
CLASSNAMES = {"classnames.txt": f"{fetch.DRIVE}1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF"}
TEXTS = (".json", ".txt")  # lists, which may come one by one


class Card(NamedTuple):
    """Where a dataset's files are, or what to do to get them."""

    website: str
    files: dict[str, str] = {}  # name -> address
    by_hand: str = ""
    renamed: tuple[str, str] | None = None  # what the archive calls a folder, and we


def split_at(name: str, drive: str) -> dict[str, str]:
    """The split file of that name on Google Drive."""
    return {f"split_zhou_{name}.json": fetch.DRIVE + drive}


CARDS = {
    "ImageNet": Card(
        "https://image-net.org/download.php",
        CLASSNAMES,
        "its makers give it to people with an account who have agreed to their terms: "
        "sign in there, get the images of ILSVRC 2012, and put them in {folder}/images/"
        "train/SYNSET and {folder}/images/val/SYNSET",
    ),
    "Caltech101": Card(
        "https://data.caltech.edu/records/mzrjq-6wc02",
        {
            "101_ObjectCategories.tar.gz": "http://www.vision.caltech.edu/"
            "Image_Datasets/Caltech101/101_ObjectCategories.tar.gz"
        }
        | split_at("Caltech101", "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN"),
    ),
    "OxfordPets": Card(
        f"{VGG}/pets",
        {"images.tar.gz": f"{VGG}/pets/data/images.tar.gz"}
        | split_at("OxfordPets", "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs"),
    ),
    "StanfordCars": Card(
        "https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        {name: f"{CAR}/{name}" for name in ("cars_train.tgz", "cars_test.tgz")}
        | split_at("StanfordCars", "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT"),
    ),
    "OxfordFlowers": Card(
        f"{VGG}/flowers/102",
        {"102flowers.tgz": f"{VGG}/flowers/102/102flowers.tgz"}
        | split_at("OxfordFlowers", "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT"),
    ),
    "Food101": Card(
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101",
        {"food-101.tar.gz": "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz"}
        | split_at("Food101", "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl"),
    ),
    "FGVCAircraft": Card(
        f"{VGG}/fgvc-aircraft",
        {
            "fgvc-aircraft-2013b.tar.gz": f"{VGG}/fgvc-aircraft/archives/"
            "fgvc-aircraft-2013b.tar.gz"
        },
    ),
    "SUN397": Card(
        "https://vision.princeton.edu/projects/2010/SUN",
        {"SUN397.tar.gz": "http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz"}
        | split_at("SUN397", "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq"),
    ),
    "DescribableTextures": Card(
        f"{VGG}/dtd",
        {"dtd-r1.0.1.tar.gz": f"{VGG}/dtd/download/dtd-r1.0.1.tar.gz"}
        | split_at("DescribableTextures", "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x"),
    ),
    "EuroSAT": Card(
        "https://github.com/phelber/EuroSAT",
        {"EuroSAT.zip": "http://madm.dfki.de/files/sentinel/EuroSAT.zip"}
        | split_at("EuroSAT", "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o"),
    ),
    "UCF101": Card(
        "https://www.crcv.ucf.edu/data/UCF101.php",
        {"UCF-101-midframes.zip": f"{fetch.DRIVE}10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O"}
        | split_at("UCF101", "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y"),
    ),
    "ImageNetV2": Card(
        "https://github.com/modestyachts/ImageNetV2",
        {
            "imagenetv2-matched-frequency.tar.gz": "https://s3-us-west-2.amazonaws.com/"
            "imagenetv2public/imagenetv2-matched-frequency.tar.gz"
        }
        | CLASSNAMES,
    ),
    "ImageNetSketch": Card(
        "https://github.com/HaohanWang/ImageNet-Sketch",
        CLASSNAMES,
        "its makers link it in several places: get the archive there and give it as "
        "--source",
        ("sketch", "images"),
    ),
    "ImageNetA": Card(
        "https://github.com/hendrycks/natural-adv-examples",
        {"imagenet-a.tar": "https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar"}
        | CLASSNAMES,
    ),
    "ImageNetR": Card(
        "https://github.com/hendrycks/imagenet-r",
        {"imagenet-r.tar": "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar"}
        | CLASSNAMES,
    ),
}


def obtain(
    name: str, data_dir: Path, source: str, report: Callable[[str], None]
) -> Path:
    """The dataset's folder, from local files or from its addresses; InputError if these
    need somebody's consent, or fail.

    To a folder that is there only lists are added that it lacks.
    """
    card, folder = CARDS[name], steps.folder_of(name, data_dir)
    local = sources_of(name, source)
    if folder.exists():
        added = add_lists(local or [], folder)
        report(f"{name} is at {folder} already" + (f"; added {added}" if added else ""))
        return folder
    if local is None and card.by_hand:
        raise InputError(
            f"{name} is not downloaded: {card.by_hand.format(folder=folder)}; "
            f"{card.website}."
        )
    kept = folder.with_name(f"{folder.name}.download")
    with steps.locked(folder):
        try:
            if local is None:
                report(f"{name}: from {card.website}")
                kept.mkdir(exist_ok=True)
                local = [fetch.fetch(at, kept / n) for n, at in card.files.items()]
            report(f"{name}: unpacking {', '.join(path.name for path in local)}")
            steps.build(local, folder, partial(arrange, name))
        except steps.FAILURES as error:
            with contextlib.suppress(OSError):
                kept.rmdir()  # unless it holds what can be resumed
            raise InputError(
                f"{name} could not be made: {steps.reason(error)}; what comes from "
                f"{card.website} can be given as --source."
            ) from error
        shutil.rmtree(kept, ignore_errors=True)
    for file in lacking(name, folder):
        report(f"{name} still lacks {folder / file}; it is at {card.files.get(file)}")
    report(f"{name} is at {folder}")
    return folder


def sources_of(name: str, source: str) -> list[Path] | None:
    """The local files that --source names, None if it names the web."""
    if source == "auto":
        return None
    if source in steps.SOURCES:
        raise UnknownNameError(f"source of {name}", source, ("auto", "a file"))
    return steps.local_files(source)


def arrange(name: str, raw: Path, to: Path) -> None:
    """What lies beside the folder of images in `raw`, and lists from anywhere, in `to`.

    InputError if there is no such folder.
    """
    wanted = get_dataset_class(name).IMAGES or "cars_train"
    theirs, _ = CARDS[name].renamed or (wanted, wanted)
    found = sorted(
        (
            folder
            for n in {wanted, theirs}
            for folder in raw.rglob(n)
            if folder.is_dir()
        ),
        key=lambda folder: len(folder.parts),
    )
    if not found:
        raise InputError(f"it holds no folder {wanted!r}")
    texts = [path for path in raw.rglob("*") if path.suffix in TEXTS]
    if found[0].name != wanted:
        found[0].rename(found[0].with_name(wanted))
    found[0].parent.rename(to)
    add_lists([path for path in texts if path.exists()], to)


def add_lists(files: list[Path], folder: Path) -> str:
    """Copy the lists that the folder lacks into it; their names."""
    new = [f for f in files if f.suffix in TEXTS and not (folder / f.name).exists()]
    for file in new:
        shutil.copyfile(file, folder / file.name)
    return ", ".join(file.name for file in new)


def lacking(name: str, folder: Path) -> Iterator[str]:
    """The lists of the card that are not in the folder."""
    for file in CARDS[name].files:
        if Path(file).suffix in TEXTS and not (folder / file).is_file():
            yield file


def verify(name: str, data_dir: Path) -> tuple[str, bool]:
    """What the dataset has, and True: InputError with what is missing, if something is.

    Each image on its lists must be a file, and each part, class by class where that is
    published, as large as the manifest says.
    """
    lists = get_dataset_class(name).few_shot_lists(str(data_dir))
    parts = {"train": lists.train, "val": lists.val, "test": lists.tests["test"]}
    known = json.loads(COUNTS.read_text(encoding="utf-8"))[name]
    problems = [*differences(lists, parts, known), *absent(lists, parts)]
    if problems:
        raise InputError(f"{name} in {lists.folder}: {'; '.join(problems)}.")
    counts = ", ".join(f"{part} {len(own):,}" for part, own in parts.items() if own)
    sentence = f"{name} has all images of its lists, as many as published: {counts}"
    return f"{sentence}, of {len(lists.class_names):,} classes.", True


def differences(lists: Lists, parts: dict, known: dict[str, Any]) -> Iterator[str]:
    """In what the lists are not as published."""
    if len(lists.class_names) != known["classes"]:
        yield f"{len(lists.class_names):,} classes (published: {known['classes']:,})"
    for part in PARTS:
        n, expected = len(parts[part]), known.get(part, 0)
        if n != expected:
            yield f"{part} has {n:,} images (published: {expected:,})"
        every = known.get("of_each_class", {}).get(part)
        of_class = {c: own[part] for c, own in known.get("of_class", {}).items()}
        found = Counter(lists.class_names[label] for _, label in parts[part])
        if every is not None:
            of_class = dict.fromkeys(lists.class_names, every)
        wrong = [
            f"{name} {found[name]:,} (published: {n:,})"
            for name, n in of_class.items()
            if found[name] != n
        ]
        if wrong:
            yield f"in {part}, of {listed(wrong)}"


def absent(lists: Lists, parts: dict) -> Iterator[str]:
    """How many images on the lists are no files, by class."""
    items = [item for own in parts.values() for item in own]
    total = Counter(label for _, label in items)
    gone = [(p, y) for p, y in items if not os.path.isfile(lists.folder / p)]
    if gone:
        by_class = Counter(label for _, label in gone)
        texts = (
            f"{lists.class_names[y]} {n:,} of {total[y]:,}"
            for y, n in by_class.most_common()
        )
        first = lists.folder / gone[0][0]
        yield f"missing are {len(gone):,} images, {first} the first: {listed(texts)}"
