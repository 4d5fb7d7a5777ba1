"""Skeletons: a module copied without its tensors, fast and small.

A supernet makes many subnets. `copy.deepcopy` takes most of the time and memory of one, so the
structure of ordinary modules is copied here; whatever has a way of its own to be copied is left to
`copy.deepcopy`.
"""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from types import BuiltinFunctionType, FunctionType
from typing import Any

from torch import nn

_ATOMIC = (int, float, bool, str, bytes, complex, type, type(None), FunctionType)
_ATOMIC_TYPES = frozenset((*_ATOMIC, BuiltinFunctionType))
_OF_MODULE = ("__reduce__", "__reduce_ex__", "__getstate__")
_PLAIN = (nn.Module.__setstate__, nn.modules.conv._ConvNd.__setstate__)  # they only fill gaps
_DROPPED = "_compiled_call_impl"  # what `nn.Module.__getstate__` leaves out
_TENSORS = ("_parameters", "_buffers")
_HOOKS = frozenset(key for key, value in vars(nn.Module()).items() if type(value) is OrderedDict)
_ABSENT = ("__deepcopy__", "__getnewargs__", "__getnewargs_ex__")


class Hooks(dict[int, Any]):
    """The hooks of a module or parameter: an `OrderedDict` of 40 % less memory.

    A module has eleven of them, nearly always empty. Copies are `OrderedDict`s again.
    """

    __slots__ = ("__weakref__",)  # torch's removable handles need it

    def move_to_end(self, key: int, last: bool = True) -> None:
        """Move a hook to either end, as `OrderedDict` does."""
        value = self.pop(key)
        others = {} if last else dict(self)
        if not last:
            self.clear()
        self[key] = value
        self.update(others)

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, (list(self.items()),)


def copy_skeleton(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Return `copy.deepcopy(module, memo)`: the same structure, values as `memo` says.

    Args:
        module: what is copied.
        memo: identity of every tensor to what stands in its place.
    """
    known = memo.get(id(module))
    if known is not None:
        return known  # type: ignore[no-any-return]
    kind: Any = type(module)
    if not is_ordinary(kind):
        return copy.deepcopy(module, memo)
    twin: nn.Module = kind.__new__(kind)
    memo[id(module)] = twin
    # One by one: the keys of such a dict are shared by all instances of the class.
    state = twin.__dict__
    for key, value in module.__dict__.items():
        if key == _DROPPED:
            continue
        if key == "_modules":
            state[key] = {
                name: None if child is None else copy_skeleton(child, memo)
                for name, child in value.items()
            }
        else:
            state[key] = _copy_part(key, value, memo)
    return twin


def copy_attributes(module: nn.Module, memo: dict[int, Any]) -> dict[str, Any]:
    """Return a copy of what a module holds besides its parameters, buffers and parts.

    Args:
        module: whose attributes are copied.
        memo: as for `copy_skeleton`.
    """
    return {
        key: _copy_part(key, value, memo)
        for key, value in module.__dict__.items()
        if key not in (_DROPPED, "_modules", *_TENSORS)
    }


def _copy_part(key: str, value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in _ATOMIC_TYPES:
        return value
    if key in _HOOKS and not value:
        return Hooks()
    if key in _TENSORS and all(item is None or id(item) in memo for item in value.values()):
        return {name: None if item is None else memo[id(item)] for name, item in value.items()}
    if key == "_non_persistent_buffers_set":
        return set(value)
    if kind is tuple and all(type(item) in _ATOMIC_TYPES for item in value):
        return value
    return copy.deepcopy(value, memo)


@functools.lru_cache(maxsize=512)
def is_ordinary(kind: Any) -> bool:
    """Return whether a class leaves it to `nn.Module` how it is copied."""
    return (
        all(getattr(kind, name, None) is getattr(nn.Module, name, None) for name in _OF_MODULE)
        and not any(hasattr(kind, name) for name in _ABSENT)
        and kind.__setstate__ in _PLAIN
        and not any("__slots__" in vars(base) for base in kind.__mro__)
    )
