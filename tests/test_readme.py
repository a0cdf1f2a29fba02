"""What the pages say of the code is so; test_page_commands.py types what they tell."""

import functools
import re
from pathlib import Path

import pytest
from helpers import make_image_folder

from domainbed import algorithms, datasets
from domainbed.scripts import list as listing
from domainbed.scripts import sweep, train

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@functools.cache
def example(page: str, title: str) -> str:
    """The block of Python on that page that begins with that docstring."""
    text = (ROOT / "docs" / page).read_text()
    return re.search(rf"```python\n(\"\"\"{title}.*?)```", text, re.S)[1]


def run(title: str) -> None:
    code = compile(example("add-your-own.md", title), title, "exec")
    exec(code, {"__name__": "x"})


@pytest.mark.filterwarnings("ignore:no class names")
@pytest.mark.parametrize(
    "title, name, hparams",
    [
        ("Zero-shot CLIP with", "BiasedCLIP", '{"sharpness": 0.5}'),
        ("LFA without", "ShorterLFA", "{}"),
    ],
)
def test_the_example_algorithms_train(title, name, hparams, tmp_path, own_registries):
    assert len(example("add-your-own.md", title).splitlines()) <= 25
    run(title)
    assert algorithms.REGISTRY.names[-1] == name
    what = ["--algorithm", name, "--dataset", "Debug28", "--steps", "3"]
    where = ["--hparams", hparams, "--output_dir", str(tmp_path)]
    train.main([*what, *where])
    assert (tmp_path / "done").exists()


def test_the_example_dataset_is_one(tmp_path, own_registries):
    run("Birds, photographed")
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
