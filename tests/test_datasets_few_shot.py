"""Datasets of the few-shot task: files in CoOp's layout, shots, bad lists."""

import json
import random

import pytest
from helpers import CLIP, few_shot_args, pets, picture, shots

from domainbed import datasets
from domainbed.datasets_few_shot import Shots
from domainbed.lib.errors import InputError


def test_shots_are_drawn_from_train_then_val_by_the_trials_seed(tmp_path):
    content = pets(tmp_path)
    dataset = shots(tmp_path, shots=5, trial_seed=1)
    assert dataset.ENVIRONMENTS == ("shots", "test")
    generator, expected = random.Random(2), []
    for part, k in (("train", 5), ("val", 4)):
        for y in dict.fromkeys(y for _, y, _ in content[part]):
            own = [path for path, label, _ in content[part] if label == y]
            expected += [(path, y) for path in generator.sample(own, k)]
    assert dataset[0].items == expected
    assert dataset.n_train == 15
    assert dataset[1].items == [(p, y) for p, y, _ in content["test"]]
    assert dataset.class_names == ["abyssinian", "beagle", "persian_cat"]
    assert dataset[1].template == "a photo of a {name}, a type of pet."
    x, y = dataset[0][3]
    assert x.shape == (3, 48, 48) and y == expected[3][1]


def test_base_and_new_classes_are_halves_drawn_together(tmp_path):
    pets(tmp_path)
    whole, base = shots(tmp_path), shots(tmp_path, classes="base")
    assert base.ENVIRONMENTS == ("shots", "base", "new")
    assert base.class_names == base[1].classes == ["abyssinian", "beagle"]
    assert base[2].classes == ["persian_cat"]
    assert base[0].items == [(p, y) for p, y in whole[0].items if y < 2]
    assert {y for _, y in base[2].items} == {0}
    assert len(base[1]) + len(base[2]) == len(whole[1])


def test_a_small_class_gives_all_it_has_and_the_run_says_so(tmp_path, capsys):
    pets(tmp_path)
    assert shots(tmp_path, shots=16).n_train == 18
    assert "3 classes have fewer than 16 images" in capsys.readouterr().out
    shots(tmp_path, shots=6)
    assert capsys.readouterr().out == ""


def test_transfer_adds_targets_with_names_of_their_own(tmp_path):
    pets(tmp_path)
    dataset = shots(tmp_path, transfer_to=["EmojiHouses", "EmojiDG"])
    assert dataset.ENVIRONMENTS[2:4] == ("EmojiHouses", "EmojiDG fluent")
    assert dataset[2].classes[2] == "black line drawing"
    assert dataset[2].template == "a {name}."


def test_augmented_shots_are_cropped_and_tests_are_not(tmp_path):
    pets(tmp_path)
    dataset = Shots(
        datasets.get_dataset_class("OxfordPets"),
        few_shot_args(tmp_path),
        CLIP | {"augment": True},
    )
    assert "scale=(0.08, 1.0)" in repr(dataset[0].transform)
    assert repr(dataset.unaugmented(0).transform) == repr(dataset[1].transform)
    assert dataset[0][0][0].shape == (3, 48, 48)


def test_emoji_are_split_once_for_all_houses(tmp_path):
    dataset = shots(tmp_path, "EmojiDG", source="noto", shots=16)
    assert dataset.ENVIRONMENTS == ("shots", "fluent", "noto", "openmoji", "twemoji")
    assert [len(env) for env in dataset][1:] == [154] * 4
    trained = {p.split("/", 1)[1] for p, _ in dataset[0].items}
    assert {p.split("/")[0] for p, _ in dataset[0].items} == {"noto"}
    for env in list(dataset)[1:]:
        tested = {p.split("/", 1)[1] for p, _ in env.items}
        assert not tested & trained
        assert [p.split("/", 1)[1] for p, _ in env.items] == [
            p.split("/", 1)[1] for p, _ in dataset[1].items
        ]
    houses = shots(tmp_path, "EmojiHouses", shots=16)
    assert len(houses[1]) == 616 and houses.num_classes == 4
    assert not {p.split("/", 1)[1] for p, _ in houses[0].items} & tested


