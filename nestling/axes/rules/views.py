"""Views, concatenation and padding: dimensions are regrouped, split, moved and joined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from nestling.axes.expression import (
    SPACE,
    Atom,
    Expression,
    constant,
    find,
    join,
    live,
    split,
    times,
)
from nestling.axes.rules.table import rule


@rule("view", "_unsafe_view", "reshape", "_reshape_alias")
def view(trace: Any, out: Tensor, x: Tensor, *args: Any) -> None:
    """Regroup: the smallest groups of dimensions of equal product are the same product."""
    if out.numel() == 0:
        trace.put(out, [constant(size) for size in out.shape])
        return
    before, result = trace.of(x), []
    for sources, targets in _groups(x.shape, out.shape):
        if len(sources) == len(targets) == 1:
            result.append(before[sources[0]])
            continue
        fresh: list[Expression] = [
            Atom(out.shape[t]) if out.shape[t] > 1 else constant(1) for t in targets
        ]
        trace.unify(times(before[s] for s in sources), times(fresh))
        result += fresh
    trace.put(out, result)
    for size, expression in zip(out.shape, result, strict=True):
        trace.size(size, expression)


def _groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Return the smallest groups of source and target dimensions whose products agree."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        sources, targets, p, q = [], [], 1, 1
        if i < len(before):
            sources, p, i = [i], before[i], i + 1
        if j < len(after):
            targets, q, j = [j], after[j], j + 1
        while p != q:
            if p < q:
                sources.append(i)
                p, i = p * before[i], i + 1
            else:
                targets.append(j)
                q, j = q * after[j], j + 1
        groups.append((sources, targets))
    return groups


@rule("t", "numpy_T")
def transpose_all(trace: Any, out: Tensor, x: Tensor) -> None:
    """Reverse the dimensions."""
    trace.put(out, trace.of(x)[::-1])


@rule("transpose", "swapaxes")
def transpose(trace: Any, out: Tensor, x: Tensor, one: int, other: int) -> None:
    """Swap two dimensions."""
    expressions = list(trace.of(x))
    expressions[one], expressions[other] = expressions[other], expressions[one]
    trace.put(out, expressions)


@rule("permute")
def permute(trace: Any, out: Tensor, x: Tensor, dims: Sequence[int]) -> None:
    """Move the dimensions."""
    expressions = trace.of(x)
    trace.put(out, [expressions[dim] for dim in dims])


@rule("unsqueeze")
def unsqueeze(trace: Any, out: Tensor, x: Tensor, dim: int) -> None:
    """Insert a dimension of one entry."""
    expressions = list(trace.of(x))
    expressions.insert(dim % out.dim(), constant(1))  # in place, x has its new shape already
    trace.put(out, expressions)


@rule("squeeze")
def squeeze(trace: Any, out: Tensor, x: Tensor, dim: Any = None) -> None:
    """Drop dimensions of one entry."""
    before = trace.of(x)  # not x.shape: in place, that is the new one already
    given = range(len(before)) if dim is None else [dim] if isinstance(dim, int) else dim
    dims = [number % max(len(before), 1) for number in given]
    trace.put(out, [e for i, e in enumerate(before) if not (i in dims and e.size == 1)])


@rule("expand")
def expand(trace: Any, out: Tensor, x: Tensor, size: Sequence[int], **kwargs: Any) -> None:
    """A dimension of one entry that is expanded is a free axis of copies."""
    front = [constant(1)] * (out.dim() - x.dim())
    result: list[Expression] = []
    for expression, length in zip([*front, *trace.of(x)], out.shape, strict=True):
        result.append(expression if expression.size == length else Atom(length))
        trace.size(length, result[-1])
    trace.put(out, result)


@rule("repeat", "tile")
def repeat(trace: Any, out: Tensor, x: Tensor, repeats: Sequence[int]) -> None:
    """Copies stand outside of what is copied."""
    front = [constant(1)] * (out.dim() - x.dim())
    pairs = zip([*front, *trace.of(x)], repeats, strict=True)
    trace.put(out, [e if n == 1 else times([Atom(n), e]) for e, n in pairs])


@rule("slice")
def slice_(
    trace: Any,
    out: Tensor,
    x: Tensor,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> None:
    """A range of a dimension is a part of it."""
    expressions = list(trace.of(x))
    size = x.shape[dim]
    if out.shape[dim] != size:
        low = min(max((start or 0) + (size if (start or 0) < 0 else 0), 0), size)
        if step == 1:
            high = low + out.shape[dim]
            expressions[dim] = piece(trace, expressions[dim], low, high)
            trace.size(high - low, expressions[dim])
            trace.size(low, piece(trace, trace.of(x)[dim], 0, low))
        else:
            expressions[dim] = _strided(trace, expressions[dim], low, step, out.shape[dim])
    trace.put(out, expressions)


def _strided(trace: Any, expression: Expression, start: int, step: int, taken: int) -> Expression:
    """Return what every n-th unit is: the units are (taken, n) where each group gives one."""
    if start >= step or taken * step != expression.size:
        trace.freeze(expression, "every n-th unit is taken")
        return constant(taken)
    unit = Atom(taken)
    trace.unify(expression, times([unit, constant(step, "one of every n units is taken")]))
    return unit


@rule("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "tensor_split")
def split_(trace: Any, out: Sequence[Tensor], x: Tensor, size: Any = None, dim: int = 0) -> None:
    """Consecutive parts of a dimension."""
    start = 0
    for part in out:
        expressions = list(trace.of(x))
        stop = start + part.shape[dim]
        expressions[dim] = piece(trace, expressions[dim], start, stop)
        trace.put(part, expressions)
        trace.size(part.shape[dim], expressions[dim])
        start = stop
    if isinstance(size, int) and len({part.shape[dim] for part in out}) == 1:
        for part in out[1:]:  # one number for all: they stay alike
            trace.unify(trace.of(out[0])[dim], trace.of(part)[dim])


def piece(trace: Any, expression: Expression, start: int, stop: int) -> Expression:
    """Return the part of an expression from `start` to `stop`; freeze it inside a unit."""
    halves = split(expression, stop)
    if halves is not None:
        halves = split(halves[0], start)
    if halves is not None:
        return halves[1]
    trace.freeze(expression, "cut inside a unit")
    return constant(stop - start, "cut inside a unit")


@rule("as_strided")
def as_strided(
    trace: Any, out: Tensor, x: Tensor, size: Sequence[int], stride: Sequence[int], *args: Any
) -> None:
    """The strides of dimensions with one entry say nothing: the tensor may stay as it is."""
    steps = zip(x.shape, x.stride(), stride, strict=False)
    if x.shape != out.shape or any(n > 1 and one != other for n, one, other in steps):
        raise ValueError("other entries of the memory are looked at")
    trace.put(out, trace.of(x))


@rule("cat", "concat", "concatenate")
def cat(trace: Any, out: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> None:
    """The parts follow one another; all other dimensions are the same."""
    parts = [tensor for tensor in tensors if tensor.dim() == out.dim()]
    dim %= out.dim()
    expressions = list(trace.of(parts[0]))
    for tensor in parts[1:]:
        for i, expression in enumerate(trace.of(tensor)):
            if i != dim:
                trace.unify(expressions[i], expression)
    expressions[dim] = join(trace.of(tensor)[dim] for tensor in parts)
    trace.put(out, expressions)


@rule("stack")
def stack(trace: Any, out: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> None:
    """Equal tensors along a new dimension."""
    expressions = list(trace.of(tensors[0]))
    for tensor in tensors[1:]:
        for one, other in zip(expressions, trace.of(tensor), strict=True):
            trace.unify(one, other)
    expressions.insert(dim % out.dim(), constant(len(tensors), "stacked tensors"))
    trace.put(out, expressions)


@rule("constant_pad_nd")
def pad(trace: Any, out: Tensor, x: Tensor, amounts: Sequence[int], *args: Any) -> None:
    """Padding of an elastic dimension joins units that can shrink on their own (zeros)."""
    expressions = list(trace.of(x))
    for i in range(len(amounts) // 2):
        dim = x.dim() - 1 - i
        low, high = amounts[2 * i], amounts[2 * i + 1]
        if not low and not high:
            continue
        if low < 0 or high < 0 or not live(expressions[dim]):
            trace.freeze(expressions[dim], "padded with a negative amount")
            expressions[dim] = constant(out.shape[dim], "padding")
            continue
        before, after = Atom(low), Atom(high)
        trace.size(low, before)
        trace.size(high, after)
        expressions[dim] = join([before, find(expressions[dim]), after])
    trace.put(out, expressions)


@rule("glu")
def glu(trace: Any, out: Tensor, x: Tensor, dim: int = -1) -> None:
    """The first half of a dimension, gated by the second."""
    expressions = list(trace.of(x))
    half = out.shape[dim]
    gated = piece(trace, expressions[dim], 0, half)
    trace.unify(gated, piece(trace, trace.of(x)[dim], half, 2 * half))
    expressions[dim] = gated
    trace.put(out, expressions)


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(trace: Any, out: Tensor, x: Tensor, groups: int) -> None:
    """Channels (groups, n) become (n, groups)."""
    expressions = list(trace.of(x))
    group, inside = Atom(groups), Atom(x.shape[1] // groups)
    trace.unify(expressions[1], times([group, inside]))
    trace.size(groups, group)
    expressions[1] = times([inside, group])
    trace.put(out, expressions)


@rule("pixel_unshuffle")
def pixel_unshuffle(trace: Any, out: Tensor, x: Tensor, factor: int) -> None:
    """Each channel becomes (factor, factor) channels."""
    for space in trace.of(x)[-2:]:
        trace.freeze(space, SPACE)
    square = constant(factor * factor, "pixel unshuffle")
    channels = times([trace.of(x)[-3], square])
    trace.put(out, [*trace.of(x)[:-3], channels, *map(constant, out.shape[-2:])])


@rule("pixel_shuffle")
def pixel_shuffle(trace: Any, out: Tensor, x: Tensor, factor: int) -> None:
    """Channels are (c, factor, factor); the factors go into space."""
    for space in trace.of(x)[-2:]:
        trace.freeze(space, SPACE)
    channels = Atom(out.shape[-3]) if out.shape[-3] > 1 else constant(1)
    square = constant(factor * factor, "pixel shuffle")
    trace.unify(trace.of(x)[-3], times([channels, square]))
    trace.put(out, [*trace.of(x)[:-3], channels, *map(constant, out.shape[-2:])])
