"""CoOp's datasets: fetched, unpacked from what is at hand, counted class by class."""

import json

import pytest
from download_web import fails, left_in, tarred, zipped
from helpers import picture

from domainbed import datasets
from domainbed.download import few_shot
from domainbed.scripts.download import main

CLASSES = {"Forest": "Forest", "River": "River"}
NAME, FOLDER = "EuroSAT", "eurosat"
SPLIT = "split_zhou_EuroSAT.json"


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A tiny EuroSAT as its makers pack it, its split file, and a manifest of both."""
    split, root = {}, tmp_path / "made"
    for part, n in (("train", 3), ("val", 2), ("test", 1)):
        split[part] = [
            [f"{name}/{part}{i}.jpg", y, name]
            for y, name in enumerate(CLASSES)
            for i in range(n)
        ]
        for path, _, _ in split[part]:
            picture(root / "2750" / path)
    each = {"train": 3, "val": 2, "test": 1}
    counts = {NAME: {"classes": 2, "train": 6, "val": 4, "test": 2}}
    counts[NAME]["of_each_class"] = each
    (tmp_path / "counts.json").write_text(json.dumps(counts))
    monkeypatch.setattr(few_shot, "COUNTS", tmp_path / "counts.json")
    files = tmp_path / "files"
    files.mkdir()
    (files / "EuroSAT.zip").write_bytes(zipped(root))
    (files / SPLIT).write_text(json.dumps(split))
    return files


def download(data, *flags, name=NAME):
    main(["--data_dir", str(data), "--dataset", name, *map(str, flags)])


def test_a_dataset_is_fetched_and_verified(made, web, tmp_path, capsys, monkeypatch):
    addresses = {}
    for file in made.iterdir():
        web.files[f"/{file.name}"] = file.read_bytes()
        addresses[file.name] = f"{web.url}/{file.name}"
    card = few_shot.CARDS[NAME]._replace(files=addresses)
    monkeypatch.setitem(few_shot.CARDS, NAME, card)
    download(tmp_path / "d", "--verify")
    out = capsys.readouterr().out
    assert "as many as published: train 6, val 4, test 2, of 2 classes" in out
    assert sorted(p.name for p in (tmp_path / "d" / FOLDER).iterdir()) == [
        "2750",
        SPLIT,
    ]
    lists = datasets.get_dataset_class(NAME).few_shot_lists(str(tmp_path / "d"))
    assert len(lists.train) == 6
    assert [n for n in left_in(tmp_path / "d") if not n.endswith(".lock")] == [FOLDER]


def test_what_is_at_hand_is_unpacked_and_a_list_added_later(made, tmp_path, capsys):
    download(tmp_path / "d", "--source", made / "EuroSAT.zip")
    said = capsys.readouterr().out
    assert f"still lacks {tmp_path / 'd' / FOLDER / SPLIT}; it is at https://" in said
    flags = ["--data_dir", tmp_path / "d", "--dataset", NAME, "--verify"]
    assert f"lacks its split file {tmp_path}" in fails(flags, capsys)
    download(tmp_path / "d", "--source", made / SPLIT, "--verify")
    assert f"is at {tmp_path / 'd' / FOLDER} already; added {SPLIT}" in (
        capsys.readouterr().out
    )
    download(tmp_path / "whole", "--source", made, "--verify")
    assert "all images of its lists" in capsys.readouterr().out


def test_what_is_missing_is_named_by_class(made, tmp_path, capsys):
    download(tmp_path / "d", "--source", made)
    for i in (0, 2):
        (tmp_path / "d" / FOLDER / "2750" / "River" / f"train{i}.jpg").unlink()
    sentence = fails(
        ["--data_dir", tmp_path / "d", "--dataset", NAME, "--verify"], capsys
    )
    assert "missing are 2 images" in sentence and "River 2 of 6" in sentence
    assert "River/train0.jpg the first" in sentence


def test_other_numbers_than_published_are_named_by_class(made, tmp_path, capsys):
    split = json.loads((made / SPLIT).read_text())
    split["val"] += [split["train"].pop(0)]
    (made / SPLIT).write_text(json.dumps(split))
    flags = ["--data_dir", tmp_path / "d", "--dataset", NAME, "--source", made]
    sentence = fails([*flags, "--verify"], capsys)
    assert "train has 5 images (published: 6)" in sentence
    assert "in train, of Forest 2 (published: 3)" in sentence
    assert "in val, of Forest 3 (published: 2)" in sentence


def test_what_needs_a_person_is_explained(tmp_path, capsys):
    sentence = fails(["--data_dir", tmp_path, "--dataset", "ImageNet"], capsys)
    assert "have agreed to their terms: sign in there" in sentence
    assert f"{tmp_path / 'imagenet'}/images/train/SYNSET" in sentence
    assert "https://image-net.org/download.php" in sentence
    assert left_in(tmp_path) == []


def test_an_archives_folder_is_called_as_the_dataset_calls_it(tmp_path, capsys):
    picture(tmp_path / "x.jpg")
    archive = tmp_path / "sketch.tar.gz"
    content = {"sketch/n01/a.JPEG": (tmp_path / "x.jpg").read_bytes()}
    archive.write_bytes(tarred(content))
    download(tmp_path / "d", "--source", archive, name="ImageNetSketch")
    names = tmp_path / "classnames.txt"
    names.write_text("n01 tench\n")
    download(tmp_path / "d", "--source", names, name="ImageNetSketch")
    lists = datasets.get_dataset_class("ImageNetSketch").few_shot_lists(tmp_path / "d")
    assert lists.tests["test"] == [("n01/a.JPEG", 0)]
    flags = ["--data_dir", tmp_path / "e", "--source", archive, "--dataset", NAME]
    assert "EuroSAT could not be made: it holds no folder '2750'" in fails(
        flags, capsys
    )
    assert [n for n in left_in(tmp_path / "e") if not n.endswith(".lock")] == []


def test_without_network_each_says_so(tmp_path, capsys):
    for name, card in few_shot.CARDS.items():
        if not card.by_hand:
            sentence = fails(["--data_dir", tmp_path, "--dataset", name], capsys)
            assert f"{name} could not be made: tests use no network" in sentence
            assert card.website in sentence
    assert [n for n in left_in(tmp_path) if not n.endswith(".lock")] == []


def test_wrong_names_and_sources(tmp_path, capsys):
    flags = ["--data_dir", tmp_path, "--dataset"]
    assert "Did you mean 'EuroSAT'" in fails([*flags, "EuroSATs"], capsys)
    sentence = fails([*flags, NAME, "--source", "gdrive"], capsys)
    assert "Unknown source of EuroSAT 'gdrive'; known: auto, a file" in sentence


def test_the_manifest_has_every_dataset_and_adds_up():
    counts = json.loads(few_shot.COUNTS.read_text())
    assert counts.keys() == few_shot.CARDS.keys()
    for name, own in counts.items():
        docs = datasets.get_dataset_class(name).__doc__
        for part in few_shot.PARTS:
            if each := own.get("of_each_class", {}).get(part):
                assert each * own["classes"] == own[part]
            if of_class := own.get("of_class"):
                assert len(of_class) == own["classes"]
                assert sum(n[part] for n in of_class.values()) == own[part]
            if "val" in own:  # cards say it
                assert f"{own[part]:,}" in docs
