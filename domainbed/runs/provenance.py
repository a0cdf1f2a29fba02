"""What a run was made from, recorded so that tables can tell when they mix."""

import functools
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import domainbed
from domainbed.datasets import ImageEnvironment, MultipleDomainDataset
from domainbed.lib import misc


def versions() -> dict[str, str]:
    """Of Python, torch and this package."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "domainbed": domainbed.__version__,
    }


@functools.cache
def git_state() -> str | None:
    """The commit of this package's checkout, `-dirty` with changes; None outside."""
    folder = Path(domainbed.__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    try:
        options = {"capture_output": True, "text": True, "check": True, "timeout": 10}
        own = subprocess.run([*command, "--abbrev=40"], **options).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return own or None


def device_name() -> str:
    """The GPU's name, or cpu."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def dataset_fingerprint(dataset: MultipleDomainDataset) -> str:
    """16 hex digits: of images their names and labels, of other items their number.

    Equal wherever the same files lie; it costs no look at the files themselves. What is
    not images is drawn anew with every seed.
    """

    def facts(environment: Any) -> Iterable[str]:
        if not isinstance(environment, ImageEnvironment):
            return [str(len(environment))]
        root = environment.root
        return (f"{Path(f).relative_to(root)} {y}" for f, y in environment.samples)

    return misc.digest(
        f"{i} {fact}" for i, env in enumerate(dataset) for fact in facts(env)
    )
