"""CLIP weights from any file: OpenAI's, a training checkpoint, transformers'.

Whatever else a file holds is an InputError that names the file and what it holds.
"""

import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from domainbed.lib.errors import InputError, one_line

State = dict[str, torch.Tensor]

# Where training scripts put the weights, and what wrappers put before their names.
HOLDERS = ("state_dict", "model_state_dict", "model", "module", "clip")
PREFIXES = ("module.", "_orig_mod.", "model.", "clip_model.", "clip.")
IN_FOLDERS = ("model.safetensors", "pytorch_model.bin")  # transformers', open_clip's
IN_FOLDERS += ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def read_state(path: Path) -> State:
    """The weights under OpenAI's names."""
    held = read_file(file_in(path))
    while isinstance(held, dict) and (inner := held_in(held)) is not None:
        held = inner
    if not isinstance(held, dict) or not held:
        raise no_clip(path, f"a {type(held).__name__}")
    state = {str(name): weight for name, weight in held.items()}
    while prefix := common_prefix(state):
        state = {name.removeprefix(prefix): w for name, w in state.items()}
    if any(name.startswith("vision_model.") for name in state):
        state = from_transformers(path, state)
    if not {"visual.conv1.weight", "text_projection"} <= state.keys():
        first = next(iter(state))
        raise no_clip(path, f"{len(state)} entries, the first is {first!r}")
    for name, weight in state.items():
        check_weight(path, name, weight)
    return state


def check_weight(path: Path, name: str, weight: Any) -> None:
    """InputError for what no tower can compute with, or computes nonsense with."""
    if not isinstance(weight, torch.Tensor):
        raise no_clip(path, f"a {type(weight).__name__} as {name!r}")
    if not weight.ndim:  # CLIP's files have whole numbers beside the weights
        return
    kind = str(weight.dtype).removeprefix("torch.")
    if not weight.is_floating_point():
        raise no_clip(path, f"{name!r} in {kind}; its scale is not known")
    if weight.layout is not torch.strided or weight.is_meta:
        raise no_clip(path, f"{name!r} without all of its numbers")
    if not weight.isfinite().all():
        raise no_clip(path, f"{name!r} with NaN or infinity in it: it has diverged")


def file_in(path: Path) -> Path:
    """The file itself, or the one with weights in a folder of transformers'."""
    if path.exists() and not path.is_dir() and not path.is_file():
        raise InputError(f"clip_backbone {path} is no file.")  # a pipe is waited for
    if not path.is_dir():
        return path
    there = [path / name for name in IN_FOLDERS if (path / name).is_file()]
    if not there:
        raise InputError(
            f"clip_backbone {path} is a folder without {' or '.join(IN_FOLDERS)}."
        )
    return there[0]


def read_file(path: Path) -> Any:
    """What the file holds, of tensors and plain types only: none of its code is run."""
    try:
        if begins_as_safetensors(path):
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated
            try:  # OpenAI's own files
                return dict(torch.jit.load(path, map_location="cpu").state_dict())
            except RuntimeError:
                torch.serialization.add_safe_globals(list(numbers_of_numpy()))
                with open(path, "rb") as file:  # of a path torch looks at the ending
                    return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise no_clip(path, what_it_is(path)) from error
    except Exception as error:  # a file that is none fails in any way
        what = f"{what_it_is(path)} ({one_line(error, 100)})"
        raise no_clip(path, what) from error


def begins_as_safetensors(path: Path) -> bool:
    """Whether a header follows the eight bytes of its length, whatever the name."""
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def numbers_of_numpy() -> Iterator[Any]:
    """What an epoch or a loss that is a number of numpy's needs to be read."""
    core = np._core if hasattr(np, "_core") else np.core
    yield from (core.multiarray.scalar, np.dtype)
    yield from {type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?")}


def what_it_is(path: Path) -> str:
    """A guess from the file's first bytes."""
    with open(path, "rb") as file:
        start = file.read(200)
    if not start:
        return "nothing: it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; git lfs pull brings the file itself"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not a download"
    if start.startswith(b"PK"):
        return "pickled objects or half of a file; save model.state_dict(), whole"
    if start.startswith(b"\x80"):
        return "pickled objects; save model.state_dict() instead"
    return "no weights that torch can read"


def held_in(held: dict) -> Any:
    """The weights inside a checkpoint, None if these are weights already."""
    inner = (held[key] for key in HOLDERS if isinstance(held.get(key), dict))
    return next(inner, None)


def common_prefix(state: State) -> str | None:
    """What stands before every name."""
    found = (p for p in PREFIXES if all(name.startswith(p) for name in state))
    return next(found, None)


def from_transformers(path: Path, state: State) -> State:
    """The same weights under OpenAI's names."""
    from domainbed.backbones.conversion import to_openai  # which imports clip.py

    state = {n: w for n, w in state.items() if not n.endswith("position_ids")}
    try:
        return to_openai(state)
    except (StopIteration, KeyError) as error:
        raise no_clip(path, "a model of transformers' that is no CLIPModel") from error


def no_clip(path: Path, what: str) -> InputError:
    return InputError(
        f"clip_backbone {path} holds no CLIP, but {what}; give OpenAI's file, a state "
        "dict with its names or transformers', or a checkpoint that holds one."
    )
