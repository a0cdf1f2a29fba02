"""All that a module needs to go on training elsewhere, found wherever it hangs.

Beside the weights: optimisers and schedulers, in attributes, lists and dicts of the
module and of its submodules, and plain counters.
"""

import copy
import enum
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from domainbed.lib.errors import InputError

PLAIN = (bool, int, float, str, type(None), torch.Tensor)
OF_EVERY_MODULE = frozenset(vars(nn.Module()))
Place = tuple[str | int, ...]  # a submodule, its attribute, keys of lists and dicts


def training_state(module: nn.Module, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    """`module`, its state dict; `parts`, those of optimisers and the like; `plain`.

    `skip` names attributes that are no state: configuration, or set by somebody else.
    """
    hanging = dict(places(module, skip))
    return {
        "module": module.state_dict(),
        "parts": {p: v.state_dict() for p, v in hanging.items() if has_state(v)},
        "plain": {p: copy.deepcopy(v) for p, v in hanging.items() if not has_state(v)},
    }


def load_training_state(
    module: nn.Module, state: dict[str, Any], skip: tuple[str, ...] = ()
) -> None:
    """Bring a module that was made with the same arguments to that state.

    InputError if it lacks an optimiser that the state has.
    """
    fit_buffers(module, state["module"])
    module.load_state_dict(state["module"])
    hanging = dict(places(module, skip))
    for place, saved in state["parts"].items():
        if not has_state(hanging.get(place)):
            raise InputError(
                f"a new {type(module).__name__} lacks {'.'.join(map(str, place[1:]))}, "
                "which its saved state has; make it in the constructor."
            )
        hanging[place].load_state_dict(saved)
    for place, value in state["plain"].items():
        put(module, place, value)


def fit_buffers(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Give each buffer the shape and dtype that it has in the state dict."""
    for name, submodule in module.named_modules():
        for own, buffer in submodule._buffers.items():
            saved = state.get(f"{name}.{own}".lstrip("."))
            if saved is None or (buffer is not None and buffer.shape == saved.shape):
                continue
            like = saved if buffer is None else buffer
            submodule._buffers[own] = torch.empty_like(saved, device=like.device)


def places(module: nn.Module, skip: tuple[str, ...]) -> Iterator[tuple[Place, Any]]:
    """What hangs at a module and its submodules: parts with a state, plain values."""
    for name, submodule in module.named_modules():
        for attribute, value in vars(submodule).items():
            if attribute not in OF_EVERY_MODULE and attribute not in skip:
                yield from inside(value, (name, attribute))


def inside(value: Any, place: Place) -> Iterator[tuple[Place, Any]]:
    """The value itself if it is one of these, else those in its lists and dicts."""
    if has_state(value) or is_plain(value):
        yield place, value
    elif isinstance(value, dict | list | tuple):
        for key, inner in (
            value.items() if isinstance(value, dict) else enumerate(value)
        ):
            yield from inside(inner, (*place, key))


def has_state(value: Any) -> bool:
    """Whether it can give its state; a class, as torchvision's ResNet holds, cannot."""
    methods = hasattr(value, "state_dict") and hasattr(value, "load_state_dict")
    return methods and not isinstance(value, type)


def is_plain(value: Any) -> bool:
    """Whether it is a number, text or tensor, or lists and dicts of nothing else.

    A member of an enumeration, as timm's ViT holds, is configuration.
    """
    if isinstance(value, dict):
        return all(is_plain(inner) for pair in value.items() for inner in pair)
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return isinstance(value, PLAIN) and not isinstance(value, enum.Enum)


def put(module: nn.Module, place: Place, value: Any) -> None:
    """Set a plain value at its place; a tensor goes to the device of the one there."""
    name, attribute, *keys = place
    holder = vars(module.get_submodule(name))
    for key in (attribute, *keys)[:-1]:
        holder = holder[key]
    key = (attribute, *keys)[-1]
    before = holder[key] if not isinstance(holder, dict) or key in holder else None
    if isinstance(value, torch.Tensor) and isinstance(before, torch.Tensor):
        value = value.to(before.device)
    holder[key] = value
