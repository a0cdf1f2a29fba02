"""What the pages tell people to type works, and what they say of the code is so."""

import argparse
import functools
import importlib
import re
import shlex
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from helpers import make_image_folder

from domainbed import algorithms, command_launchers, datasets
from domainbed.scripts import list as listing
from domainbed.scripts import sweep, train

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
START = "python -m domainbed.scripts."
# Why no command of theirs is run by a test; all else that a page says to type is read
# by the script's own parser, and its names are looked up.
NOT_RUN = {
    "make": "it is what runs the tests; its targets are looked up",
    "pip": "it needs the network; the extras are looked up",
    "python": "a benchmark takes minutes; that the script is there is looked up",
    "tensorboard": "it is a server",
    "wget": "it needs the network",
}
# Algorithms and datasets that a page makes before it names them.
MADE_THERE = ("BiasedCLIP", "Features:", "ImageFolder:", "Manifest:", "Folds:")
# Run in full in this order, with these flags: so little that it takes seconds.
SMALLER = {
    "train": ["--steps", "1"],
    "sweep": ["--datasets", "EmojiDG", "--algorithms", "LFA", "Head2Toe"],
    "compare": ["--resamples", "100"],
}
SMALLER["sweep"] += ["--n_trials", "1", "--n_hparams", "1"]
SHELL = ("for", "do", "done")  # a loop around commands that are read


class Parsed(Exception):
    """What ends a script whose arguments are right before it begins."""

    def __init__(self, args):
        self.args_ = args


def commands(page: Path) -> list[str]:
    """Every command in a block of shell, of text in which `python -m` begins, or
    between backticks in a sentence.
    """
    text = page.read_text()
    blocks = re.findall(r"^```(?:sh|bash)?\n(.*?)^```", text, re.S | re.M)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    blocks += re.findall(r"(?:^    .*\n)+", prose, re.M)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [line.split("  #")[0].strip() for line in lines]
    found = [f for f in found if f.startswith(("python -m", *NOT_RUN, *SHELL))]
    inline = re.findall(r"`(python -m domainbed\.scripts\.[^`]*)`", prose)
    return [*found, *(" ".join(i.split()) for i in inline)]


COMMANDS = [(page.name, c) for page in PAGES for c in dict.fromkeys(commands(page))]
SCRIPTS = [(page, c) for page, c in COMMANDS if c.startswith(START)]


