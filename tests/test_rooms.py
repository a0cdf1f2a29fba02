"""The house: nothing imports upwards, and every file is read in one sitting."""

import ast
import statistics
from pathlib import Path

import pytest

import domainbed

ROOT = Path(domainbed.__file__).parent
# From the ground up: a file may import from its own floor and from those below.
# lib knows of nothing; a run's parts are put together above what they are made of.
FLOORS = (
    ("lib",),
    ("backbones",),
    (
        "algorithms",
        "datasets",
        "hparams_registry",
        "names",
        "networks",
        "model_selection",
    ),
    ("features",),
    ("runs",),
    ("tasks", "inputs", "evaluation", "arguments", "flags", "training", "autolr"),
    ("launchers", "command_launchers"),
    ("tables",),
    ("report", "explain", "export", "download", "recommend"),
    ("scripts", "__main__"),
)
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def floor_of(name: str) -> int | None:
    """Of a module below domainbed; families count as what they extend."""
    room = name.split(".")[0]
    if room.startswith(("algorithms_", "datasets_")):
        room = room.split("_")[0]
    return next((i for i, rooms in enumerate(FLOORS) if room in rooms), None)


def imported(path: Path) -> set[str]:
    """The modules of this package that a file names, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    prefix = "domainbed."
    return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nothing_imports_upwards(path):
    if path == Path("__init__.py"):
        assert not imported(path)
        return
    own = floor_of(path.with_suffix("").as_posix().replace("/", "."))
    assert own is not None, f"{path} is on no floor; name its room in FLOORS"
    for name in imported(path):
        below = floor_of(name)
        assert below is None or below <= own, f"{path} imports {name}, which is above"


def test_the_reader_of_imports_sees_them(tmp_path, monkeypatch):
    source = "def f():\n    from domainbed.scripts import train\n"
    (tmp_path / "deep.py").write_text(source)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert imported(Path("deep.py")) == {"scripts.train"}
    assert floor_of("scripts.train") > floor_of("lib.misc")
    assert floor_of("algorithms_lfa.LFA") == floor_of("algorithms")


def test_every_file_is_read_in_one_sitting():
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in FILES}
    assert {path: n for path, n in lengths.items() if n > 500} == {}
    assert statistics.median(n for n in lengths.values() if n) <= 160
    assert lengths[Path("training.py")] < 300
