"""The package as a whole: imports, and what a broken environment is told."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import helpers
import pytest

ROOT = Path(__file__).parents[1]


def test_a_torchvision_that_does_not_fit_torch_is_explained(tmp_path):
    """A CPU-only torch beside the registry's torchvision fails as this one does."""
    fake = tmp_path / "torchvision.py"
    fake.write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    command = [sys.executable, "-c", "import domainbed.training"]
    ended = subprocess.run(
        command, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)}
    )
    last = ended.stderr.strip().splitlines()[-1]
    assert ended.returncode != 0
    assert "torch and torchvision do not fit together" in last
    assert "pip install --force-reinstall torch torchvision" in last


def test_a_family_can_be_what_is_imported_first():
    command = "import domainbed.algorithms_dpl as a; print(a.DPLCLIP.__name__)"
    ended = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True
    )
    assert ended.stdout == "DPLCLIP\n", ended.stderr


def test_the_wheel_is_enough_to_sweep_and_report(tmp_path):
    """Built and unpacked beside this environment's packages, used from elsewhere."""
    pip = [sys.executable, "-m", "pip", "-q"]
    build = ["--no-deps", "--no-build-isolation", "--no-index"]
    # setuptools would leave build/ and an .egg-info in the checkout.
    copy = tmp_path / "checkout"
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        copy.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, copy)
    for name in ("domainbed", "sweeps"):
        shutil.copytree(ROOT / name, copy / name)
    wheels, site, empty = tmp_path / "wheels", tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    subprocess.run([*pip, "wheel", *build, "-w", wheels, copy], check=True)
    (wheel,) = wheels.iterdir()
    subprocess.run([*pip, "install", *build, "--target", site, wheel], check=True)
    (about,) = site.glob("domainbed_lfa-*.dist-info")
    assert (about / "licenses" / "LICENSE").read_text().startswith("MIT License")

    def script(name, *flags):
        environment = os.environ | {"PYTHONPATH": str(site)}
        command = [sys.executable, "-m", f"domainbed.scripts.{name}", *flags]
        ended = subprocess.run(
            command, cwd=empty, env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    where = ["--output_dir", "out", "--data_dir", "data", "--skip_confirmation"]
    few = ["--datasets", "EmojiDG", "--algorithms", "ZeroShotCLIP"]
    few += ["--n_trials", "1", "--n_hparams", "1"]
    printed = script(
        "sweep", "launch", "@quickstart", *few, *where, "--command_launcher", "pool"
    )
    assert "Launched 4 jobs!" in printed
    table = script("collect_results", "--input_dir", "out", "--selection", "iid")
    assert "ZeroShotCLIP          56.8 +/- 0.0" in table
    script("report", "--input_dir", "out")
    assert (empty / "report.html").stat().st_size > 10_000
    made = [json.loads(file.read_text()) for file in empty.glob("out/*/run.json")]
    assert [about["git"] for about in made] == [None] * 4  # by the wheel, not from here
    assert [*site.glob("domainbed/sweeps/published/clip_vit_b16.csv")]


# What needs no torch, which takes seconds and most of the memory.
SWEEP = ["--datasets", "EmojiDG", "--algorithms", "LFA", "QLoRALFA", "QLoRACLIP"]
SWEEP += ["--n_trials", "1", "--output_dir", "out", "--data_dir", "data"]
LIGHT = {
    "domainbed.command_launchers": [],
    "domainbed.launchers.slurm": [],  # a Slurm task must be quick
    "domainbed.runs.folder": [],
    "domainbed.lib.reporting": [],
    "domainbed.scripts.sweep": [
        ["status", *SWEEP],
        ["launch", *SWEEP, "--command_launcher", "dummy", "--skip_confirmation"],
        ["delete_incomplete", *SWEEP, "--skip_confirmation"],
    ],
    "domainbed.scripts.collect_results": [
        ["--input_dir", "sample", "--format", f] for f in ("text", "csv")
    ],
}
WITHOUT_TORCH = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
for argv in json.loads(sys.argv[2]):
    module.main(argv)
heavy = {"torch", "torchvision", "timm", "transformers"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
"""


@pytest.mark.parametrize("module", LIGHT)
def test_what_launches_and_looks_needs_no_torch(module, tmp_path):
    helpers.unpacked_sweep("sweep_single", tmp_path / "sample")
    command = [sys.executable, "-c", WITHOUT_TORCH, module, json.dumps(LIGHT[module])]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_algorithms_are_asked_by_another_process(tmp_path):
    """What only they know is refused before anything is launched, and costs nothing."""
    flags = ["launch", *SWEEP, "--command_launcher", "local", "--hparams", "lR=1"]
    code = (
        "import sys; from domainbed.scripts import sweep\n"
        f"try: sweep.main({flags})\n"
        "finally: assert 'torch' not in sys.modules"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == 2, ended.stderr
    assert "has no hyperparameter 'lR'. Did you mean 'lr'?" in ended.stderr
    assert not (tmp_path / "out").exists()
