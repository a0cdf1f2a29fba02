"""What a run was made from, recorded so that tables can tell when they mix."""

import functools
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import domainbed
from domainbed.datasets import ImageEnvironment, MultipleDomainDataset
from domainbed.datasets_features import FeaturesDataset
from domainbed.lib import misc
from domainbed.lib.once import once


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
    options = {"capture_output": True, "text": True, "timeout": 10}
    try:
        ended = subprocess.run([*command, "--abbrev=40"], **options)
        if ended.returncode < 0:  # killed, which says nothing of the checkout
            ended = subprocess.run([*command, "--abbrev=40"], **options)
    except (OSError, subprocess.SubprocessError):
        return None
    return None if ended.returncode else ended.stdout.strip() or None


def device_name() -> str:
    """The GPU's name, or cpu."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def dataset_fingerprint(dataset: MultipleDomainDataset) -> str:
    """16 hex digits: of images their names and labels, of other items their number.

    Equal wherever the same files lie; it costs no look at the files themselves. Of a
    feature file it is the content's; what is neither is drawn anew with every seed.
    """
    if isinstance(dataset, FeaturesDataset):
        return dataset.FILE.digest

    def facts(environment: Any) -> Iterable[str]:
        if not isinstance(environment, ImageEnvironment):
            return [str(len(environment))]
        root = len(os.path.join(environment.root, ""))  # sliced: Path takes 15 times
        return (f"{file[root:]} {y}" for file, y in environment.samples)

    def whole() -> str:
        return misc.digest(
            f"{i} {fact}" for i, env in enumerate(dataset) for fact in facts(env)
        )

    return once(whole, "dataset", *(getattr(env, "key", None) for env in dataset))


def made_from(run: Any) -> dict[str, Any]:
    """What a `training.Run` is made from, in plain types."""
    trainable = [p for p in run.algorithm.parameters() if p.requires_grad]
    splits = (f"{split.name} {split.keys}" for split in run.splits)
    on_clip = run.input != "images" or hasattr(run.algorithm, "backbone")
    return misc.plain(
        {
            "args": vars(run.args),
            "hparams": run.hparams,
            "parameters": sum(p.numel() for p in trainable),
            "versions": versions(),
            "git": git_state(),
            "device": device_name(),
            "dataset": dataset_fingerprint(run.dataset),
            "split": misc.digest(splits),
            "backbone": run.backbone.pretrained if on_clip else "",
            "images": {split.name: len(split.keys) for split in run.splits},
        }
    )


def attempt(step: int) -> dict[str, Any]:
    """What this process takes the steps from that one on with."""
    return {
        "step": step,
        "versions": versions(),
        "git": git_state(),
        "device": device_name(),
        "threads": torch.get_num_threads(),
    }
