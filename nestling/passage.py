"""Passages: what a residual block returns when a subnet of less depth passes it by.

A block that is passed by keeps its class and its place; it has no weights and no parts, and only
its `forward` is another one: it returns what the block was given (a block that adds to its input),
or zeros of that shape (a branch that is added by the code around it).
"""

from __future__ import annotations

import collections
import functools
import keyword
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from nestling.errors import ModelError

DEEPEST = 8  # levels of tuples, lists and named values
MOST = 1000  # items of one of them
KINDS = ("dict", "output", "named tuple", "object")


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


@dataclass(frozen=True, slots=True)
class Named:
    """What is returned under names.

    Attributes:
        kind: "dict"; "output" (a dict whose values are attributes too, and are counted); "named
            tuple"; "object" (plain attributes). A file names no class.
        names: of the values.
        items: the values.

    Raises:
        ValueError: another kind, or names that it cannot have.
    """

    kind: str
    names: tuple[str, ...]
    items: tuple[Passage, ...]

    def __post_init__(self) -> None:
        if self.kind not in KINDS or len(self.names) != len(self.items):
            raise ValueError(f"named values of the unknown kind {self.kind[:80]!r}")
        if len(set(self.names)) < len(self.names):
            raise ValueError("two values of one name")
        words = all(map(_is_word, self.names)) if self.kind != "dict" else True
        if not words or not all(name.isprintable() for name in self.names):
            raise ValueError(f"names that a {self.kind} cannot have: {str(self.names)[:80]}")


Passage: TypeAlias = Given | Several | Named | None
"""What a passed block returns: given tensors, and None, in tuples, lists and named values."""


class PassBy:
    """The forward of a block that is passed by: a plain object that can be copied and pickled.

    Example:
        >>> PassBy(Several((Given((0,)), None)))("hidden", mask=None)
        ('hidden', None)
    """

    def __init__(self, passage: Passage) -> None:
        self.passage = passage

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the passage says of the arguments.

        Raises:
            ModelError: the block is called without an argument that it hands on.
        """
        try:
            return _returned(self.passage, args, kwargs)
        except (LookupError, TypeError) as error:
            raise ModelError(
                "a block that is passed by hands on what it is given, but it is called with other "
                f"arguments than when the supernet was made ({error}); call the model as it was "
                "called then, or make the supernet with freeze='*.depth'"
            ) from error


class Output(dict[str, Any]):
    """A dict whose values are attributes too, and can be counted: as libraries' model outputs.

    Like those, it holds no None, but gives None for the attributes that it could have.

    Example:
        >>> out = Output(("hidden", "weights"), (1, None))
        >>> out.hidden, out["hidden"], out[0], out.weights, len(out)
        (1, 1, 1, None, 1)
    """

    def __init__(self, names: Sequence[str], values: Sequence[Any]) -> None:
        pairs = zip(names, values, strict=True)
        super().__init__((name, value) for name, value in pairs if value is not None)
        self._names = tuple(names)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._names:
            raise AttributeError(f"this output has no {name!r}")
        return self.get(name)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __missing__(self, key: str) -> Any:
        if key in self._names:
            return None
        raise KeyError(key)

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the values."""
        return tuple(self.values())