@pytest.fixture
def parsed(monkeypatch):
    """The arguments that the parser of a script makes of words."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_end(parser, words=None, namespace=None):
        args = parse_args(parser, words, namespace)
        if parser.prog == "sweep" or parser.usage:  # not one that is a parent
            raise Parsed(args)
        return args

    def of(name, words):
        main = importlib.import_module(f"domainbed.scripts.{name}").main
        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_end)
            with pytest.raises(Parsed) as ended:
                main(words)
        return ended.value.args_

    return of


@pytest.mark.parametrize("page, command", SCRIPTS, ids=lambda text: text[-60:])
def test_a_command_on_a_page_is_one(page, command, parsed, tmp_path, monkeypatch):
    """Its flags exist, and so do the algorithms and datasets that it names."""
    shutil.copytree(ROOT / "sweeps", tmp_path / "sweeps")
    monkeypatch.chdir(tmp_path)
    command = command.replace("$file", "zoo_features").replace(" ...", " LFA")
    name, *words = shlex.split(command.removeprefix(START))
    if not words:  # a script that is named, not called
        assert importlib.import_module(f"domainbed.scripts.{name}").main
        return
    if set(words) & {"--dataset"} and name == "efficiency":
        words = ["EmojiDG" if word == "D" else word for word in words]
    args = parsed(name, words)
    known = (("algorithm", algorithms), ("dataset", datasets))
    for kind, module in known:
        given = getattr(args, f"{kind}s", None) or getattr(args, kind, None) or []
        look_up = getattr(module, f"get_{kind}_class")
        for one in [given] if isinstance(given, str) else given:
            assert one.startswith(MADE_THERE) or look_up(one)


@pytest.fixture
def in_a_small_place(tmp_path, monkeypatch):
    """A folder with a few emoji of each class and house; jobs of `pool` run here."""
    monkeypatch.chdir(tmp_path)
    taken = Counter()
    with zipfile.ZipFile(datasets.get_dataset_class("EmojiDG").ARCHIVE) as archive:
        for name in archive.namelist():
            folder = name.rpartition("/")[0]
            taken[folder] += 1
            if folder and taken[folder] <= 4:
                archive.extract(name, "data/emoji_dg")

    def pool(commands):
        return [train.main(shlex.split(command)[3:]) for command in commands]

    monkeypatch.setitem(command_launchers.REGISTRY, "pool", pool)


def test_the_readmes_run_sweep_and_report(in_a_small_place, capsys):
    text = (ROOT / "README.md").read_text()
    block = re.search(r"## A run, a sweep.*?```sh\n(.*?)```", text, re.S)[1]
    names = []
    for line in block.replace("\\\n", " ").splitlines():
        name, *words = shlex.split(line.removeprefix(START))
        main = importlib.import_module(f"domainbed.scripts.{name}").main
        main([*words, *SMALLER.get(name, [])])
        names.append(name)
    assert names[:3] == ["train", "sweep", "collect_results"]
    printed = capsys.readouterr().out
    assert "Averages, model selection method: training-domain validation" in printed
    assert "LFA and Head2Toe" in printed
    assert Path("report.html").exists() and Path("out/explain/explain.html").exists()


def test_every_other_command_is_what_no_test_can_run():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    extras = re.findall(r"^    \"(\w+)\": ", (ROOT / "setup.py").read_text(), re.M)
    for page, command in COMMANDS:
        word, *rest = command.split()
        if command.startswith((START, "python -m domainbed")) or word in SHELL:
            continue
        assert word in NOT_RUN, (page, command)
        if word == "make":
            assert {*rest} <= {*targets}, (page, command)
        if word == "pip" and "[" in command:
            asked = re.search(r"\[(.*)\]", command)[1].split(",")
            assert {*asked} <= {*extras, "all", "test"}, (page, command)
        if word == "python":
            assert rest[0] == "-m" or (ROOT / rest[0]).exists(), (page, command)


@functools.cache
def example(page: str, title: str) -> str:
    """The block of Python on that page that begins with that docstring."""
    text = (ROOT / "docs" / page).read_text()
    return re.search(rf"```python\n(\"\"\"{title}.*?)```", text, re.S)[1]


@pytest.fixture
def registered(monkeypatch):
    """Run a page's code; what it registers is forgotten after the test."""
    for module in (algorithms, datasets):
        registry = module.REGISTRY
        registry.load()
        monkeypatch.setattr(registry, "names", list(registry.names))
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))

    def run(title):
        exec(
            compile(example("add-your-own.md", title), title, "exec"), {"__name__": "x"}
        )

    return run


@pytest.mark.filterwarnings("ignore:no class names")
@pytest.mark.parametrize(
    "title, name, hparams",
    [
        ("Zero-shot CLIP with", "BiasedCLIP", '{"sharpness": 0.5}'),
        ("LFA without", "ShorterLFA", "{}"),
    ],
)
def test_the_example_algorithms_train(title, name, hparams, tmp_path, registered):
    assert len(example("add-your-own.md", title).splitlines()) <= 25
    registered(title)
    assert algorithms.REGISTRY.names[-1] == name
    what = ["--algorithm", name, "--dataset", "Debug28", "--steps", "3"]
    where = ["--hparams", hparams, "--output_dir", str(tmp_path)]
    train.main([*what, *where])
    assert (tmp_path / "done").exists()


def test_the_example_dataset_is_one(tmp_path, registered):
    registered("Birds, photographed")
    names = ["photo", "drawing", "engraving"]
    make_image_folder(tmp_path / "birds", names, ["owl", "wren"], n=1)
    birds = datasets.get_dataset_class("Birds")
    dataset = birds(str(tmp_path), [], {"data_augmentation": False})
    assert [dataset.environment_name(i) for i in range(3)] == names


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.txt")), ids=str)
def test_every_sweep_file_can_be_launched(path, tmp_path, capsys):
    where = ["--output_dir", str(tmp_path), "--data_dir", "data"]
    how = ["--command_launcher", "dummy", "--skip_confirmation"]
    sweep.main(["launch", f"@{path}", *where, *how])
    launched = re.search(r"Launched (\d+) jobs!", capsys.readouterr().out)
    assert int(launched[1]) > 0
    assert path.read_text().startswith("# Question:")


def test_the_table_of_methods_is_that_of_the_registry(capsys):
    listing.main(["algorithms", "--format", "markdown"])
    table = capsys.readouterr().out
    assert table in (ROOT / "docs" / "methods.md").read_text()
    names = re.findall(r"^\| (\w+) \|", table, re.M)[1:]
    assert names == algorithms.ALGORITHMS


def test_the_readme_is_read_in_a_minute():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