def test_aircraft_reads_the_official_lists(tmp_path):
    folder = tmp_path / "fgvc_aircraft"
    for i in range(3):
        picture(folder / "images" / f"000{i}.jpg")
    (folder / "variants.txt").write_text("Boeing 717\nA 340/B\n")
    for i, part in enumerate(["train", "val", "test"]):
        line = f"000{i} A 340/B\n" if i else f"000{i} Boeing 717\n"
        (folder / f"images_variant_{part}.txt").write_text(line)
    lists = datasets.get_dataset_class("FGVCAircraft").few_shot_lists(str(tmp_path))
    assert lists.class_names == ["Boeing 717", "A 340/B"]
    assert lists.train == [("0000.jpg", 0)] and lists.tests["test"] == [("0002.jpg", 1)]
    (folder / "images_variant_val.txt").write_text("0001 A 340/C\n")
    with pytest.raises(InputError, match=r"variant_val.txt 'A 340/C'; .* 'A 340/B'"):
        datasets.get_dataset_class("FGVCAircraft").few_shot_lists(str(tmp_path))


def imagenet(root):
    synsets = {"n02": "tench", "n01": "great white shark", "n03": "hen"}
    text = "".join(f"{k} {v}\n" for k, v in synsets.items())
    for name in ("imagenet", "imagenet-adversarial", "imagenetv2"):
        (root / name).mkdir()
        (root / name / "classnames.txt").write_text(text)
    for synset in synsets:
        for part in ("train", "val"):
            for i in (2, 1):
                folder = root / "imagenet" / "images" / part / synset
                picture(folder / f"{part}{i}.jpg")
    adversarial = root / "imagenet-adversarial" / "imagenet-a"
    for synset in ("n03", "n01"):
        picture(adversarial / synset / "a.jpg")
    (adversarial / "README.txt").write_text("not a class")
    v2 = root / "imagenetv2" / "imagenetv2-matched-frequency-format-val"
    for i in range(3):
        picture(v2 / str(i) / "x.jpg")


def test_imagenets_labels_are_places_of_sorted_folders(tmp_path):
    imagenet(tmp_path)
    dataset = shots(tmp_path, "ImageNet", shots=1, transfer_to=["ImageNetA"])
    assert dataset.class_names == ["great white shark", "tench", "hen"]
    assert dataset.n_train == len(dataset[0]) == 3  # no validation images
    assert dataset[1].items[:2] == [("val/n01/val1.jpg", 0), ("val/n01/val2.jpg", 0)]
    assert dataset[2].classes == ["great white shark", "hen"]
    assert dataset[2].items == [("n01/a.jpg", 0), ("n03/a.jpg", 1)]
    v2 = datasets.get_dataset_class("ImageNetV2").few_shot_lists(str(tmp_path))
    assert v2.class_names == ["tench", "great white shark", "hen"]
    assert v2.tests["test"] == [(f"{i}/x.jpg", i) for i in range(3)]
    with pytest.raises(InputError, match="test on only; name it in --transfer_to"):
        shots(tmp_path, "ImageNetA")


