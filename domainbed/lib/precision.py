"""In what precision a tower computes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PRECISIONS = ("float32", "tf32", "bfloat16")


@contextlib.contextmanager
def computed_in(precision: str, device: torch.device | str) -> Iterator[None]:
    """Products of matrices inside are taken in that precision; weights stay float32.

    tf32 rounds their factors on GPUs that have it and changes nothing elsewhere;
    bfloat16 is autocast: https://pytorch.org/docs/stable/amp.html
    """
    import torch

    if precision == "bfloat16":
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
