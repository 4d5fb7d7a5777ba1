"""Indexing: where positions matter, a dimension is frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from nestling.axes.expression import constant
from nestling.axes.rules.table import rule


@rule("select", "unbind")
def select(trace: Any, out: Any, x: Tensor, dim: int = 0, *args: Any) -> None:
    """Single units are picked by number; harmless if only the shape of what is picked is used."""
    expressions = list(trace.of(x))
    picked = expressions.pop(dim)
    for tensor in out if isinstance(out, (tuple, list)) else [out]:
        trace.put(tensor, expressions)
        trace.doubt(tensor, picked, "units are indexed one by one")


@rule("index")
def index(trace: Any, out: Tensor, x: Tensor, indices: Sequence[Tensor | None]) -> None:
    """Advanced indexing: the indexed dimensions are frozen, the others stay."""
    places, front, new = _places(x, out.dim(), indices)
    expressions = list(trace.of(x))
    for place in places:
        trace.freeze(expressions[place], "indexed by a tensor")
    rest = [e for i, e in enumerate(expressions) if i not in places]
    fresh = [constant(n, "indexed by a tensor") for n in out.shape[front : front + new]]
    trace.put(out, [*rest[:front], *fresh, *rest[front:]])


def _places(x: Tensor, dims: int, indices: Sequence[Tensor | None]) -> tuple[list[int], int, int]:
    """Return the indexed dimensions of `x`, and where those of the indices stand in the result."""
    places: list[int] = []
    at = 0
    for entry in indices:
        width = entry.dim() if entry is not None and entry.dtype == torch.bool else 1
        if entry is not None:
            places += range(at, at + max(width, 1))
        at += max(width, 1)
    new = dims - (x.dim() - len(places))
    adjacent = places == list(range(places[0], places[-1] + 1))
    return places, places[0] if adjacent else 0, new


@rule("index_put")
def index_put(
    trace: Any, out: Tensor, x: Tensor, indices: Sequence[Tensor | None], values: Tensor, *args: Any
) -> None:
    """Values are written where the indices say: those dimensions are frozen, the others stay."""
    given = [entry for entry in indices if entry is not None]
    masks = [entry for entry in given if entry.dtype == torch.bool]
    width = max((1 if entry.dtype == torch.bool else entry.dim() for entry in given), default=1)
    places, front, _ = _places(x, 0, indices)
    expressions = trace.of(x)
    for place in places:
        trace.freeze(expressions[place], "indexed by a tensor")
    for mask in masks:
        for expression in trace.of(mask):
            trace.freeze(expression, "indexes a tensor")
    rest = [e for i, e in enumerate(expressions) if i not in places]
    target = [*rest[:front], *[None] * width, *rest[front:]]
    pairs = zip(reversed(target), reversed(trace.of(values)), strict=False)
    for expression, value in pairs:
        if expression is None:
            trace.freeze(value, "written where a tensor says")
        elif expression.size == value.size:
            trace.unify(expression, value)
    trace.put(out, expressions)


@rule("index_select", "flip", "roll", "cumsum", "cumprod", "cummax", "cummin", "logcumsumexp")
def along_dim(trace: Any, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """Positions along the given dimensions matter."""
    given = args[1] if trace.op == "roll" and len(args) > 1 else args[0] if args else None
    _positions(trace, out, x, trace.dims(kwargs.get("dim", given), x))


@rule("sort", "argsort", "topk", "kthvalue", "median", "mode")
def ranked(trace: Any, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """Entries of one dimension are compared with each other, by value."""
    counted = trace.op in ("topk", "kthvalue")
    given = [arg for arg in args if isinstance(arg, int) and not isinstance(arg, bool)]
    dim = kwargs.get("dim", given[counted] if len(given) > counted else -1)
    keep = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
    for result in keep:
        if result.dim() == x.dim():
            _positions(trace, result, x, trace.dims(dim, x))
        else:
            anywhere(trace, result, x)


@rule("tril", "triu")
def triangle(trace: Any, out: Tensor, x: Tensor, *args: Any) -> None:
    """The last two dimensions are compared by position."""
    _positions(trace, out, x, trace.dims((-2, -1), x))


@rule("gather")
def gather(trace: Any, out: Tensor, x: Tensor, dim: int, index: Tensor, **kwargs: Any) -> None:
    """Entries of one dimension are looked up; the others go with the index."""
    trace.put(out, _aligned(trace, x, trace.dims(dim, x), trace.of(index)))


@rule("scatter", "scatter_add", "scatter_reduce")
def scatter(
    trace: Any, out: Tensor, x: Tensor, dim: int, index: Tensor, *args: Any, **kwargs: Any
) -> None:
    """Entries of one dimension are written where the index says; the others go with it."""
    given = [index, *(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))]
    for tensor in given:
        if tensor.dim() == x.dim():
            _aligned(trace, x, trace.dims(dim, x), trace.of(tensor))
            for each in trace.dims(dim, x):
                trace.freeze(trace.of(tensor)[each], "written where a tensor says")
    trace.put(out, trace.of(x))


@rule("index_add", "index_copy", "index_fill", "index_reduce")
def index_add(
    trace: Any, out: Tensor, x: Tensor, dim: int, index: Tensor, *args: Any, **kwargs: Any
) -> None:
    """Slices of one dimension are written where the index says; the others stay."""
    for tensor in args:
        if isinstance(tensor, Tensor) and tensor.dim() == x.dim():
            _aligned(trace, x, trace.dims(dim, x), trace.of(tensor))
            for each in trace.dims(dim, x):
                trace.freeze(trace.of(tensor)[each], "written where a tensor says")
    for each in trace.dims(dim, x):
        trace.freeze(trace.of(x)[each], "written where a tensor says")
    trace.put(out, trace.of(x))


def _aligned(trace: Any, x: Tensor, dims: Sequence[int], others: Sequence[Any]) -> list[Any]:
    """Freeze the given dimensions of `x` and make the others those of a second tensor."""
    result = []
    for i, (own, other) in enumerate(zip(trace.of(x), others, strict=True)):
        if i in dims:
            trace.freeze(own, "looked up by value")
        elif own.size == other.size:
            trace.unify(own, other)
        else:
            trace.freeze(own, "a part of it is looked up")
            trace.freeze(other, "looks up a part")
        result.append(other)
    return result


@rule("take", "masked_select", "nonzero", "bincount", "histc", "searchsorted", "bucketize")
@rule("masked_scatter", "select_scatter", "slice_scatter", "diagonal_scatter", "unique_consecutive")
def anywhere(trace: Any, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """Positions along every dimension matter."""
    for tensor in tree_leaves((x, args, kwargs)):
        if isinstance(tensor, Tensor):
            for expression in trace.of(tensor):
                trace.freeze(expression, "positions matter")
    for tensor in tree_leaves(out):
        if isinstance(tensor, Tensor):
            trace.put(tensor, [constant(n, "positions matter") for n in tensor.shape])


def _positions(trace: Any, out: Any, x: Tensor, dims: Sequence[int]) -> None:
    before = trace.of(x)
    for dim in dims:
        trace.freeze(before[dim], "positions matter")
    for result in tree_leaves(out):
        if isinstance(result, Tensor):
            constants = [constant(n, "positions matter") for n in result.shape]
            trace.put(result, [constants[i] if i in dims else e for i, e in enumerate(before)])
