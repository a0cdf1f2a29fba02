"""What the benchmarks share: their options, timings in turn, the report."""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from domainbed.backbones import CLIP
from domainbed.tables.costs import machine, seconds

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def options(
    script: str, description: str, repeats: int = 0, threads: bool = True
) -> argparse.ArgumentParser:
    """The parser of a script's options; a script adds its own.

    `repeats` is the default of --repeats, 0 where nothing is repeated; no --threads for
    a script whose work runs in processes that choose their own.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    if repeats:
        parser.add_argument(
            "--repeats", type=int, default=repeats, help="of each timing"
        )
    if threads:
        parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    beside = Path(script).with_suffix(".json")
    parser.add_argument("--output", type=Path, default=beside)
    return parser


def medians(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of a call of each, called in turn, after a call that is not timed.

    In turn, because on a shared machine only what ran at the same time compares.
    """
    for function in functions.values():
        seconds(function)
    times = [
        {name: seconds(f) for name, f in functions.items()} for _ in range(repeats)
    ]
    return {name: statistics.median(t[name] for t in times) for name in functions}


def save_random_vit(path: Path) -> None:
    """A CLIP of ViT-B/16's sizes, in the form that `clip_backbone` takes."""
    torch.manual_seed(0)
    model = CLIP(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12)
    torch.save(model.half().state_dict(), path)


def report(result: dict[str, Any], output: Path) -> None:
    """Print the result, after the machine's name, and write it."""
    about = {"machine": machine() | {"torch": torch.__version__}}
    text = json.dumps(about | result, indent=1) + "\n"
    output.write_text(text)
    print(text, end="")
