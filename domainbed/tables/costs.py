"""What a run costs: trainable parameters, peak memory, seconds.

A process has one peak of memory, so every measurement has a process of its own, by
`lib.children`. It prepares a run as `domainbed.scripts.train` does.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from domainbed import training

SOURCES = {"images": "from images", "store": "from the store"}  # of what a run reads


def extract(args: argparse.Namespace) -> float | None:
    """Seconds until the run's features are all stored; None if it stores none."""
    run = training.Run(args)
    taken = seconds(lambda: run.stored)
    return taken if run.stored else None


def measure(args: argparse.Namespace) -> dict[str, Any] | None:
    """A run's figures; None if it should read stored features but stores none.

    `memory_gb` is the peak of training and inference: allocated on the GPU or, without
    one, resident in this process, with the stored features that it has read but
    without the processes that load images. Inference is an evaluation of every split,
    so of every item. `train_seconds` is None for a method that only evaluates.
    """
    run = training.Run(args)
    if not run.stored and not args.no_feature_store:
        return None
    trainable = (p for p in run.algorithm.parameters() if p.requires_grad)
    figures = {"parameters": sum(p.numel() for p in trainable), "train_seconds": None}
    batches = run.task.batches(run)

    def train_for(n_steps: int) -> None:
        for step in range(n_steps):
            run.update(step, next(batches))

    if run.algorithm.MAX_STEPS != 1:
        train_for(1)  # starts the loaders' processes and what the GPU starts late
        figures["train_seconds"] = seconds(lambda: train_for(run.n_steps))
    figures["inference_seconds"] = seconds(run.evaluate)
    return figures | {"memory_gb": training.peak_memory_gb(), "machine": machine()}


def kept_for_backward(algorithm: torch.nn.Module, minibatches: Any) -> int:
    """Bytes that the loss of a CLIP method's step keeps for its backward pass.

    Each storage counts once, weights and buffers not at all.
    """
    held = (*algorithm.parameters(), *algorithm.buffers())
    ours = {tensor.untyped_storage().data_ptr() for tensor in held}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ours:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        graph = algorithm.loss(minibatches)  # held, or what it keeps would be freed
    assert graph.requires_grad
    return sum(kept.values())


def seconds(function: Callable[[], Any]) -> float:
    """What a call takes, until the GPU, if there is one, has done its part."""
    started = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def machine() -> dict[str, Any]:
    """The names and numbers that a figure means nothing without."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
