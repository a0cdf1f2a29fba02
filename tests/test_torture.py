"""tools/torture in short; docs/reliability.md has the figures of a long run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SPACES = ["unshare", "--map-root-user", "--mount", "--uts", "true"]


def has_namespaces() -> bool:
    try:
        return subprocess.run(SPACES, capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not has_namespaces(), reason="no namespaces here (unshare)")
def test_a_tortured_sweep_finds_what_it_finds_undisturbed():
    """Its runs, loaders, extractor and launchers killed, stopped, without a disk."""
    words = [sys.executable, "-m", "tools.torture", "--warm", "--kills", "30"]
    words += ["--pictures", "1", "--pause", "0.6", "--locks", "work", "--seed", "1"]
    environment = {name: v for name, v in os.environ.items() if name != "TORTURE_OWN"}
    ended = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr + ended.stdout
    report = json.loads(ended.stdout)
    assert report["kills"] >= 30
    assert set(report["faults"].values()) == {0}
