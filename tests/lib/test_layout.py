"""What a dataset's folders must look like, and what is said of those that do not."""

import itertools
import shutil

import pytest
from helpers import make_image_folder

from domainbed import datasets
from domainbed.features.entries import digest_files
from domainbed.lib.errors import InputError

PLAIN = {"data_augmentation": False}


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
        ("class", "environment 'sketch' .* has no picture of the class 'house'"),
        ("extra class", "environment 'art_painting' .* the class 'horse'"),
        ("all", "PACS is not at .*/PACS; give the folder that holds PACS/"),
    ],
)
def test_a_wrong_folder_is_described(pacs, how, says):
    break_folder(pacs, how)
    with pytest.raises(InputError, match=says):
        datasets.PACS(str(pacs), [0], PLAIN)


def test_missing_classes_can_be_allowed(pacs):
    break_folder(pacs, "class")
    allowed = PLAIN | {"allow_missing_classes": True}
    dataset = datasets.PACS(str(pacs), [0], allowed)
    assert dataset.class_names == ["dog", "house"]
    assert [len(environment) for environment in dataset] == [10, 10, 10, 5]
    assert dataset[3].targets == [0] * 5


def shape(root, *levels):
    """A folder of pictures below each combination of names, one level after another."""
    for names in itertools.product(*levels):
        make_image_folder(root.joinpath(*names[:-2]), [names[-2]], [names[-1]], n=2)
    return datasets.get_dataset_class(f"ImageFolder:{root}")


AB, XY = ["a", "b"], ["x", "y"]


@pytest.mark.parametrize(
    "levels, says",
    [
        ([AB, ["train", "val"], XY], r"parts of a dataset, 'train', 'val'; .*up one"),
        ([AB, ["Full"], XY], "parts of a dataset, 'Full'"),
        ([AB, ["x"]], "at least two classes; it has 'x'"),
        (
            [AB, ["images"], XY],
            r"a dataset, 'images'; its first picture is .*a/images/x",
        ),
        ([AB, ["fold1", "fold_2"], XY], "parts of a dataset, 'fold1', 'fold_2'"),
        ([AB, ["train_split", "test2017"], XY], "parts of a dataset, 'test2017', 'tra"),
        ([AB, ["labels", "Images"], XY], "parts of a dataset, 'Images', 'labels'"),
    ],
)
def test_a_level_too_many_or_a_class_too_few_is_refused(levels, says, tmp_path):
    with pytest.raises(InputError, match=says):
        shape(tmp_path, *levels)(None, [0], PLAIN)


def test_parts_of_a_dataset_are_no_classes_to_deal_into_folds(tmp_path):
    shape(tmp_path, ["Train", "test"], XY)
    with pytest.raises(InputError, match="parts of a dataset, Train, test; name one"):
        datasets.get_dataset_class(f"Folds:{tmp_path}")
    assert datasets.get_dataset_class(f"Folds:{tmp_path / 'test'}").PATH.name == "test"


def test_a_deeper_level_is_said(tmp_path, capsys):
    cls = shape(tmp_path, AB, ["animals", "plants"], XY)
    assert cls(None, [0], PLAIN).class_names == ["animals", "plants"]
    assert "all lie deeper, as " in capsys.readouterr().err


@pytest.mark.parametrize("allowed", [False, True])
def test_an_environment_needs_pictures(allowed, tmp_path):
    cls = shape(tmp_path, AB, XY)
    for picture in (tmp_path / "b").rglob("*.png"):
        picture.rename(picture.with_suffix(".gif"))
    hparams = PLAIN | {"allow_missing_classes": allowed}
    with pytest.raises(InputError, match=r"'b' .* holds no pictures but 4 \.gif"):
        cls(None, [0], hparams)


def test_an_empty_class_is_a_missing_one(tmp_path):
    cls = shape(tmp_path, AB, XY)
    for picture in (tmp_path / "b" / "y").iterdir():
        picture.unlink()
    with pytest.raises(InputError, match=r"'b' .* no picture of the class 'y'"):
        cls(None, [0], PLAIN)
    assert len(cls(None, [0], PLAIN | {"allow_missing_classes": True})[1]) == 2