def _returned(passage: Passage, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    if passage is None:
        return None
    if isinstance(passage, Several):
        items = [_returned(item, args, kwargs) for item in passage.items]
        return items if passage.is_list else tuple(items)
    if isinstance(passage, Named):
        items = [_returned(item, args, kwargs) for item in passage.items]
        return _gathered(passage.kind, passage.names, items)
    first = passage.path[0]
    value = kwargs[first] if isinstance(first, str) else args[first]
    for key in passage.path[1:]:
        value = value[key]
    return torch.zeros_like(value) if passage.zero else value


def _gathered(kind: str, names: tuple[str, ...], values: Sequence[Any]) -> Any:
    if kind == "output":
        return Output(names, values)
    if kind == "named tuple":
        return _named_tuple(names)(*values)
    found = dict(zip(names, values, strict=True))
    return SimpleNamespace(**found) if kind == "object" else found


@functools.lru_cache(maxsize=64)
def _named_tuple(names: tuple[str, ...]) -> Any:
    return collections.namedtuple("Passed", names)


def fits(passage: Passage, args: Sequence[Any], kwargs: Mapping[str, Any], returned: Any) -> bool:
    """Return whether a block returned what a passage says, but for the values of its tensors.

    Where the passage says None, anything may stand: nobody reads it.

    Args:
        passage: of the block.
        args: that the block was called with.
        kwargs: that it was called with.
        returned: what it returned.
    """
    if passage is None:
        return True
    if isinstance(passage, Given):
        try:
            like = _returned(passage, args, kwargs)
        except (LookupError, TypeError):
            return False
        tensors = isinstance(returned, torch.Tensor) and isinstance(like, torch.Tensor)
        return tensors and returned.shape == like.shape
    if isinstance(passage, Several):
        values = list(returned) if isinstance(returned, (tuple, list)) else None
    elif isinstance(returned, Mapping):
        values = [returned.get(name) for name in passage.names]
    else:
        values = [getattr(returned, name, None) for name in passage.names]
    if values is None or len(values) != len(passage.items):
        return False
    pairs = zip(passage.items, values, strict=True)
    return all(fits(item, args, kwargs, value) for item, value in pairs)


def passed_by(block: nn.Module, passage: Passage, attributes: Mapping[str, Any]) -> nn.Module:
    """Return what stands in a subnet for a block that is passed by.

    Args:
        block: of the net.
        passage: what it returns.
        attributes: its plain attributes, copied; tensors among them are left out.
    """
    kind: Any = type(block)
    twin: nn.Module = kind.__new__(kind)
    # A tensor that it noted of a run would be stale; whoever reads it had better fail.
    twin.__dict__.update((k, None if _holds_tensor(v) else v) for k, v in attributes.items())
    for key in ("_parameters", "_buffers", "_modules"):
        twin.__dict__[key] = type(block.__dict__[key])()
    twin.__dict__["forward"] = PassBy(passage)
    twin.__dict__["extra_repr"] = functools.partial(str, "passed by")
    return twin


def _holds_tensor(value: Any) -> bool:
    return any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(value))


def to_json(passage: Passage) -> Any:
    """Return a passage as JSON values.

    They are null, ["given", 0], ["zeros", "x"], ["tuple", ...], or for named values
    ["dict", [NAME, ...], ...].
    """
    if passage is None:
        return None
    if isinstance(passage, Given):
        return ["zeros" if passage.zero else "given", *passage.path]
    if isinstance(passage, Named):
        return [passage.kind, list(passage.names), *map(to_json, passage.items)]
    return ["list" if passage.is_list else "tuple", *map(to_json, passage.items)]


def from_json(value: Any) -> Passage:
    """Return the passage that `to_json` wrote.

    Raises:
        ValueError: the value is not of that form.
    """
    return _read(value, DEEPEST)


def _read(value: Any, levels: int) -> Passage:
    if isinstance(value, list) and len(value) > MOST:
        raise ValueError(f"a passage of more than {MOST} items")
    match value:
        case None:
            return None
        case ["given" | "zeros" as word, _, *_] if all(map(_is_key, value[1:])):
            return Given(tuple(value[1:]), word == "zeros")
        case ["tuple" | "list" as word, *items] if levels:
            return Several(tuple(_read(item, levels - 1) for item in items), word == "list")
        case [str(kind), [*names], *items] if levels and all(isinstance(n, str) for n in names):
            return Named(kind, tuple(names), tuple(_read(item, levels - 1) for item in items))
    raise ValueError(f"not a passage: {str(value)[:80]}")


def _is_key(value: Any) -> bool:
    number = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST
    return number or (isinstance(value, str) and value.isidentifier() and value[:1] != "_")


def _is_word(name: str) -> bool:
    return name.isidentifier() and not name.startswith("_") and not keyword.iskeyword(name)
