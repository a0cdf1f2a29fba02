"""What the benchmarks share: their options, the machine's name, timings in turn."""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from domainbed.backbones import CLIP

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def options(script: str, description: str, repeats: int) -> argparse.ArgumentParser:
    """The parser of a script's options; a script adds its own."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=repeats, help="of each timing")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    beside = Path(script).with_suffix(".json")
    parser.add_argument("--output", type=Path, default=beside)
    return parser


def machine() -> dict[str, Any]:
    """The names and numbers that a figure means nothing without."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = [
            line.split(": ")[1] for line in lines if line.startswith("model name")
        ]
        cpu = f"{len(models)} x {models[0]}" if models else cpu
    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if DEVICE == "cuda" else None,
        "torch": torch.__version__,
    }


def seconds(function: Callable[[], Any]) -> float:
    """What one call takes, until the GPU, if there is one, has done its part."""
    started = time.perf_counter()
    function()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


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
    text = json.dumps({"machine": machine()} | result, indent=1) + "\n"
    output.write_text(text)
    print(text, end="")
