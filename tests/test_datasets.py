import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import make_image_folder
from PIL import Image

from domainbed import datasets
from domainbed.backbones import clip_transform
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
    expected = datasets.EVALUATE(
        Image.open(pacs / "PACS" / "photo" / "house" / "2.png")
    )
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


def break_folder(pacs, how):
    folder = pacs / "PACS"
    if how == "environment":
        shutil.rmtree(folder / "sketch")
    elif how == "class":
        shutil.rmtree(folder / "sketch" / "house")
    elif how == "extra class":
        make_image_folder(folder, ["photo"], ["horse"])
    elif how == "all":
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "how, says",
    [
        ("environment", "should hold the 4 environments of PACS .A, C, P, S."),
        ("class", "environment 'sketch' .* has no folder for the class 'house'"),
        ("extra class", "environment 'art_painting' .* the class 'horse'"),
        ("all", "PACS is not at .*/PACS; give the folder that holds PACS/"),
    ],
)
def test_a_wrong_folder_is_described(pacs, how, says):
    break_folder(pacs, how)
    with pytest.raises(InputError, match=says):
        datasets.PACS(str(pacs), [0], PLAIN)


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


def test_a_folder_dataset_needs_a_data_dir():
    with pytest.raises(InputError, match="PACS needs --data_dir"):
        datasets.PACS(None, [0], PLAIN)


def test_emoji_dg_unpacks_itself_once_for_many(tmp_path, monkeypatch):
    unpacked = []
    unpack = datasets.unpack

    def count(archive, folder):
        unpacked.append(folder)
        unpack(archive, folder)

    monkeypatch.setattr(datasets, "unpack", count)
    root = str(tmp_path / "new" / "data")
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: datasets.EmojiDG(root, [0], PLAIN), range(4)))
    assert len(unpacked) == 1
    assert all(len(dataset) == 4 for dataset in made)


def test_emoji_dg_appears_only_when_whole(tmp_path, monkeypatch):
    def fail(self, path):
        (path / "fluent").mkdir(parents=True)
        raise OSError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(zipfile.ZipFile, "extractall", fail)
        with pytest.raises(OSError, match="disk full"):
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
