import pickle
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_image_folder
from PIL import Image
from torchvision.transforms import functional as F

from domainbed import datasets, datasets_emoji
from domainbed.backbones import clip_transform
from domainbed.lib import transforms
from domainbed.lib.errors import InputError

PLAIN = {"data_augmentation": False}
AUGMENTED = {"data_augmentation": True}
CLIP = {"data_augmentation": True, "clip_transform": True, "clip_backbone": "emoji"}


@pytest.mark.parametrize(
    "name, environments",
    [
        ("VLCS", "C L S V"),
        ("PACS", "A C P S"),
        ("OfficeHome", "A C P R"),
        ("TerraIncognita", "L100 L38 L43 L46"),
        ("DomainNet", "clip info paint quick real sketch"),
        ("SVIRO", "aclass escape hilux i3 lexus tesla tiguan tucson x5 zoe"),
        ("EmojiDG", "fluent noto openmoji twemoji"),
        ("EmojiHouses", "animals faces food objects"),
        ("Debug28", "0 1 2"),
    ],
)
def test_environments_in_the_contracts_order(name, environments):
    cls = datasets.get_dataset_class(name)
    assert list(cls.ENVIRONMENTS) == environments.split()
    assert datasets.num_environments(name) == len(cls.ENVIRONMENTS)


def test_an_unknown_dataset_suggests_the_nearest():
    with pytest.raises(NotImplementedError, match="Did you mean 'PACS'"):
        datasets.get_dataset_class("pacs")


def test_an_image_folder_gives_classes_in_sorted_order(pacs):
    dataset = datasets.PACS(str(pacs), [0], PLAIN)
    assert len(dataset) == 4
    assert dataset.class_names == ["dog", "house"]
    assert (dataset.input_shape, dataset.num_classes) == ((3, 224, 224), 2)
    for environment in dataset:
        assert len(environment) == 10
        assert environment.targets == [0] * 5 + [1] * 5
    x, y = dataset[2][7]
    house = Image.open(pacs / "PACS" / "photo" / "house" / "2.png")
    expected = transforms.EVALUATE(house)
    assert (y, x.shape) == (1, (3, 224, 224))
    torch.testing.assert_close(x, expected)


def test_only_training_environments_are_augmented(pacs):
    dataset = datasets.PACS(str(pacs), [1], AUGMENTED)
    plain = datasets.PACS(str(pacs), [1], PLAIN)
    for i in range(4):
        torch.manual_seed(0)
        as_trained = dataset[i][0][0]
        assert torch.equal(as_trained, plain[i][0][0]) == (i == 1)
        assert torch.equal(dataset.unaugmented(i)[0][0], plain[i][0][0])


def test_clip_sees_clips_preprocessing_everywhere(pacs):
    dataset = datasets.PACS(str(pacs), [0], CLIP)
    assert dataset.input_shape == (3, 48, 48)
    picture = Image.open(pacs / "PACS" / "sketch" / "dog" / "0.png")
    expected = clip_transform("emoji")(picture)
    assert torch.equal(dataset[3][0][0], expected)
    assert torch.equal(dataset.unaugmented(3)[0][0], expected)


def test_every_dataset_has_as_many_classes_as_its_card_says():
    for name, classes in datasets.known_classes().items():
        assert f"{len(classes)} classes" in datasets.get_dataset_class(name).__doc__


