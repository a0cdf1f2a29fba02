"""Remake the golden files of our own: python tests/golden/remake.py

hparams.json: every algorithm's default and a random draw on every dataset. A changed
line is a changed experiment; look at the difference before you commit it.
"""

import json
from pathlib import Path

from domainbed import algorithms, datasets, hparams_registry

PATH = Path(__file__).parent / "hparams.json"


def hparams() -> dict[str, dict]:
    """'algorithm dataset' -> {default, drawn with seed 3}."""
    return {
        f"{algorithm} {dataset}": {
            "default": hparams_registry.default_hparams(algorithm, dataset),
            "drawn": hparams_registry.random_hparams(algorithm, dataset, 3),
        }
        for algorithm in algorithms.ALGORITHMS
        for dataset in ("Debug28", "PACS", "DomainNet", "RotatedMNIST", "EmojiDG")
        if dataset in datasets.DATASETS
    }


def as_lines(values: dict[str, dict]) -> str:
    """A line per entry, so that a difference shows which."""
    lines = (f"{json.dumps(k)}: {json.dumps(v)}" for k, v in values.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    PATH.write_text(as_lines(hparams()))
