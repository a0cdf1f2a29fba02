"""A recommendation's runs: what they are of, in which order, and when they stop."""

import argparse
import shutil

import pytest
from helpers import make_image_folder

from domainbed import command_launchers, datasets
from domainbed.datasets_folds import FOLDS
from domainbed.lib.errors import InputError
from domainbed.recommend import trials as own
from domainbed.recommend.trials import Budget, Trials, dataset_in

CLASSES = ["cat", "dog"]


def test_a_budget_is_a_time():
    seconds = [Budget(text).seconds for text in ("90s", "10m", "1.5h")]
    assert seconds == [90, 600, 5400]
    for text in ("10", "m", "0m", "-1m", "ten minutes", "1d"):
        with pytest.raises(InputError, match=r"--budget is .*90s, 10m or 1h"):
            Budget(text)


def test_the_folder_is_of_domains_or_of_classes(tmp_path):
    domains = make_image_folder(tmp_path / "domains", ["a", "b"], CLASSES)
    assert dataset_in(domains) == f"ImageFolder:{domains}"
    assert dataset_in(domains / "a") == f"Folds:{domains / 'a'}"
    link = tmp_path / "link"
    link.symlink_to(domains)
    assert dataset_in(link) == f"ImageFolder:{domains}"


def test_other_folders_are_refused_with_what_they_hold(tmp_path):
    domains = make_image_folder(tmp_path / "domains", ["a"], CLASSES)
    cases = {
        tmp_path / "nothing": "is no folder",
        domains / "a" / "cat": r"holds only .*0\.png and the like",
        domains: r"a single domain.*--data \S+/domains/a leaves out folds",
    }
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    cases[tmp_path / "empty"] = "holds no pictures; it should hold DOMAIN/CLASS/PICTURE"
    make_image_folder(tmp_path / "mixed", ["a"], CLASSES)
    make_image_folder(tmp_path / "mixed", ["."], ["b"])
    cases[tmp_path / "mixed"] = r"both CLASS/PICTURE, .*b/0\.png, and .*a/cat/0\.png"
    for folder, says in cases.items():
        with pytest.raises(InputError, match=says):
            dataset_in(folder)


def test_folds_deal_out_every_class(tmp_path):
    folder = make_image_folder(tmp_path, ["."], CLASSES, n=12)
    dataset = datasets.get_dataset_class(f"Folds:{folder}")(
        None, [0], {"data_augmentation": False}
    )
    assert len(dataset) == FOLDS == len(dataset.ENVIRONMENTS)
    assert [len(fold) for fold in dataset] == [6, 6, 4, 4, 4]
    items = [item for fold in dataset for item in fold.items]
    assert len({path for path, _ in items}) == len(items) == 24
    for fold in dataset:
        for path, label in fold.items:
            assert path.startswith(CLASSES[label])
        assert fold.targets.count(0) == fold.targets.count(1)
    few = make_image_folder(tmp_path / "few", ["."], CLASSES, n=4)
    with pytest.raises(InputError, match=r"cat holds 4 pictures; .* at least 5"):
        datasets.get_dataset_class(f"Folds:{few}")(None, [0], {})
    with pytest.raises(InputError, match="at least two classes; it has cat"):
        make_image_folder(tmp_path / "one", ["."], ["cat"], n=6)
        datasets.get_dataset_class(f"Folds:{tmp_path / 'one'}")


