"""Matrix products, convolutions and embeddings: where multiply-accumulates are spent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from nestling.axes.expression import SPACE, Atom, Expression, constant, live, times
from nestling.axes.rules.table import rule


@rule("mm", "bmm", "mv", "dot", "vdot")
def matmul(trace: Any, out: Tensor, left: Tensor, right: Tensor) -> None:
    """The inner dimensions are the same."""
    trace.put(out, _contract(trace, left, right))


@rule("addmm", "baddbmm", "addmv", "addbmm")
def addmm(trace: Any, out: Tensor, bias: Tensor, left: Tensor, right: Tensor, **kw: Any) -> None:
    """A product and a sum."""
    expressions = _contract(trace, left, right)
    for one, other in zip(reversed(expressions), reversed(trace.of(bias)), strict=False):
        if one.size == other.size:
            trace.unify(one, other)
    trace.put(out, expressions)


def _contract(trace: Any, left: Tensor, right: Tensor) -> list[Expression]:
    a, b = trace.of(left), trace.of(right)
    inner = b[-2] if right.dim() > 1 else b[-1]
    trace.unify(a[-1], inner)
    batch = []
    for one, other in zip(a[:-2], b[:-2], strict=False):
        trace.unify(one, other)
        batch.append(one)
    rows = [a[-2]] if left.dim() > 1 else []
    columns = [b[-1]] if right.dim() > 1 else []
    trace.work([*batch, *rows, *columns, inner])
    if columns and trace.is_weight(right):
        trace.produce(columns[0], "neurons")
    # A weight makes units along all of its dimensions but the contracted one.
    contracted = right.dim() - 1 - len(columns)
    trace.make(right, *(dim for dim in range(right.dim()) if dim != contracted))
    trace.make(left, *range(left.dim() - 1))
    if not trace.is_weight(right) and not trace.is_weight(left):
        trace.replay()  # neither side is masked: what a cut unit holds must not count
        if any(e.size > 1 for e in rows) and any(e.size > 1 for e in columns):
            _attend(trace, batch, [*rows, *columns, inner])
    return [*batch, *rows, *columns]


def _attend(trace: Any, batch: Sequence[Expression], inside: Sequence[Expression]) -> None:
    """Name the axes of attention that is written with plain products of activations."""
    heads = [expression for expression in batch if live(expression)]
    for expression in heads:
        trace.produce(expression, "heads")
    for expression in inside if heads else ():
        trace.produce(expression, "head_size")


@rule("linear")
def linear(trace: Any, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """`x @ weight.T + bias`."""
    w = trace.of(weight)
    trace.unify(trace.of(x)[-1], w[1])
    if bias is not None:
        trace.unify(trace.of(bias)[0], w[0])
    expressions = [*trace.of(x)[:-1], w[0]]
    trace.work([*expressions, w[1]])
    trace.produce(w[0], "neurons")
    trace.make(weight, 0)
    if not trace.is_weight(weight):
        trace.replay()
    trace.put(out, expressions)


@rule("_grouped_mm", "grouped_mm_fallback")
def grouped_mm(
    trace: Any, out: Tensor, x: Tensor, weight: Tensor, *args: Any, **kwargs: Any
) -> None:
    """Runs of rows, each with a matrix of its own: an expert for the tokens sent to it.

    Shapes (rows, inner) and (experts, inner, columns) give (rows, columns).
    """
    if x.dim() != 2 or weight.dim() != 3:
        raise ValueError("only rows grouped by expert are known")
    rows, w = trace.of(x), trace.of(weight)
    trace.freeze(w[0], "experts are chosen by number")
    trace.unify(rows[1], w[1])
    trace.work([rows[0], w[1], w[2]])
    trace.produce(w[2], "neurons")
    trace.make(weight, 2)
    if not trace.is_weight(weight):
        trace.replay()
    trace.put(out, [rows[0], w[2]])


def _conv_sizes(args: list[Any], kwargs: dict[str, Any]) -> None:
    if args[8] > 1:  # groups; a transposed convolution does not tell its groups by its shapes
        if args[6]:
            raise ValueError("a grouped transposed convolution with computed weights")
        args[8] = args[0].shape[1] // args[1].shape[1]


@rule("convolution", "_convolution", resize=_conv_sizes)
def convolution(
    trace: Any,
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    *args: Any,
) -> None:
    """Channels in and out; with groups both are (groups, channels of one group)."""
    inputs, w = trace.of(x), trace.of(weight)
    for kernel in w[2:]:
        trace.freeze(kernel, "kernel size")
    for space in inputs[2:]:
        trace.freeze(space, SPACE)
    group: Expression = Atom(groups) if groups > 1 else constant(1)
    if groups > 1:
        trace.size(groups, group)
    trace.unify(w[0], times([group, Atom(weight.shape[0] // groups)]))
    within = times([group, w[1]])
    taken, channels = (w[0], within) if transposed else (within, w[0])
    trace.unify(inputs[1], taken)
    if bias is not None:
        trace.unify(trace.of(bias)[0], channels)
    trace.work([inputs[0], *map(constant, (x if transposed else out).shape[2:]), *w])
    inputs_of_group = weight.shape[0] // groups if transposed else weight.shape[1]
    if groups == 1 or inputs_of_group > 1:  # a depthwise convolution only passes channels on
        trace.produce(channels, "channels")
        trace.make(weight, int(transposed))
        if groups > 1:
            trace.produce(group, "paths")
    if not trace.is_weight(weight):
        trace.replay()
    trace.put(out, [inputs[0], channels, *(constant(n, SPACE) for n in out.shape[2:])])


@rule("_trilinear")
def trilinear(
    trace: Any,
    out: Tensor,
    one: Tensor,
    two: Tensor,
    three: Tensor,
    *dims: Sequence[int],
) -> None:
    """Products of three tensors that are spread over each other's dimensions, then summed."""
    total = out.dim() + len(dims[3])
    shared: list[Expression | None] = [None] * total
    for tensor, missing in zip((one, two, three), dims, strict=False):
        present = [dim for dim in range(total) if dim not in missing]
        for dim, expression in zip(present, trace.of(tensor), strict=True):
            known = shared[dim]
            if known is None or known.size == 1:
                shared[dim] = expression
            elif expression.size != 1:
                trace.unify(known, expression)
    found = [expression if expression is not None else constant(1) for expression in shared]
    trace.work(found)
    if trace.is_weight(two):
        trace.produce(trace.of(two)[0], "neurons")
        trace.make(two, 0)
    else:
        trace.replay()
    trace.put(out, [e for dim, e in enumerate(found) if dim not in dims[3]])


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(
    trace: Any, out: Any, weight: Tensor, index: Tensor, offsets: Tensor, *args: Any
) -> None:
    """Sums, means or maxima of rows; columns are elastic."""
    trace.freeze(trace.of(weight)[0], "rows are looked up by value")
    columns = trace.of(weight)[1]
    trace.produce(columns, "embedding")
    trace.make(weight, 1)
    trace.put(out[0], [constant(out[0].shape[0]), columns])
    for tensor in out[1:]:
        found = [constant(n) for n in tensor.shape]
        if tensor.dim() == 2:  # which row was the largest, for each column
            found[1] = columns
        trace.put(tensor, found)


@rule("embedding")
def embedding(trace: Any, out: Tensor, weight: Tensor, index: Tensor, *args: Any) -> None:
    """Rows are looked up by value; columns are elastic."""
    trace.freeze(trace.of(weight)[0], "rows are looked up by value")
    trace.produce(trace.of(weight)[1], "embedding")
    trace.make(weight, 1)
    trace.put(out, [*trace.of(index), trace.of(weight)[1]])
