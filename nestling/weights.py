"""Weights: the tensors that a module owns, each once, and how they are filled again."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by name, tied ones once.

    Unlike a state dict this has the buffers that are not persistent too: a run may change them.
    """
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def cloned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return detached copies."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def misfit(module: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """Return in what the tensors differ from those of a module by name, shape or kind; or "".

    Floating-point numbers of another width fit: `fill` follows them.
    """
    own = tensors_of(module)
    for name in [*own, *tensors]:
        if name not in own or name not in tensors:
            return f"the {'module' if name not in own else 'file'} has no tensor {name[:200]!r}"
        mine, theirs = own[name], tensors[name]
        if mine.shape != theirs.shape:
            return (
                f"{name[:200]!r} has the shape {tuple(theirs.shape)} in the file, but "
                f"{tuple(mine.shape)} in the module"
            )
        if mine.dtype != theirs.dtype and not (_is_wide(mine) and _is_wide(theirs)):
            return f"{name[:200]!r} is {theirs.dtype} in the file, but {mine.dtype} in the module"
    return ""


def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors that fit into a module, which keeps its devices and takes their dtypes."""
    with torch.no_grad():
        for name, own in tensors_of(module).items():
            given = tensors[name]
            if own.dtype != given.dtype:
                own.data = own.data.to(given.dtype)
            own.copy_(given)


def lay_out(module: nn.Module, memory_format: torch.memory_format) -> None:
    """Give all parameters and buffers of four dimensions a memory format, in place."""
    for tensor in tensors_of(module).values():
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=memory_format)


def is_channels_last(tensors: Iterable[Tensor]) -> bool:
    """Return whether weights lie channels-last: rounding depends on it, and speed."""
    return any(
        tensor.dim() == 4
        and tensor.is_contiguous(memory_format=torch.channels_last)
        and not tensor.is_contiguous()
        for tensor in tensors
    )


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether no floating-point number among the tensors is NaN or infinite."""
    return all(
        bool(torch.isfinite(tensor).all()) for tensor in tensors if tensor.is_floating_point()
    )


def _is_wide(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Versions:
    """How often tensors had been written to, so that a later change is noticed at no cost.

    A move to another device, dtype or memory format is no change.
    """

    __slots__ = ("_seen",)

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        # Inference tensors do not count; nothing may write to them outside of that mode.
        self._seen = [(weakref.ref(t), t._version) for t in tensors if not t.is_inference()]

    def changed(self) -> bool:
        """Return whether one of the tensors was written to since."""
        now = ((tensor(), version) for tensor, version in self._seen)
        return any(tensor is not None and tensor._version != version for tensor, version in now)

    def __deepcopy__(self, memo: dict[int, Any]) -> Versions:
        """Return a copy that watches the copies of the tensors, whose own count starts anew."""
        copied = Versions()
        for reference, version in self._seen:
            tensor = reference()
            if tensor is not None:
                own = copy.deepcopy(tensor, memo)
                copied._seen.append((weakref.ref(own), own._version + version - tensor._version))
        return copied
