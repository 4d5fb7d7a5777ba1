"""Structure: the tensors inside whatever a model takes or returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import SimpleNamespace
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in nested lists, dicts, dataclasses and namespaces, in a fixed order.

    Example:
        >>> len(tensors_in({"logits": torch.zeros(2), "features": [torch.zeros(3), None]}))
        2
    """
    found: list[Tensor] = []
    _collect(value, found, set())
    return found


def _collect(value: Any, found: list[Tensor], seen: set[int]) -> None:
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            found.append(leaf)
            continue
        inner = _inner(leaf)
        if inner and id(leaf) not in seen:
            seen.add(id(leaf))
            for part in inner:
                _collect(part, found, seen)


def _inner(leaf: Any) -> list[Any]:
    """Return the parts of an object that torch's trees take for a leaf."""
    if is_dataclass(leaf) and not isinstance(leaf, type):
        return [getattr(leaf, field.name) for field in fields(leaf)]
    if isinstance(leaf, SimpleNamespace):
        return list(vars(leaf).values())
    if isinstance(leaf, Mapping):
        return list(leaf.values())
    return []
