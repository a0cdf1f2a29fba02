"""What the README tells people to type works."""

import re
from pathlib import Path

import pytest

from domainbed import algorithms
from domainbed.scripts import sweep, train

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.filterwarnings("ignore:no class names")
def test_the_example_algorithm_trains(tmp_path, monkeypatch):
    code = re.search(r"```python\n(\"\"\"Zero-shot CLIP with.*?)```", README, re.S)[1]
    assert len(code.splitlines()) <= 25
    registry = algorithms.REGISTRY
    algorithms.REGISTRY.load()
    monkeypatch.setattr(registry, "names", list(registry.names))
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    exec(compile(code, "README.md", "exec"), {"__name__": "example"})
    assert registry.names[-1] == "BiasedCLIP"
    what = ["--algorithm", "BiasedCLIP", "--dataset", "Debug28", "--steps", "3"]
    hparams = ["--hparams", '{"sharpness": 0.5}']
    train.main([*what, *hparams, "--output_dir", str(tmp_path)])
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.txt")), ids=str)
def test_every_sweep_file_can_be_launched(path, tmp_path, capsys):
    where = ["--output_dir", str(tmp_path), "--data_dir", "data"]
    how = ["--command_launcher", "dummy", "--skip_confirmation"]
    sweep.main(["launch", f"@{path}", *where, *how])
    launched = re.search(r"Launched (\d+) jobs!", capsys.readouterr().out)
    assert int(launched[1]) > 0
    assert path.read_text().startswith("# Question:")


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