@pytest.fixture
def clock(monkeypatch):
    """The time, which passes only when a test says so."""
    now = [0.0]
    monkeypatch.setattr(own.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def trials(tmp_path, monkeypatch, clock):
    """Of three domains; a run takes the seconds that COSTS has and leaves `done`."""
    ran = []

    def launch(commands):
        for command in commands:
            words = command.split()
            algorithm = words[words.index("--algorithm") + 1]
            ran.append(algorithm)
            clock[0] += own.COSTS[algorithm]
            folder = own.Path(words[words.index("--output_dir") + 1])
            (folder / "done").touch()
        return [0] * len(commands)

    monkeypatch.setattr(command_launchers, "get_launcher", lambda *_, **__: launch)
    seconds = {"ZeroShotCLIP": 1, "GDA": 1, "CLAP": 2, "LFA": 5, "Head2Toe": 7}
    monkeypatch.setattr(own, "COSTS", seconds | {"CoOp": 22})
    folder = make_image_folder(tmp_path / "data", ["a", "b", "c"], CLASSES)

    def make(budget):
        args = {"data": str(folder), "output_dir": str(tmp_path / "out"), "jobs": None}
        args |= {"clip_backbone": "emoji", "allow_missing_classes": False}
        made = Trials(argparse.Namespace(budget=budget, **args))
        made.storing, made.ran = 0.0, ran
        return made

    return make


def test_rounds_are_of_all_methods_or_of_none(trials):
    names = ["ZeroShotCLIP", "GDA", "LFA"]
    hour = trials("1h")
    assert hour.first_round(names) == (names, {})
    assert hour.ran == [name for name in names for _ in range(3)]
    assert hour.budget.spent == 3 * (1 + 1 + 5)
    assert hour.further_rounds(names) == len(own.ROUNDS) == 4
    assert hour.budget.spent == 3 * (1 + 1 + 5) * (1 + 2 + 3 + 3)
    again = trials("1s")
    del hour.ran[:]
    assert again.first_round(names) == (names, {})
    assert again.further_rounds(names) == 4  # all of it is there
    assert not again.ran


def test_what_does_not_fit_the_budget_is_not_begun(trials):
    names = ["ZeroShotCLIP", "GDA", "LFA", "CoOp"]
    minute = trials("60s")
    measured, left_out = minute.first_round(names)
    assert measured == names[:3]
    assert left_out == {"CoOp": own.TIME}  # 66 s more
    assert minute.further_rounds(measured) == 1  # 42 s more, and 39 are left
    assert minute.budget.spent == 21
    more = trials("45s")  # with nothing measured yet, a round is tried
    assert more.further_rounds(measured) == 2
    assert trials("0.1s").first_round(["CLAP"]) == (["CLAP"], {})


def test_a_round_that_takes_longer_than_thought_ends_with_the_budget(trials, clock):
    """Its runs are kept, for the same command with a larger budget."""
    names = ["ZeroShotCLIP", "GDA", "LFA"]
    minute = trials("100s")
    assert minute.first_round(names) == (names, {})
    launch = minute.launcher

    def slower(commands):
        """GDA's second run there takes as long as there is time."""
        if "--algorithm GDA" not in commands[0]:
            return launch(commands)
        clock[0] = minute.budget.ends
        return launch(commands[:1]) + [None] * (len(commands) - 1)

    minute.launcher = slower
    assert minute.further_rounds(names) == 1
    assert minute.budget.left <= 0 < minute.budget.seconds - minute.budget.spent
    more = trials("1h")
    del more.ran[:]
    assert more.further_rounds(names) == 4
    assert more.ran.count("ZeroShotCLIP") == 3 * (3 + 3)  # two draws were there
    assert more.ran.count("GDA") == 3 * (2 + 3 + 3) - 1
    late = trials("100s")
    late.launcher = lambda commands: clock.__setitem__(0, late.budget.ends)
    assert late.first_round(["CLAP", "CoOp"]) == (
        [],
        {"CLAP": own.TIME, "CoOp": own.TIME},
    )


def test_no_draw_of_head2toe_takes_minutes(trials):
    hour = trials("1h")
    given = {
        name: {
            job.train_args["hparams"] for n in range(4) for job in hour.jobs(name, n)
        }
        for name in ("Head2Toe", "LFA")
    }
    assert given["LFA"] == {'{"clip_backbone": "emoji"}'}
    assert given["Head2Toe"] == {'{"clip_backbone": "emoji", "h2t_target": 0}'}
    assert "h2t_target" in hour.hparams("Head2Toe")


def test_a_method_that_fails_is_left_out_with_its_reason(trials, monkeypatch):
    hour = trials("1h")
    launch = hour.launcher

    def failing(commands):
        if "--algorithm GDA" not in commands[0]:
            return launch(commands)
        for command in commands:
            folder = own.Path(
                command.split()[command.split().index("--output_dir") + 1]
            )
            (folder / "err.txt").write_text("error: singular\n")
        return [1] * len(commands)

    hour.launcher = failing
    measured, left_out = hour.first_round(["ZeroShotCLIP", "GDA", "LFA"])
    assert measured == ["ZeroShotCLIP", "LFA"]
    assert left_out.keys() == {"GDA"} and "singular" in left_out["GDA"]
    hour.launcher = lambda commands: [0] * len(commands)  # another process is at it
    assert hour.first_round(["CLAP"])[1] == {
        "CLAP": "ended without a word before its first checkpoint"
    }


def test_a_folder_of_other_pictures_is_refused(trials, tmp_path):
    trials("1h")
    trials("2h")
    (tmp_path / "data" / "a" / "cat" / "0.png").unlink()
    with pytest.raises(InputError, match="holds runs of another fingerprint"):
        trials("1h")
    (tmp_path / "out" / "recommend.json").write_text("{")
    with pytest.raises(InputError, match=r"cannot use --output_dir .*name another"):
        trials("1h")
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").touch()
    with pytest.raises(InputError, match=r"cannot use --output_dir .*name another"):
        trials("1h")


def test_head2toe_waits_for_its_own_features(trials):
    short = trials("105s")  # a third of what is left after GDA's 3 s is 32 s
    short.storing = 12.0  # beside 21 s of runs
    assert short.first_round(["GDA", "Head2Toe"]) == (["GDA"], {"Head2Toe": own.TIME})
    short.storing = 11.0
    assert short.first_round(["GDA", "Head2Toe"])[1] == {}


def test_the_rest_is_for_further_rounds_or_for_what_is_dear(trials, monkeypatch):
    names = ["GDA", "CoOp"]
    short = trials("75s")  # 68 are left: a third is too little for CoOp's 66
    assert short.first_round(names) == (["GDA"], {"CoOp": own.TIME})  # GDA has 6 more
    monkeypatch.setattr(own, "ROUNDS", ((0, (0,)), (0, tuple(range(1, 30)))))
    short = trials("75s")
    short.spent, short.cost = 3.0, 3.0
    assert short.first_round(names) == (names, {})  # of GDA 87 s more do not fit


def test_a_domain_too_small_to_hold_a_picture_out_is_refused(trials, tmp_path):
    for name in ("cat/0", "cat/1", "cat/2", "dog/0", "dog/1", "dog/2"):
        (tmp_path / "data" / "b" / f"{name}.png").unlink()
    with pytest.raises(InputError, match=r"b of \S+ has 4 pictures; .* at least 5"):
        trials("1h")
