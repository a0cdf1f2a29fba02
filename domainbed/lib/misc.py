"""Seeds, splits, weights and accuracy: the small facts every DomainBed run shares.

torch, which takes seconds, is imported by what needs it: launchers need none of that.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from domainbed.lib.errors import InputError
from domainbed.lib.texts import in_utf_8

if TYPE_CHECKING:
    import torch
    from torch.utils.data import Dataset, Subset

MOST_THREADS = 4096  # of a process; more than a system gives end it without a word
NO_GUESS = -1  # of a network that answers NaN


def seed_hash(*args: Any) -> int:
    """A 31-bit seed made from the arguments' text, the same on every machine."""
    return int(hashlib.md5(str(args).encode("utf-8")).hexdigest(), 16) % 2**31


def digest(texts: Iterable[str]) -> str:
    """16 hex digits that name a list of texts."""
    whole = hashlib.sha256()
    for text in texts:
        whole.update(text.encode(errors="surrogateescape") + b"\0")
    return whole.hexdigest()[:16]


def seed_everything(seed: int) -> None:
    """Set the state of Python's, numpy's and torch's generators from one number."""
    import torch

    random.seed(seed)
    np.random.seed(seed)
    # torch.manual_seed keeps a stack trace of every call until CUDA starts, which
    # here is for ever and at every step.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


def split_dataset(dataset: Dataset, n: int, seed: int = 0) -> tuple[Subset, Subset]:
    """The n first items of a seeded shuffle, and the rest."""
    from torch.utils.data import Subset

    if not 0 <= n <= len(dataset):
        raise ValueError(f"cannot take {n} of {len(dataset)} items")
    keys = list(range(len(dataset)))
    np.random.RandomState(seed).shuffle(keys)
    return Subset(dataset, keys[:n]), Subset(dataset, keys[n:])


def labels_of(dataset: Dataset) -> list[int]:
    """Every item's label, in order, without loading an image where that is possible."""
    from torch.utils.data import Subset

    if isinstance(dataset, Subset):
        labels = labels_of(dataset.dataset)
        return [labels[key] for key in dataset.indices]
    if hasattr(dataset, "targets"):
        return [int(y) for y in dataset.targets]
    return [int(y) for _, y in (dataset[i] for i in range(len(dataset)))]


def make_weights_for_balanced_classes(dataset: Dataset) -> torch.Tensor:
    """A weight for each item, with which every class weighs the same; they sum to 1."""
    import torch

    labels = labels_of(dataset)
    counts = Counter(labels)
    return torch.tensor([1 / (counts[y] * len(counts)) for y in labels])


def accuracy(
    network: Any,
    loader: Iterable[tuple[torch.Tensor, torch.Tensor]],
    weights: Sequence[float] | torch.Tensor | None,
    device: torch.device | str,
) -> float:
    """The weighted share of items whose highest logit is their label.

    `network.predict(x)` gives logits (B, C); of one column, positive means class 1. NaN
    if one of them is: a network that has diverged says nothing.
    `weights` follow the loader's order, None weighs all alike.
    """
    import torch

    network.eval()
    correct = total = 0.0
    seen, diverged = 0, torch.zeros((), dtype=torch.bool, device=device)
    with torch.no_grad():
        for x, y in loader:
            logits = network.predict(x.to(device))
            diverged |= logits.isnan().any()
            guess = logits.argmax(1) if logits.shape[1] > 1 else logits[:, 0] > 0
            right = (guess == y.to(device)).double().cpu()
            if weights is None:
                w = torch.ones(len(y), dtype=torch.double)
            else:
                w = torch.as_tensor(weights[seen : seen + len(y)], dtype=torch.double)
            seen += len(y)
            correct += (right * w).sum().item()
            total += w.sum().item()
    network.train()
    return correct / total if total and not diverged else float("nan")


def with_own_python(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment in which `python` is the one that runs this."""
    own = str(Path(sys.executable).parent)
    path = os.pathsep.join([own, environment.get("PATH", "")])
    return {**environment, "PATH": path}


def threads(default: int = 1) -> int:
    """The first number of OMP_NUM_THREADS; `default` where it says nothing."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    first = text.split(",")[0].strip()  # 4,2: of loops inside loops
    if not first:
        return default
    if first.isdecimal() and 0 < int(first) <= MOST_THREADS:
        return int(first)
    raise InputError(
        f"the variable OMP_NUM_THREADS is {text!r}; it must be a number from 1 to "
        f"{MOST_THREADS}."
    )


def write_whole(
    path: Path,
    content: str | bytes | memoryview,
    check: Callable[[], None] = lambda: None,
) -> None:
    """The file appears with all of its content or, after an error, stays as it was.

    That of a link is where it leads; what is no file, as /dev/null, is written to.
    `check` is called when only the file's place is left to take, and may raise.
    """
    content = content.encode() if isinstance(content, str) else content
    if path.exists() and not path.is_file():
        with open(path, "wb") as device:
            device.write(content)
        return
    whole = Path(os.path.realpath(path)) if path.is_symlink() else path
    part = whole.with_name(f"{path.name}.part")
    try:
        part.unlink(missing_ok=True)  # else two may write to it, one of them stopped
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        check()
        part.replace(whole)
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)  # a write does not say where
        raise
    finally:
        part.unlink(missing_ok=True)


def read_json(file: Path) -> dict[str, Any]:
    """The object in the file, {} if that cannot be read."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def save_whole(
    path: Path, value: Any, check: Callable[[], None] = lambda: None
) -> None:
    """torch.save to a file that appears whole, see above; a full disk is an OSError."""
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    with buffer.getbuffer() as content:  # let go of, or an error here hides its cause
        write_whole(path, content, check)


def guesses(
    network: Any, loader: Iterable, device: torch.device | str
) -> tuple[list[int], list[int]]:
    """The class with the highest logit, and the label, of each item in order.

    Where a logit is NaN it is NO_GUESS.
    """
    import torch

    network.eval()
    guessed: list[int] = []
    labels: list[int] = []
    with torch.no_grad():
        for x, y in loader:
            logits = network.predict(x.to(device))
            unknown = logits.isnan().any(1)
            guessed += logits.argmax(1).masked_fill(unknown, NO_GUESS).tolist()
            labels += y.tolist()
    network.train()
    return guessed, labels


def plain(value: Any) -> Any:
    """The value in the types that JSON knows: numpy's scalars become Python's."""
    return json.loads(json.dumps(value, default=lambda scalar: scalar.item()))


class Tee:
    """A stream that writes to standard output and to a file."""

    def __init__(self, fname: str | Path, mode: str = "a", stream: Any = None):
        self.stream = stream or sys.stdout
        # Unbuffered: what a full disk refused is not tried again when it is closed.
        self.file = open(fname, f"{mode}b", buffering=0)  # noqa: SIM115

    def write(self, text: str) -> None:
        text = in_utf_8(text)
        self.stream.write(text)
        self.stream.flush()
        with contextlib.suppress(OSError):  # a full disk ends a log, not a run
            self.file.write(text.encode())

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()
