"""Structure: the tensors inside whatever a model takes or returns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import fields, is_dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in nested lists, dicts, dataclasses and objects, in a fixed order.

    Example:
        >>> len(tensors_in({"logits": torch.zeros(2), "features": [torch.zeros(3), None]}))
        2
    """
    found: list[Tensor] = []
    _collect(value, found, set())
    return found


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a value with each of its tensors changed; what holds them is copied, not written to.

    It reaches the tensors that `tensors_in` finds. An object is copied with `copy.copy`; a mapping
    that cannot be written to comes back as a dictionary.

    Example:
        >>> map_tensors({"logits": torch.ones(1), "name": "x"}, lambda tensor: tensor + 1)
        {'logits': tensor([2.]), 'name': 'x'}
    """
    return _mapped(value, change, {})


def renewed(value: Any) -> Any:
    """Return a deep copy of what a model is given: it may write to its inputs, or keep them.

    What cannot be copied as a whole has at least its tensors copied.
    """
    memo = {id(tensor): _apart(tensor) for tensor in tensors_in(value)}
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # noqa: BLE001  (the user's own classes)
        return map_tensors(value, _apart)


def _apart(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def batch_of(inputs: Any) -> int:
    """Return the number of examples in the inputs: the first dimension of the first tensor."""
    sizes = (leaf.shape[0] for leaf in tensors_in(inputs) if leaf.dim())
    return max(next(sizes, 1), 1)


def with_batch(inputs: Any, batch: int) -> Any:
    """Return the inputs with another number of examples: the first ones, or all of them repeated.

    Tensors whose first dimension is not the batch stay as they are.
    """
    known = batch_of(inputs)

    def resize(leaf: Tensor) -> Tensor:
        if not leaf.dim() or leaf.shape[0] != known:
            return leaf
        return leaf[torch.arange(batch, device=leaf.device) % known]

    return map_tensors(inputs, resize)


def _collect(value: Any, found: list[Tensor], seen: set[int]) -> None:
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            found.append(leaf)
            continue
        inner = _inner(leaf)
        if inner and id(leaf) not in seen:
            seen.add(id(leaf))
            for part in inner.values():
                _collect(part, found, seen)


def _mapped(value: Any, change: Callable[[Tensor], Tensor], copies: dict[int, Any]) -> Any:
    def changed(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return change(leaf)
        if id(leaf) in copies:
            return copies[id(leaf)]
        if not tensors_in(leaf):
            return leaf
        copied = copies[id(leaf)] = _copied(leaf)
        for key, part in _inner(leaf).items():
            new = _mapped(part, change, copies)
            if isinstance(copied, MutableMapping):
                copied[key] = new
            else:
                object.__setattr__(copied, key, new)  # also where the dataclass is frozen
        return copied

    return tree_map(changed, value)


def _copied(leaf: Any) -> Any:
    if isinstance(leaf, Mapping) and not isinstance(leaf, MutableMapping):
        return dict(leaf)
    return copy.copy(leaf)


def _inner(leaf: Any) -> dict[Any, Any]:
    """Return the parts, by name, of an object that torch's trees take for a leaf."""
    if isinstance(leaf, Mapping):
        return dict(leaf)
    if is_dataclass(leaf) and not isinstance(leaf, type):
        return {field.name: getattr(leaf, field.name) for field in fields(leaf)}
    if not hasattr(leaf, "__dict__") or isinstance(leaf, (type, nn.Module)):
        return {}
    attributes = vars(leaf)
    inside = tree_leaves(attributes)
    # An object that holds no tensor itself may lead anywhere, such as to the whole model.
    plain = isinstance(leaf, SimpleNamespace)
    return dict(attributes) if plain or any(isinstance(part, Tensor) for part in inside) else {}
