"""VTAB-1k and FGVC: tiny trees in their layouts, names of classes, bad lists."""

import json

import pytest
from helpers import picture, shots

from domainbed import datasets
from domainbed.lib.errors import InputError


def vtab(root, counts=(8, 6, 4), folder="vtab-1k/svhn"):
    """Lists of three classes, so many images of each in every part."""
    files = ("train800.txt", "val200.txt", "test.txt")
    for file, n in zip(files, counts, strict=True):
        rows = [f"images/{file[:-4]}/{i}.jpg {i % 3}" for i in range(3 * n)]
        for row in rows:
            picture(root / folder / row.split(" ")[0])
        (root / folder / file).write_text("\n".join(rows) + "\n")
    return root / folder


def drawn(root, name="VTABSVHN", k=1000, **hparams):
    return shots(root, name, hparams, shots=k)


def test_all_of_a_task_trains_and_is_tested(tmp_path, capsys):
    vtab(tmp_path)
    dataset = drawn(tmp_path, train_on_val=True)
    assert dataset.n_train == len(dataset[0]) == 3 * (8 + 6)
    assert dataset[0].items[0] == ("images/train800/0.jpg", 0)
    assert len(dataset[1]) == 12 and dataset.num_classes == 3
    assert "3 classes have fewer than 1000 images" in capsys.readouterr().out


def test_what_validates_is_not_cut_to_four_of_a_class(tmp_path):
    vtab(tmp_path)
    dataset = drawn(tmp_path)
    assert (dataset.n_train, len(dataset[0])) == (24, 24 + 18)
    few = drawn(tmp_path, k=5)
    assert (few.n_train, len(few[0])) == (15, 15 + 15)


def test_what_validates_trains_by_default_in_vtab_alone():
    for name in datasets.of_task("few_shot"):
        assert datasets.get_dataset_class(name).TRAIN_ON_VAL is (name[:4] == "VTAB")


def test_classes_are_called_by_a_file_by_folders_or_by_numbers(tmp_path, capsys):
    folder = vtab(tmp_path)
    assert drawn(tmp_path).class_names == ["class 0", "class 1", "class 2"]
    assert "no classnames.txt" in capsys.readouterr().out
    (folder / "classnames.txt").write_text("zero\none\ntwo\n")
    assert drawn(tmp_path).class_names == ["zero", "one", "two"]
    (folder / "classnames.txt").write_text("zero\none\n")
    with pytest.raises(InputError, match="has 2 names for 3 classes"):
        drawn(tmp_path)


def fgvc(root, name, ids=(7, 3), **changes):
    """Lists of two classes in folders of their own, a picture of each in every part."""
    cls = datasets.get_dataset_class(name)
    folders = ("n02085620-Chihuahua", "n02085782-Japanese_spaniel")
    for part in ("train", "val", "test"):
        content = {
            f"{folder}/{part}.jpg": own
            for folder, own in zip(folders, ids, strict=True)
        }
        for path in content:
            picture(root / cls.FOLDER / cls.IMAGES / path)
        text = json.dumps(changes.get(part, content))
        (root / cls.FOLDER / f"{part}.json").write_text(text)


def test_classes_of_lists_of_objects_are_in_sorted_order(tmp_path):
    fgvc(tmp_path, "StanfordDogs")
    dataset = drawn(tmp_path, "StanfordDogs")
    assert dataset.class_names == ["Japanese_spaniel", "Chihuahua"]
    assert dataset[1].items == [
        ("n02085620-Chihuahua/test.jpg", 1),
        ("n02085782-Japanese_spaniel/test.jpg", 0),
    ]
    assert dataset[0][0][0].shape == (3, 48, 48)


@pytest.mark.parametrize("text, message", [
    ("images/train800/0.jpg", "'images/train800/0.jpg' is no path and label"),
    ("images/train800/0.jpg zero", "is no path and label"),
    ("images/train800/0.jpg 4\n", "names? .* missing: 3|without gaps; missing: 3"),
    ("../0.jpg 0\n", "leads out of"),
    ("images/test/0.jpg 0\n", "stands in train and again in test"),
    ("images/train800/gone.jpg 0\n", "names .*gone.jpg: no file"),
])  # fmt: skip
def test_bad_lines_are_named(text, message, tmp_path):
    folder = vtab(tmp_path)
    with open(folder / "train800.txt", "a") as file:
        file.write(text)
    with pytest.raises(InputError, match=message):
        drawn(tmp_path)


@pytest.mark.parametrize("train, message", [
    ([1], "train.json is not an object of paths and their classes"),
    ({"a.jpg": None}, "is not an object of paths"),
    ({"a.jpg": "x"}, "some classes are numbers, others texts"),
])  # fmt: skip
def test_bad_objects_are_refused(train, message, tmp_path):
    fgvc(tmp_path, "CUB200", train=train)
    with pytest.raises(InputError, match=message):
        drawn(tmp_path, "CUB200")


def test_a_missing_list_is_named_with_its_place(tmp_path):
    with pytest.raises(InputError, match=r"VTABSVHN is not at .*vtab-1k.svhn"):
        drawn(tmp_path)
    (vtab(tmp_path) / "val200.txt").unlink()
    with pytest.raises(InputError, match=r"cannot read .*svhn.val200.txt"):
        drawn(tmp_path)
    fgvc(tmp_path, "NABirds")
    (tmp_path / "fgvc" / "nabirds" / "test.json").write_text("{")
    with pytest.raises(InputError, match=r"nabirds.test.json is no JSON"):
        drawn(tmp_path, "NABirds")
