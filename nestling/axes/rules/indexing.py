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
    """Single units are picked by number."""
    expressions = list(trace.of(x))
    trace.freeze(expressions.pop(dim), "units are indexed one by one")
    for tensor in out if isinstance(out, (tuple, list)) else [out]:
        trace.put(tensor, expressions)


@rule("index")
def index(trace: Any, out: Tensor, x: Tensor, indices: Sequence[Tensor | None]) -> None:
    """Advanced indexing: the indexed dimensions are frozen, the others stay."""
    expressions = list(trace.of(x))
    places: list[int] = []
    at = 0
    for entry in indices:
        width = entry.dim() if entry is not None and entry.dtype == torch.bool else 1
        if entry is not None:
            places += range(at, at + max(width, 1))
        at += max(width, 1)
    for place in places:
        trace.freeze(expressions[place], "indexed by a tensor")
    rest = [e for i, e in enumerate(expressions) if i not in places]
    new = out.dim() - len(rest)
    adjacent = places == list(range(places[0], places[-1] + 1))
    front = places[0] if adjacent else 0
    fresh = [constant(n, "indexed by a tensor") for n in out.shape[front : front + new]]
    trace.put(out, [*rest[:front], *fresh, *rest[front:]])


@rule("index_select", "flip", "roll", "cumsum", "cumprod")
def along_dim(trace: Any, out: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """Positions along the given dimensions matter."""
    given = args[1] if trace.op == "roll" and len(args) > 1 else args[0] if args else None
    _positions(trace, out, x, trace.dims(kwargs.get("dim", given), x))


@rule(
    *("gather", "tril", "triu", "sort", "topk", "index_put", "scatter", "scatter_add"),
    *("select_scatter", "slice_scatter", "take", "masked_select", "nonzero", "bincount"),
)
def anywhere(trace: Any, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """Positions along every dimension matter."""
    for tensor in tree_leaves((args, kwargs)):
        if isinstance(tensor, Tensor):
            for expression in trace.of(tensor):
                trace.freeze(expression, "positions matter")
    for expression in trace.of(x):
        trace.freeze(expression, "positions matter")
    for tensor in tree_leaves(out):
        if isinstance(tensor, Tensor):
            trace.put(tensor, [constant(n, "positions matter") for n in tensor.shape])


def _positions(trace: Any, out: Tensor, x: Tensor, dims: Sequence[int]) -> None:
    expressions = list(trace.of(x))
    for dim in dims:
        trace.freeze(expressions[dim], "positions matter")
        expressions[dim] = constant(out.shape[dim], "positions matter")
    trace.put(out, expressions)