def test_any_folder_is_a_dataset(tmp_path, pacs):
    name = f"ImageFolder:{make_image_folder(tmp_path / 'mine', ['b', 'a'], ['x', 'y'])}"
    cls = datasets.get_dataset_class(name)
    assert cls.ENVIRONMENTS == ("a", "b")
    assert datasets.num_environments(name) == 2
    dataset = cls(None, [0], PLAIN)
    assert [len(environment) for environment in dataset] == [10, 10]
    assert (dataset.class_names, dataset.environment_name(1)) == (["x", "y"], "b")
    with pytest.raises(InputError, match=f"there is no folder '{tmp_path}/none'"):
        datasets.get_dataset_class(f"ImageFolder:{tmp_path / 'none'}")
    named = datasets.get_dataset_class(f"ImageFolder:birds={tmp_path / 'mine'}")
    assert named.ENVIRONMENTS == ("a", "b")


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """60 digits of one grey level each, in place of torchvision's MNIST."""

    class Digits:
        def __init__(self, root, train):
            n = 40 if train else 20
            self.targets = torch.arange(n) % 10
            self.data = torch.full((n, 28, 28), 51, dtype=torch.uint8)
            self.data[:, :14] = 255

    monkeypatch.setattr("torchvision.datasets.MNIST", Digits)
    return str(tmp_path)


def test_rotated_mnist_turns_each_share(mnist):
    torch.manual_seed(0)
    dataset = datasets.RotatedMNIST(mnist, [0], {})
    assert [len(environment) for environment in dataset] == [10] * 6
    assert (dataset.input_shape, dataset.num_classes) == ((1, 28, 28), 10)
    upright, _ = dataset[0][0]
    assert torch.equal(upright[0, :, 5], torch.tensor([1.0] * 14 + [0.2] * 14))
    for i, degrees in enumerate((0, 15, 30, 45, 60, 75)):
        picture = F.to_pil_image(upright)
        bilinear = F.InterpolationMode.BILINEAR
        expected = F.to_tensor(F.rotate(picture, degrees, bilinear))
        assert torch.equal(dataset[i][3][0], expected)
    labels = [y for environment in dataset for _, y in environment]
    assert sorted(map(int, labels)) == sorted(list(range(10)) * 6)


def test_rotated_mnist_turns_pictures_as_upstream_does(mnist):
    """To PIL, turned, to a tensor: not the tensor itself."""
    torch.manual_seed(0)
    digit = torch.randint(256, (28, 28), dtype=torch.uint8)
    x, _ = datasets.RotatedMNIST.environment(
        datasets.RotatedMNIST, digit[None], torch.zeros(1), 4
    )[0]
    picture = Image.fromarray(digit.numpy()).rotate(60, Image.Resampling.BILINEAR)
    assert torch.equal(x[0] * 255, torch.tensor(np.array(picture)).float())


def test_colored_mnist_ties_the_colour_to_the_label(monkeypatch, mnist):
    monkeypatch.setattr(torch, "rand", lambda n: torch.linspace(0, 0.999, n))
    dataset = datasets.ColoredMNIST(mnist, [0], {})
    assert (dataset.input_shape, dataset.num_classes) == ((2, 28, 28), 2)
    for environment, disagree in zip(dataset, (2, 4, 18), strict=True):
        x, y = environment.tensors
        green = x[:, 1].sum((1, 2)) > 0
        assert torch.equal(green, x[:, 0].sum((1, 2)) == 0)  # one colour each
        assert (green != y.bool()).sum() == disagree  # 10, 20, 90 % of 20


def test_mnist_is_not_downloaded_behind_ones_back(tmp_path):
    with pytest.raises(InputError, match=r"MNIST is not in .*scripts\.download"):
        datasets.RotatedMNIST(str(tmp_path), [0], {})


def make_spawrious(root, cls, n):
    for group in (0, 1):
        for place in ("desert", "jungle", "dirt", "snow", "beach", "mountain"):
            folder = root / "spawrious224" / str(group)
            make_image_folder(folder, [place], cls.BREEDS, n)


