"""Every command on a page is run, in small, or the reason why not stands here."""

import argparse
import copy
import importlib
import importlib.util
import itertools
import re
import shlex
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from helpers import make_image_folder, pets

from domainbed import algorithms, command_launchers, datasets
from domainbed.backbones import clip
from domainbed.runs import provenance
from domainbed.scripts import sweep, train

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Why a command is not run; of ours the parser reads it all the same, of others the
# names are looked up. What is in none of these patterns is run.
NOT_RUN = {
    r"make ": "make test is what runs this, make demo takes a minute",
    r"pip ": "it needs the network",
    r"for |done": "a loop of the shell; the command in it is run",
    r"tensorboard ": "it is a server",
    r".*\.recommend ": "it takes minutes; tests/scripts/test_recommend.py is quick",
    r".*\.download ": "it needs the network; tests/download serves what it asks for",
    r".*_launcher (slurm|ray) ": "it needs a cluster; tests/launchers has small ones",
    r".*\.efficiency": "it starts processes; tests/tables/test_efficiency.py measures",
    r"python -m domainbed$": "tests/scripts/test_list.py starts it as a process",
    r"python -m tools.torture": "it takes an hour; tests/test_torture.py is short",
    r"import torch\nfrom domainbed.training": "its images are of ViT-B/16's size",
}
# What makes a command small: flags in addition, of which the last of a kind counts.
FEW = ["--n_trials", "1", "--n_hparams", "1", "--steps", "1", "--skip_confirmation"]
TWO = ["--algorithms", "LFA", "GDA"]
SMALLER = {
    r".*\.train ": ["--steps", "1"],
    r".*\.train_autolr ": ["--steps", "2", "--dataset", "Debug28"],
    r".*\.sweep ": ["--datasets", "EmojiDG", *TWO, *FEW],
    r".* few_shot ": ["--shots", "2"],
    r".* @few_shot_emoji ": ["--datasets", "EmojiHouses", "--shots", "1"],
    r".* @sweeps/lfa_paper.txt ": ["--datasets", "PACS"],
    r".*\.compare ": [*TWO, "--resamples", "100"],
    r".*\.list algorithms$": ["LFA"],
}
# Of what the pages' commands leave, that by which one sees that they did their work.
MADE = {
    "README.md": ["out/done", "report.html", "out/explain/explain.html"],
    "board.md": ["docs/board.csv"],
    "features.md": ["emoji.npz", "out/done", "mine/done"],
    "few-shot.md": ["out/done"],
    "protocols.md": ["da/done", "few/done"],
    "trust.md": ["report.html"],
    "using.md": ["out/done", "report.html", "CHECKOUT/domainbed/algorithms_lfa.py"],
}
# What a page makes before it is named, and a place for a name.
THEIR_OWN = {"BiasedCLIP", "Features:emoji.npz", "Features:mine.npz", "D"}
PACS = ["art_painting", "cartoon", "photo", "sketch"]
CODE = re.compile(r"^```(\w*)\n(.*?)^```|((?:^    [^\n]*\n)+)|`([^`]+)`", re.S | re.M)
PROGRAMS = ("python ", "pip ", "make ", "tensorboard ", "wget ", "for ", "done")


def commands(page: Path) -> list[str]:
    """In the page's order its blocks of Python, and every command: a line of another
    block, which may have no fence, or what stands between backticks in a sentence.
    """
    found = []
    for language, fenced, indented, inline in CODE.findall(page.read_text()):
        if language == "python":
            found.append(fenced)
            continue
        lines = (fenced or indented).replace("\\\n", " ").split("\n")
        lines = [line.split("  #")[0] for line in lines] + [inline]
        lines = [" ".join(line.split()) for line in lines]
        found += [line for line in lines if line.startswith(PROGRAMS)]
    return [*dict.fromkeys(found)]


COMMANDS = [(page, command) for page in PAGES for command in commands(page)]


def reasons(command: str) -> list[str]:
    return [why for pattern, why in NOT_RUN.items() if re.match(pattern, command)]


def run(command: str) -> None:
    """Run what a page has, small."""
    if not command.startswith("python "):
        exec(compile(command, "a page", "exec"), {"__name__": "page"})
        return
    command = command.replace("$file", "zoo_features_clip")  # the last of a loop
    more = [flags for pattern, flags in SMALLER.items() if re.match(pattern, command)]
    _, _, module, *words = [*shlex.split(command), *itertools.chain(*more)]
    importlib.import_module(module).main(words)


