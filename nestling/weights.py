"""Weights: the tensors that a module owns, each once, and how they are filled again."""

from __future__ import annotations

import copy
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

_OWN = ("_parameters", "_buffers", "_modules")
_ATOMS = frozenset((int, float, bool, str, type(None)))
_TABLES = frozenset((dict, OrderedDict, list, tuple, set))


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by name, tied ones once.

    Unlike a state dict this has the buffers that are not persistent too: a run may change them.
    """
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def loose_tensors(module: nn.Module) -> list[Tensor]:
    """Return the tensors that modules hold as plain attributes, also in lists and dicts."""
    held = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    found = {}
    for part in module.modules():
        for key, value in vars(part).items():
            kind = type(value)  # nearly all is a plain number or an empty table of hooks
            if key not in _OWN and kind not in _ATOMS and (kind not in _TABLES or value):
                for leaf in tree_leaves(value):
                    if isinstance(leaf, Tensor) and id(leaf) not in held:
                        found[id(leaf)] = leaf
    return list(found.values())


def duplicate(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Return `copy.deepcopy(module, memo)`, also where a run with gradients left something.

    Such tensors (a layer's last output, the weight that a hook computes) cannot be copied with
    their graph; the copy has their values. Parameters keep attributes of their own.
    """
    memo = {} if memo is None else memo
    for parameter in module.parameters():
        if vars(parameter) and not isinstance(parameter, UninitializedParameter):
            values = parameter.detach().clone(memory_format=torch.preserve_format)
            memo[id(parameter)] = parameter_like(values, parameter, parameter.requires_grad)
    for buffer in module.buffers():
        if isinstance(buffer, UninitializedBuffer):  # torch copies lazy parameters, but not these
            memo[id(buffer)] = UninitializedBuffer(  # type: ignore[call-arg]
                device=buffer.device, dtype=buffer.dtype
            )
    for tensor in loose_tensors(module):
        if not tensor.is_leaf:
            memo.setdefault(id(tensor), tensor.detach().clone())
    return copy.deepcopy(module, memo)


@contextmanager
def substituted(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Put other tensors in the place of a module's own, wherever these are held, for a block.

    `torch.func.functional_call` leaves the wrong weights behind in a module that is registered
    under two names.

    Args:
        module: whose tensors are replaced.
        tensors: by the names that `tensors_of` gives.
    """
    own = tensors_of(module)
    instead = {id(own[name]): _in_kind(tensor, own[name]) for name, tensor in tensors.items()}
    places: list[tuple[dict[str, Any], str, Tensor]] = []
    for part in module.modules():
        for table in cast(list[dict[str, Any]], [part._parameters, part._buffers]):
            places += [
                (table, k, t) for k, t in table.items() if id(t) in instead and t is not None
            ]
    try:
        for table, key, tensor in places:
            table[key] = instead[id(tensor)]
        yield
    finally:
        for table, key, tensor in places:
            table[key] = tensor


def put(module: nn.Module, before: nn.Parameter, after: nn.Parameter) -> None:
    """Put a parameter in the place of another, wherever a module holds that one."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is before:
                part._parameters[name] = after


def _in_kind(tensor: Tensor, own: Tensor) -> Tensor:
    """Return a tensor that has the methods and attributes that the code may expect of its own."""
    if isinstance(own, nn.Parameter) and (type(own) is not nn.Parameter or vars(own)):
        if tensor.grad_fn is not None:  # a leaf would cut it off from what it is computed of
            tensor.__dict__.update(vars(own))
            return tensor
        with _disable_current_modes():  # no op of the model's
            return parameter_like(tensor.detach(), own, tensor.requires_grad)
    return tensor


def parameter_like(data: Tensor, parameter: nn.Parameter, requires_grad: bool) -> nn.Parameter:
    """Return a parameter of other values, of the same class and with the same attributes."""
    kind = type(parameter)
    if kind is nn.Parameter:
        made = nn.Parameter(data, requires_grad=requires_grad)
    else:
        made = Tensor._make_subclass(kind, data, requires_grad)
    made.__dict__.update(vars(parameter))
    return made


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


def lay_out(
    module: nn.Module, memory_format: torch.memory_format | Mapping[str, torch.memory_format]
) -> None:
    """Give all parameters and buffers of four dimensions a memory format, in place.

    Args:
        module: whose tensors are laid out.
        memory_format: one for all, or one for each by name, as `layouts_of` returns them.
    """
    for name, tensor in tensors_of(module).items():
        if tensor.dim() == 4:
            own = memory_format[name] if isinstance(memory_format, Mapping) else memory_format
            tensor.data = tensor.data.to(memory_format=own)


def layouts_of(module: nn.Module) -> dict[str, torch.memory_format]:
    """Return the memory formats of all parameters and buffers of four dimensions, by name."""
    return {
        name: torch.channels_last if is_channels_last([tensor]) else torch.contiguous_format
        for name, tensor in tensors_of(module).items()
        if tensor.dim() == 4
    }


def is_channels_last(tensors: Iterable[Tensor]) -> bool:
    """Return whether weights lie channels-last: rounding depends on it, and speed."""
    return any(
        tensor.dim() == 4
        and tensor.is_contiguous(memory_format=torch.channels_last)
        and not tensor.is_contiguous()
        for tensor in tensors
    )


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether no floating-point number among the tensors is NaN or infinite.

    Each device is looked at once, for on a GPU every look waits.
    """
    flags: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.is_floating_point():
            flags.setdefault(tensor.device, []).append(torch.isfinite(tensor).all())
    return all(bool(torch.stack(found).all()) for found in flags.values())


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
