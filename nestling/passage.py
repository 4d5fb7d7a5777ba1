"""Passages: what a residual block returns when a subnet of less depth passes it by.

A block that is passed by keeps its class and its place; it has no weights and no parts, and only
its `forward` is another one: it returns what the block was given (a block that adds to its input),
or zeros of that shape (a branch that is added by the code around it).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

DEEPEST = 8  # levels of tuples and lists


@dataclass(frozen=True, slots=True)
class Given:
    """A tensor that the block is given.

    Attributes:
        path: the position or keyword of the argument, then the way inside of it.
        zero: whether zeros of its shape are returned in its place.
    """

    path: tuple[int | str, ...]
    zero: bool = False


@dataclass(frozen=True, slots=True)
class Several:
    """A tuple, or a list, of what is returned."""

    items: tuple[Passage, ...]
    is_list: bool = False


Passage: TypeAlias = Given | Several | None
"""What a passed block returns: given tensors, and None, in tuples and lists."""


class PassBy:
    """The forward of a block that is passed by: a plain object that can be copied and pickled.

    Example:
        >>> PassBy(Several((Given((0,)), None)))("hidden", mask=None)
        ('hidden', None)
    """

    def __init__(self, passage: Passage) -> None:
        self.passage = passage

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the passage says of the arguments."""
        return _returned(self.passage, args, kwargs)


def _returned(passage: Passage, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    if passage is None:
        return None
    if isinstance(passage, Several):
        items = [_returned(item, args, kwargs) for item in passage.items]
        return items if passage.is_list else tuple(items)
    first = passage.path[0]
    value = kwargs[first] if isinstance(first, str) else args[first]
    for key in passage.path[1:]:
        value = value[key]
    return torch.zeros_like(value) if passage.zero else value


def passed_by(block: nn.Module, passage: Passage, attributes: Mapping[str, Any]) -> nn.Module:
    """Return what stands in a subnet for a block that is passed by.

    Args:
        block: of the net.
        passage: what it returns.
        attributes: its plain attributes, copied.
    """
    kind: Any = type(block)
    twin: nn.Module = kind.__new__(kind)
    twin.__dict__.update(attributes)
    for key in ("_parameters", "_buffers", "_modules"):
        twin.__dict__[key] = type(block.__dict__[key])()
    twin.__dict__["forward"] = PassBy(passage)
    twin.__dict__["extra_repr"] = functools.partial(str, "passed by")
    return twin


def to_json(passage: Passage) -> Any:
    """Return a passage as JSON values: null, ["given", 0], ["zeros", "x"] or ["tuple", ...]."""
    if passage is None:
        return None
    if isinstance(passage, Given):
        return ["zeros" if passage.zero else "given", *passage.path]
    return ["list" if passage.is_list else "tuple", *map(to_json, passage.items)]


def from_json(value: Any) -> Passage:
    """Return the passage that `to_json` wrote.

    Raises:
        ValueError: the value is not of that form.
    """
    return _read(value, DEEPEST)


def _read(value: Any, levels: int) -> Passage:
    match value:
        case None:
            return None
        case ["given" | "zeros" as word, _, *_] if all(map(_is_key, value[1:])):
            return Given(tuple(value[1:]), word == "zeros")
        case ["tuple" | "list" as word, *items] if levels:
            return Several(tuple(_read(item, levels - 1) for item in items), word == "list")
    raise ValueError(f"not a passage: {str(value)[:80]}")


def _is_key(value: Any) -> bool:
    number = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1000
    return number or (isinstance(value, str) and value.isidentifier())