@pytest.mark.parametrize("name", ["SpawriousO2O_easy", "SpawriousM2M_hard"])
def test_spawrious_ties_breeds_to_places(name, tmp_path, monkeypatch):
    cls = datasets.get_dataset_class(name)
    monkeypatch.setattr(cls, "TOTAL", 10)
    make_spawrious(tmp_path, cls, 10)
    dataset = cls(str(tmp_path), [0], PLAIN)
    assert dataset.num_classes == 4

    def places(environment, breed):
        label = dataset.class_names.index(breed)
        items = zip(environment.items, environment.targets, strict=True)
        return [path.split("/")[-4:-2] for path, y in items if y == label]

    for environment in dataset:
        assert {y for y in environment.targets} == {0, 1, 2, 3}
    test, *groups = (places(environment, "bulldog") for environment in dataset)
    if name == "SpawriousO2O_easy":
        assert groups[0].count(["0", "desert"]) == 9
        assert groups[0].count(["0", "beach"]) == 1
        assert groups[1].count(["1", "desert"]) == 8
        assert groups[1].count(["1", "beach"]) == 2
        assert test == [["0", "dirt"]] * 10 + [["1", "dirt"]] * 10
    else:
        assert groups == [[["0", "dirt"]] * 10, [["0", "jungle"]] * 10]
        assert test == [["0", "snow"]] * 10 + [["0", "beach"]] * 10
    assert dataset[1][0][0].shape == (3, 224, 224)


@pytest.mark.parametrize(
    "name, first",
    [
        ("PACS", ["RandomResizedCrop"]),
        ("WILDSCamelyon", ["Resize", "RandomResizedCrop"]),
        ("SpawriousM2M_easy", ["Resize"]),
    ],
)
def test_each_datasets_augmentation_is_upstreams(name, first):
    named = datasets.get_dataset_class(name).AUGMENTATION
    steps = getattr(transforms, named).transforms
    rest = ["RandomHorizontalFlip", "ColorJitter", "RandomGrayscale"]
    rest += ["ToTensor", "Normalize"]
    assert [type(step).__name__ for step in steps] == first + rest


class Camelyon:
    """What is used of wilds' Camelyon17Dataset."""

    metadata_fields = ("hospital", "slide", "y")
    n_classes = 2

    def __init__(self, root_dir, download):
        hospital = torch.tensor([3, 0, 1, 0, 4, 2])
        self.y_array = torch.tensor([0, 1, 1, 0, 1, 0])
        self.metadata_array = torch.stack([hospital, hospital, self.y_array], 1)

    def get_input(self, index):
        return Image.new("RGB", (96, 96), (40 * index, 0, 0))


def test_wilds_environments_are_values_of_its_metadata(monkeypatch, tmp_path):
    module = type("module", (), {"Camelyon17Dataset": Camelyon})
    cls = datasets.get_dataset_class("WILDSCamelyon")
    monkeypatch.setattr("domainbed.datasets_more.require", lambda name, extra: module)
    dataset = cls(str(tmp_path), [0], PLAIN)
    assert [len(environment) for environment in dataset] == [2, 1, 1, 1, 1]
    assert [y for _, y in (dataset[0][0], dataset[0][1])] == [1, 0]
    red = dataset[3][0][0][0].mean()
    black = (0 - transforms.IMAGENET_MEAN[0]) / transforms.IMAGENET_STD[0]
    assert red == pytest.approx(black, abs=1e-4)  # image 0
    # So worker processes get it however they are started.
    monkeypatch.setattr(sys.modules[__name__], "Camelyon", Camelyon)
    again = pickle.loads(pickle.dumps(dataset[3]))
    assert torch.equal(again[0][0].mean((1, 2)), dataset[3][0][0].mean((1, 2)))


def test_wilds_is_imported_only_when_used(tmp_path):
    if find_spec("wilds") is None:
        cls = datasets.get_dataset_class("WILDSFMoW")
        with pytest.raises(InputError, match=r"pip install domainbed-lfa\[wilds\]"):
            cls(str(tmp_path), [0], PLAIN)


def test_hidden_folders_are_no_domains(pacs):
    (pacs / "PACS" / ".cache").mkdir()
    (pacs / "PACS" / "__MACOSX").mkdir()
    assert len(datasets.PACS(str(pacs), [0], PLAIN)) == 4