def test_a_class_that_is_empty_everywhere_is_not_said_to_be_elsewhere(tmp_path):
    cls = shape(tmp_path, AB, XY)
    for name in AB:
        (tmp_path / name / "z").mkdir()
    with pytest.raises(InputError, match="of the class 'z', which no environment has;"):
        cls(None, [0], PLAIN)


@pytest.mark.parametrize("other", ["Polar bear", "polar_bear", "polar bear "])
def test_a_class_that_another_domain_spells_otherwise_is_named(other, tmp_path):
    cls = shape(tmp_path, AB, ["polar bear", "x"])
    (tmp_path / "b" / "polar bear").rename(tmp_path / "b" / other)
    with pytest.raises(
        InputError, match=r"has '[Pp]olar.bear ?', which is perhaps the"
    ):
        cls(None, [0], PLAIN)


def test_a_domain_has_one_folder_of_a_class(tmp_path):
    """The second was left out without a word."""
    cls = shape(tmp_path, AB, ["caf\u00e9", "x"])
    make_image_folder(tmp_path, ["b"], ["cafe\u0301"], n=2)
    with pytest.raises(InputError, match="/b has two folders of the class 'caf\u00e9'"):
        cls(None, [0], PLAIN)


def test_domains_that_are_parts_are_said(tmp_path, capsys):
    shape(tmp_path, ["test", "train", "val"], XY)(None, [0], PLAIN)
    assert "holds test, train, val, parts of a dataset" in capsys.readouterr().err


def test_pictures_that_are_there_twice_by_links_are_said(tmp_path, capsys):
    """One that is linked from another domain is in training and in the test."""
    cls = shape(tmp_path / "set", AB, XY)
    (tmp_path / "set/a/x/l.png").symlink_to("../../b/x/0.png")
    cls(None, [0], PLAIN)
    said = capsys.readouterr().err
    assert "1 pictures are links to others" in said and "a/x/l.png: they" in said
    (tmp_path / "set/a/x/l.png").unlink()
    (tmp_path / "set/b/x/0.png").rename(tmp_path / "away.png")
    for name in ("a/x/l.png", "b/x/0.png"):  # the first of two is none too many
        assert "twice" not in capsys.readouterr().err
        (tmp_path / "set" / name).symlink_to(tmp_path / "away.png")
        cls(None, [0], PLAIN)
    assert "1 pictures are links to others" in capsys.readouterr().err


def test_links_to_one_folder_are_not_two_domains(tmp_path):
    shape(tmp_path, AB, XY)
    (tmp_path / "c").symlink_to("a")
    cls = datasets.get_dataset_class(f"ImageFolder:{tmp_path}")
    with pytest.raises(InputError, match=r"a, c in .* are links to one folder"):
        cls(None, [0], PLAIN)


def test_a_class_is_not_another_domains_by_a_link(tmp_path):
    shape(tmp_path, AB, XY)
    (tmp_path / "a" / "z").mkdir()
    (tmp_path / "b" / "z").symlink_to(tmp_path / "a" / "y")
    cls = datasets.get_dataset_class(f"ImageFolder:{tmp_path}")
    with pytest.raises(InputError, match=r"a/y, b/z in .* are links to one folder"):
        cls(None, [0], PLAIN)