BAD = {
    "gap": ({"val": [["a.jpg", 5, "x"]]}, r"without gaps; missing: 3, 4"),
    "two names": ({"val": [["a.jpg", 0, "x"]]}, r"two class names"),
    "outside": ({"val": [["../a.jpg", 0, "abyssinian"]]}, r"leads out of"),
    "twice": (
        {"val": [["beagle_train_0.jpg", 1, "beagle"]]},
        r"'beagle_train_0.jpg' stands in train and again in val",
    ),
    "no image": ({"test": [["gone.jpg", 0, "abyssinian"]]}, r"names .*gone.jpg"),
    "no list": ({"val": 3}, r"not an object of train, val and test"),
    "a word": ({"val": [["a.jpg", "0", "abyssinian"]]}, r"is no number"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_split_files_are_refused_in_a_sentence(what, tmp_path):
    changes, message = BAD[what]
    pets(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        shots(tmp_path)


def test_a_missing_split_file_is_named_with_its_place(tmp_path):
    pets(tmp_path)
    (tmp_path / "oxford_pets" / "split_zhou_OxfordPets.json").unlink()
    with pytest.raises(InputError, match=r"lacks its split file .*oxford_pets.split_"):
        shots(tmp_path)
    with pytest.raises(InputError, match=r"EuroSAT is not at .*eurosat"):
        shots(tmp_path, "EuroSAT")


def manifest_rows(root, domains=("a", "b")):
    rows = []
    for domain in domains:
        for name in ("cat", "dog"):
            for split in ("train", "val", "test"):
                path = f"{domain}/{name}/{split}.png"
                picture(root / path)
                facts = {"path": path, "class": name, "split": split}
                rows.append(facts | {"domain": domain})
    return rows


def test_a_manifest_is_a_dataset_of_both_tasks(tmp_path):
    rows = manifest_rows(tmp_path)
    file = tmp_path / "list.json"
    file.write_text(json.dumps(rows))
    name = f"Manifest:{file}"
    few = shots(tmp_path, name, shots=1)
    assert few.n_train == 2 and len(few[1]) == 4
    general = datasets.get_dataset_class(name)(None, [0], CLIP)
    assert general.ENVIRONMENTS == ("a", "b") and len(general[1]) == 6
    text = "path,class,split\n" + "".join(
        f"{r['path']},{r['class']},{r['split']}\n" for r in rows
    )
    plain = tmp_path / "list.csv"
    plain.write_text(text)
    assert shots(tmp_path, f"Manifest:{plain}").num_classes == 2
    tasks = datasets.get_dataset_class(f"Manifest:{plain}").TASKS
    assert tasks == ("few_shot",)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ending", ["csv", "json"])
def test_a_manifest_as_windows_saves_it(encoding, ending, tmp_path):
    row = {"path": "ä.png", "class": "cat", "split": "test"}
    table = "\r\n".join([",".join(row), ",".join(row.values()), ""])
    text = {"csv": table, "json": json.dumps([row], ensure_ascii=False)}[ending]
    file = tmp_path / f"list.{ending}"
    file.write_bytes(text.encode(encoding))
    assert (row,) == datasets.get_dataset_class(f"Manifest:{file}").ROWS


@pytest.mark.parametrize("text, message", [
    ("path,class\na.png,cat\n", "a row without split"),
    ("path,class,split\na.png,cat,exam\n", "Unknown split in .*'exam'"),
    ("path,class,split\n../a.png,cat,test\n", "leads out of"),
    ("path,class,split\n", "lists no image"),
    ("path,class,split\na,x,test\n./a,y,train\n", "lists 1 pictures twice, as a,"),
    ("path,class,split\na,cat,test\nb,Cat,test\n", "the class 'Cat' and 'cat'; spell"),
    ("path,class,split,domain\na,x,test,\nb,y,test,d\n", "says the domain of some"),
])  # fmt: skip
def test_bad_manifests(text, message, tmp_path):
    file = tmp_path / "list.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        datasets.get_dataset_class(f"Manifest:{file}")
    with pytest.raises(InputError, match=r"cannot read .*/none.csv: No such file"):
        datasets.get_dataset_class(f"Manifest:{tmp_path / 'none.csv'}")


def test_a_manifest_needs_two_classes_whose_names_may_be_numbers(tmp_path):
    file = tmp_path / "list.json"
    row = {"path": 1, "split": "test"}
    rows = [row | {"class": 3, "domain": 1}, row | {"path": 2, "class": 4, "domain": 2}]
    file.write_text(json.dumps(rows))
    dataset = datasets.get_dataset_class(f"Manifest:{file}")(None, [0], CLIP)
    assert dataset.class_names == ["3", "4"] and dataset.ENVIRONMENTS == ("1", "2")
    file.write_text(json.dumps([rows[0], rows[1] | {"class": 3}]))
    with pytest.raises(InputError, match="one class, '3'; it needs two"):
        datasets.get_dataset_class(f"Manifest:{file}")(None, [0], CLIP)


def test_a_manifest_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "list.csv").write_text("path,class,split\na.png,cat,test\n")
    assert datasets.get_dataset_class("Manifest:~/list.csv").FILE.parent == tmp_path


def test_datasets_say_which_tasks_they_are_for():
    few = datasets.of_task("few_shot")
    assert {"OxfordPets", "ImageNetR", "EmojiDG", "EmojiHouses"} <= {*few}
    assert "OxfordPets" not in datasets.DATASETS and "EmojiDG" in datasets.DATASETS
    templates = {datasets.get_dataset_class(name).TEMPLATE for name in few}
    assert all(template.count("{name}") == 1 for template in templates)