def test_an_unreadable_image_is_named(pacs):
    path = pacs / "PACS" / "photo" / "dog" / "3.png"
    path.write_bytes(path.read_bytes()[:60])
    dataset = datasets.PACS(str(pacs), [0], PLAIN)
    with pytest.raises(InputError, match=f"cannot read the image {path}"):
        dataset[2][3]


def test_an_image_too_large_to_be_one_is_named(pacs, monkeypatch):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 10)
    dataset = datasets.PACS(str(pacs), [0], PLAIN)
    with pytest.raises(InputError, match=r"cannot read the image .*exceeds limit"):
        dataset[2][3]


def test_a_folder_dataset_needs_a_data_dir():
    with pytest.raises(InputError, match="PACS needs --data_dir"):
        datasets.PACS(None, [0], PLAIN)


def test_emoji_dg_unpacks_itself_once_for_many(tmp_path, monkeypatch):
    unpacked = []
    unpack = datasets_emoji.unpack

    def count(archive, folder, place):
        unpacked.append(folder)
        unpack(archive, folder, place)

    monkeypatch.setattr(datasets_emoji, "unpack", count)
    root = str(tmp_path / "new" / "data")
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: datasets.EmojiDG(root, [0], PLAIN), range(4)))
    assert len(unpacked) == 1
    assert all(len(dataset) == 4 for dataset in made)


def test_emoji_dg_appears_only_when_whole(tmp_path, monkeypatch):
    def fail(self, item, path):
        (path / "fluent").mkdir(parents=True)
        raise OSError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(zipfile.ZipFile, "extract", fail)
        with pytest.raises(InputError, match=r"disk full.* another --data_dir"):
            datasets.EmojiDG(str(tmp_path), [0], PLAIN)
    assert not (tmp_path / "emoji_dg").exists()
    dataset = datasets.EmojiDG(str(tmp_path), [0], PLAIN)
    assert [len(environment) for environment in dataset] == [514] * 4


def test_emoji_dg_is_the_same_emoji_in_every_domain(tmp_path):
    dataset = datasets.EmojiDG(str(tmp_path), [0], PLAIN)
    assert dataset.num_classes == 17
    assert "sea_animal" in dataset.class_names
    names = [
        [tuple(path.split("/")[-2:]) for path, _ in environment.samples]
        for environment in dataset
    ]
    assert names[0] == names[1] == names[2] == names[3]
    counts = torch.tensor(dataset[0].targets).bincount()
    assert (counts.min(), counts.max()) == (11, 66)
    assert Image.open(dataset[0].samples[0][0]).size == (128, 128)


def test_emoji_houses_asks_who_drew_the_images_of_emoji_dg(tmp_path):
    houses = datasets.EmojiHouses(str(tmp_path), [0], PLAIN)
    assert houses.class_names == list(datasets.EmojiDG.ENVIRONMENTS)
    counts = [torch.tensor(env.targets).bincount().tolist() for env in houses]
    assert counts == [[119] * 4, [56] * 4, [151] * 4, [188] * 4]
    drawn = {path.name: path for path in (tmp_path / "emoji_houses").rglob("*.webp")}
    assert {path.parts[-3] for path in drawn.values()} == set(houses.ENVIRONMENTS)

    emoji = datasets.EmojiDG(str(tmp_path), [0], PLAIN)
    kinds = {"sea_animal": "animals", "face": "faces", "plant": "food"}
    kinds["vehicle"] = "objects"
    for path in (Path(path) for env in emoji for path, _ in env.samples):
        house, name = path.parts[-3:-1]
        kind = kinds.get(name) or drawn[path.name].parts[-3]
        other = tmp_path / "emoji_houses" / kind / house / path.name
        assert other.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["EmojiDG", "EmojiHouses"])
def test_the_datasets_that_ship_are_augmented_as_all_others(name, tmp_path):
    dataset = datasets.get_dataset_class(name)(str(tmp_path), [1], AUGMENTED)
    assert dataset[0].transform is transforms.AUGMENT
    assert dataset[1].transform is transforms.EVALUATE