def test_pictures_that_imagefolder_leaves_out_are_counted(tmp_path, capsys):
    cls = shape(tmp_path, AB, XY)
    cls(None, [0], PLAIN)
    assert capsys.readouterr().err == ""
    for name in ("a/x/2.gif", "a/x/3.GIF", "b/y/deep/4.jfif", "b/y/._5.gif", "b/n.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert sum(map(len, cls(None, [0], PLAIN))) == 8
    assert "are left out: 2 .gif, 1 .jfif; names" in capsys.readouterr().err


def test_domains_of_other_names_are_taken_in_order_which_is_said(tmp_path, capsys):
    make_image_folder(tmp_path / "VLCS", ["1", "2", "3", "4"], ["bird", "Car"], n=2)
    datasets.VLCS(str(tmp_path), [0], PLAIN)
    said = capsys.readouterr().err
    assert "1, 2, 3, 4 are taken for C, L, S, V, in that order" in said
    for old, new in zip("1234", ["SUN", "Caltech", "PASCAL", "LabelMe"], strict=True):
        (tmp_path / "VLCS" / old).rename(tmp_path / "VLCS" / new)
    datasets.VLCS(str(tmp_path), [0], PLAIN)
    assert "in that order" not in capsys.readouterr().err


def test_all_broken_pictures_are_named_at_once(tmp_path):
    dataset = shape(tmp_path, AB, XY)(None, [0], PLAIN)
    (tmp_path / "a" / "x" / "0.png").write_bytes(b"")
    (tmp_path / "b" / "y" / "1.png").write_text("<html>")
    with pytest.raises(InputError, match=r"a/x/0.png.* 1 more .*b/y/1.png; replace"):
        dataset[0][0]


@pytest.mark.parametrize("strict", [False, True])
def test_all_links_to_nowhere_are_named_at_once(strict, tmp_path):
    dataset = shape(tmp_path, AB, XY)(None, [0], PLAIN)
    for name in ("a/x/0.png", "b/y/1.png"):
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to("nowhere")
    with pytest.raises(InputError, match=r"a/x/0.png: No .* 1 more .*b/y/1.png; rep"):
        digest_files(dataset[0], strict)


def test_one_spelling_of_a_class_is_one_class(tmp_path):
    """As macOS and others write it."""
    cls = shape(tmp_path, ["a"], ["caf\u00e9", "x"])
    cls = shape(tmp_path, ["b"], ["cafe\u0301", "x"])
    dataset = cls(None, [0], PLAIN)
    assert dataset.num_classes == 2
    assert [len(environment) for environment in dataset] == [4, 4]


def test_domains_stand_where_their_names_say(tmp_path):
    """Another copy of VLCS sorts otherwise."""
    folders = ["CALTECH", "LABELME", "PASCAL", "SUN"]
    make_image_folder(tmp_path / "VLCS", folders, ["bird", "car"], n=1)
    dataset = datasets.VLCS(str(tmp_path), [2], PLAIN)
    names = [dataset.environment_name(i) for i in range(4)]
    assert names == ["CALTECH", "LABELME", "SUN", "PASCAL"]
    (tmp_path / "VLCS" / "SUN").rename(tmp_path / "VLCS" / "VOC2007")
    with pytest.raises(InputError, match=r"PASCAL \(V\), VOC2007 \(V\). Rename"):
        datasets.VLCS(str(tmp_path), [2], PLAIN)


@pytest.mark.parametrize(
    "name, some",
    [
        ("VLCS", ["bird", "person"]),
        ("PACS", ["guitar", "Person"]),
        ("OfficeHome", ["Alarm Clock", "Trash-Can"]),
        ("TerraIncognita", ["empty", "bobcat"]),
        ("DomainNet", ["The_Mona_Lisa", "t-shirt"]),
    ],
)
def test_known_classes_are_looked_for(name, some, tmp_path, capsys):
    """None of them is another level; some others are said."""
    cls = datasets.get_dataset_class(name)
    for folder, classes in (("other", ["left", "right"]), ("mixed", [*some, "labels"])):
        make_image_folder(tmp_path / folder / cls.FOLDER, cls.ENVIRONMENTS, classes, 1)
    with pytest.raises(
        InputError, match=r"with the classes .*; it has 'left', 'right'"
    ):
        cls(str(tmp_path / "other"), [2], PLAIN)
    cls(str(tmp_path / "mixed"), [2], PLAIN)
    said = capsys.readouterr().err
    assert "has the classes labels, which are none of the dataset's: " in said
