"""LFA's fast head against its plain one, from stored features, forward and backward.

    python benchmarks/fast_head.py          # writes fast_head.json beside it

Sizes of ViT-B/16 (12 layers, 768 and 512 wide, 512 joint), 96 images, 7, 65 and 345
classes: PACS, OfficeHome, DomainNet. Times are medians, both heads in turn in one
process; only their ratio means anything on a shared machine. Memory is the most that
each head adds, each in a process of its own.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from domainbed.algorithms import LFA

IMAGES, LAYERS, D, W, E = 96, 12, 768, 512, 512


class Head(LFA):
    """LFA without a backbone: random projections, text features and scale."""

    def __init__(self, n_classes: int):
        nn.Module.__init__(self)
        torch.manual_seed(0)
        self.hparams = {"rank": None, "beta": 0.9}
        self.backbone = SimpleNamespace(
            image_projection=torch.randn(D, E) / D**0.5,
            text_projection=torch.randn(W, E) / W**0.5,
            scale=100.0,
        )
        self.text_features = torch.randn(n_classes, LAYERS, W)
        self.build()


def step(head: Head, kind: str, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Logits of one step whose gradients were computed."""
    logits = head.plain_logits(z) if kind == "plain" else head.fast_logits(z)
    head.zero_grad()
    F.cross_entropy(logits, y).backward()
    return logits.detach()


def compare(n_classes: int, repeats: int) -> dict[str, float]:
    """Seconds of both, their ratio, and the largest relative difference of a logit."""
    head = Head(n_classes)
    z, y = torch.randn(IMAGES, LAYERS, D), torch.randint(n_classes, (IMAGES,))
    seconds: dict[str, list[float]] = {"plain": [], "fast": []}
    logits = {kind: step(head, kind, z, y) for kind in seconds}
    for _ in range(repeats):
        for kind, times in seconds.items():
            started = time.perf_counter()
            step(head, kind, z, y)
            times.append(time.perf_counter() - started)
    medians = {kind: statistics.median(times) for kind, times in seconds.items()}
    difference = (logits["fast"] - logits["plain"]).abs().max() / 100
    return {
        "classes": n_classes,
        "plain_s": round(medians["plain"], 4),
        "fast_s": round(medians["fast"], 4),
        "times_faster": round(medians["plain"] / medians["fast"], 2),
        "largest_difference_of_a_cosine": float(f"{difference:.1e}"),
    }


def memory_mb(kind: str, n_classes: int) -> float:
    """What a step adds to this process's peak of resident memory."""
    head = Head(n_classes)
    z, y = torch.randn(IMAGES, LAYERS, D), torch.randint(n_classes, (IMAGES,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(head, kind, z, y)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory_of", choices=["plain", "fast"], help="of 345 classes")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_suffix(".json")
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(memory_mb(args.memory_of, 345))
        return
    memory = {}
    for kind in ("plain", "fast"):
        command = [sys.executable, __file__, "--memory_of", kind]
        memory[kind] = float(subprocess.check_output(command, text=True))
    result = {
        "machine": f"{platform.machine()}, {args.threads} threads",
        "torch": torch.__version__,
        "steps": [compare(n, args.repeats) for n in (7, 65, 345)],
        "peak_mb_at_345": {kind: round(mb) for kind, mb in memory.items()},
    }
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
