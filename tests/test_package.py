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
