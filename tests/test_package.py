"""The package as a whole: imports, and what a broken environment is told."""

import subprocess
import sys


def test_a_torchvision_that_does_not_fit_torch_is_explained(tmp_path):
    """A CPU-only torch beside the registry's torchvision fails as this one does."""
    fake = tmp_path / "torchvision.py"
    fake.write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    command = [sys.executable, "-c", "import domainbed"]
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
