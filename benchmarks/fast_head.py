"""LFA's fast head against its plain one, from stored features, forward and backward.

    python benchmarks/fast_head.py          # writes fast_head.json beside it

Sizes of ViT-B/16 (12 layers, 768 and 512 wide, 512 joint), 96 images, 7, 65 and 345
classes: PACS, OfficeHome, DomainNet. Times are medians, both heads in turn in one
process; only their ratio means anything on a shared machine. Memory is the most that
each head adds, each in a process of its own.
"""

import subprocess
import sys
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from common import DEVICE, medians, options, report
from torch import nn

from domainbed.algorithms import LFA
from domainbed.training import peak_memory_gb

IMAGES, LAYERS, D, W, E = 96, 12, 768, 512, 512
TURN = 5  # steps of a head at a time, so that it finds its own data in the caches


class Head(LFA):
    """LFA without a backbone: random projections, text features and scale."""

    def __init__(self, n_classes: int):
        nn.Module.__init__(self)
        torch.manual_seed(0)
        self.hparams = {"rank": None, "beta": 0.9, "start": "clip"}
        self.num_classes = n_classes
        self.backbone = SimpleNamespace(
            image_projection=torch.randn(D, E, device=DEVICE) / D**0.5,
            text_projection=torch.randn(W, E, device=DEVICE) / W**0.5,
            scale=100.0,
        )
        self.text_features = torch.randn(n_classes, LAYERS, W, device=DEVICE)
        self.build()


def batch(n_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random features (B, L, D) and labels (B,)."""
    z = torch.randn(IMAGES, LAYERS, D, device=DEVICE)
    return z, torch.randint(n_classes, (IMAGES,), device=DEVICE)


def step(head: Head, kind: str, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Logits of one step whose gradients were computed."""
    how = head.plain_logits if kind == "plain" else head.fast_logits
    logits = how(z, head.text_features)
    head.zero_grad()
    F.cross_entropy(logits, y).backward()
    return logits.detach()


def compare(n_classes: int, repeats: int) -> dict[str, float]:
    """Seconds of both, their ratio, and the largest relative difference of a logit."""
    head = Head(n_classes)
    z, y = batch(n_classes)
    logits = {kind: step(head, kind, z, y) for kind in ("plain", "fast")}
    turns = {
        kind: lambda kind=kind: [step(head, kind, z, y) for _ in range(TURN)]
        for kind in logits
    }
    times = {kind: s / TURN for kind, s in medians(turns, repeats).items()}
    difference = (logits["fast"] - logits["plain"]).abs().max() / 100
    return {
        "classes": n_classes,
        "plain_s": round(times["plain"], 5),
        "fast_s": round(times["fast"], 5),
        "times_faster": round(times["plain"] / times["fast"], 2),
        "largest_difference_of_a_cosine": float(f"{difference:.1e}"),
    }


def memory_mb(kind: str, n_classes: int) -> float:
    """What a step adds to this process's peak, of the GPU's or of resident memory."""
    head = Head(n_classes)
    z, y = batch(n_classes)
    before = peak_memory_gb()
    step(head, kind, z, y)
    return (peak_memory_gb() - before) * 2**10


def main(argv: list[str] | None = None) -> None:
    parser = options(__file__, __doc__, repeats=5)
    parser.add_argument("--memory_of", choices=["plain", "fast"], help="of 345 classes")
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
        "steps": [compare(n, args.repeats) for n in (7, 65, 345)],
        "peak_mb_at_345": {kind: round(mb) for kind, mb in memory.items()},
    }
    report(result, args.output)


if __name__ == "__main__":
    main()