def test_every_command_is_run_or_has_one_reason_why_not():
    """Those without a reason are run below; a reason that is nobody's is none."""
    for page, command in COMMANDS:
        assert len(reasons(command)) <= 1, (page.name, command)
    for pattern in NOT_RUN:
        assert any(re.match(pattern, command) for _, command in COMMANDS), pattern


@pytest.mark.parametrize(
    "kind, module", [("algorithm", algorithms), ("dataset", datasets)]
)
def test_commands_name_what_there_is(kind, module):
    """Those that make a command small stand in the place of such names."""
    named = re.compile(rf"--{kind}s?((?: \w[^ ]*)+)")
    names = {
        name
        for _, c in COMMANDS
        for found in named.findall(c)
        for name in found.split()
    }
    assert len(names) > 3
    for name in names - THEIR_OWN:
        assert getattr(module, f"get_{kind}_class")(name)


@pytest.fixture
def parsed(monkeypatch):
    """What the parser of a script makes of words; nothing else of it is run."""
    parse_args = argparse.ArgumentParser.parse_args

    class Parsed(Exception):
        pass

    def parse_and_end(parser, words=None, namespace=None):
        args = parse_args(parser, words, namespace)
        if parser.prog == "sweep" or parser.usage:  # not one that is a parent
            raise Parsed(args)
        return args

    def of(module, words):
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_end)
        with pytest.raises(Parsed) as ended:
            importlib.import_module(module).main(words)
        return ended.value.args[0]

    return of


@pytest.mark.parametrize(
    "command",
    sorted({c for _, c in COMMANDS if reasons(c)}),
    ids=lambda text: text[-60:],
)
def test_what_is_not_run_names_what_there_is(command, parsed, monkeypatch):
    monkeypatch.chdir(ROOT)
    program, *words = shlex.split(command)
    if program == "make":
        targets = re.findall(r"^(\w+):", Path("Makefile").read_text(), re.M)
        assert {*words} <= {*targets}
    elif program == "pip" and "[" in command:
        extras = re.findall(r"^    \"(\w+)\": ", Path("setup.py").read_text(), re.M)
        asked = re.search(r"\[(.*)\]", command)[1].split(",")
        assert {*asked} <= {*extras, "all", "test"}
    elif program == "python":
        assert importlib.util.find_spec(words[1])
        if words[1].startswith("domainbed.") and words[2:]:
            assert parsed(words[1], words[2:])


@pytest.fixture(scope="module")
def small():
    """What runs need that are not to take long: `pool` runs them here, OpenAI's weights
    are the CLIP that ships, the code is of a clean commit.
    """

    def pool(lines):
        for line in lines:
            train.main(shlex.split(line)[3:])
        return [0] * len(lines)

    model = clip.from_file(clip.EMOJI_CLIP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(command_launchers.REGISTRY, "pool", pool)
        patch.setattr(clip, "from_openai", lambda name: copy.deepcopy(model))
        patch.setattr(provenance, "git_state", lambda: "a" * 40)
        yield
    clip.read_clip.cache_clear()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A few pictures of each dataset that the pages name, and their features."""
    folder, taken = tmp_path_factory.mktemp("data"), Counter()
    with zipfile.ZipFile(datasets.get_dataset_class("EmojiDG").ARCHIVE) as archive:
        for name in archive.namelist():
            of = name.rpartition("/")[0]
            taken[of] += 1
            if of and taken[of] <= 2:
                archive.extract(name, folder / "emoji_dg")
    make_image_folder(folder / "PACS", PACS, ["dog", "house"])
    pets(folder)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data, small):
    """The folder of a sweep that has ended."""
    folder = str(tmp_path_factory.mktemp("finished"))
    what = ["launch", "--single_test_envs", "--datasets", "EmojiDG", "PACS", *TWO, *FEW]
    where = ["--data_dir", str(data), "--output_dir", folder]
    sweep.main([*what, *where, "--command_launcher", "pool"])
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch, data, finished):
    """A folder in which what the pages write in capitals is there."""
    monkeypatch.chdir(tmp_path)
    for name in ("data", "DATA", "DATA_DIR"):
        Path(name).symlink_to(data)
    Path("OUT").symlink_to(finished)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tests" / "fork", "CHECKOUT", ignore=ignored)
    shutil.copytree(ROOT / "sweeps", "sweeps")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_work(page, place, own_registries):
    for command in commands(page):
        if not reasons(command):
            print(command)  # which one it was
            run(command)
    for name in MADE.get(page.name, ()):
        assert Path(name).exists(), name
