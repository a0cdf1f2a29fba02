"""A training step that a GPU records once and then replays.

A step from stored features is many small kernels; starting each from Python takes
longer than running it. https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

import warnings
from collections.abc import Callable

import torch

WARM_UP = 3  # ordinary steps first: they allocate what the recording must find there

Step = Callable[..., torch.Tensor]


class GraphedStep:
    """The step as a function of its tensors, replayed where that is possible.

    That is: on CUDA, for tensors of the recorded shapes, if the step is `recordable`:
    the same Python every time, its learning rate aside, which becomes a tensor. It
    gives a tensor that the next call overwrites.
    """

    def __init__(
        self, step: Step, optimizer: torch.optim.Optimizer | None, recordable: bool
    ):
        self.step, self.optimizer = step, optimizer
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.possible = recordable

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        if not (self.possible and all(x.is_cuda for x in inputs)):
            return self.step(*inputs)
        self.calls += 1
        if self.calls == 1 and self.optimizer:
            read_rate_from_tensor(self.optimizer, inputs[0].device)
        if self.calls <= WARM_UP:
            return self.aside(*inputs)
        if self.graph is None:
            self.record(inputs)
        if self.graph is None or [x.shape for x in inputs] != self.shapes:
            return self.step(*inputs)
        for own, x in zip(self.inputs, inputs, strict=True):
            own.copy_(x)
        self.graph.replay()
        return self.result

    def aside(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The step on a stream of its own, as recording will run it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            result = self.step(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        return result

    def record(self, inputs: tuple[torch.Tensor, ...]) -> None:
        """Record the step; it does not run. If it cannot be, it never will be."""
        self.shapes = [x.shape for x in inputs]
        self.inputs = [x.clone() for x in inputs]
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.result = self.step(*self.inputs)
        except RuntimeError as error:
            self.possible = False
            warnings.warn(f"no CUDA graph of the step: {error}", stacklevel=2)
        else:
            self.graph = graph


def read_rate_from_tensor(
    optimizer: torch.optim.Optimizer, device: torch.device
) -> None:
    """Make its steps read the learning rate from memory, where a replay finds it."""
    for group in optimizer.param_groups:
        rate = torch.as_tensor(group["lr"], dtype=torch.float32)
        how = {"fused": True, "foreach": False}  # only so do SGD's steps take a tensor
        group.update(how, lr=rate.to(device))
