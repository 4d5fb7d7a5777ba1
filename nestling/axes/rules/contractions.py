"""Matrix products, convolutions and embeddings: where multiply-accumulates are spent."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nestling.axes.expression import Atom, Expression, constant, times
from nestling.axes.rules.table import rule


@rule("mm", "bmm", "mv", "dot", "matmul")
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
    return [*batch, *rows, *columns]


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
    trace.put(out, expressions)


@rule("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution", "conv2d")
def convolution(
    trace: Any,
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    transposed: bool = False,
    output_padding: Any = 0,
    groups: int = 1,
    *args: Any,
) -> None:
    """Channels in and out; with groups both are (groups, channels of one group)."""
    inputs, w = trace.of(x), trace.of(weight)
    for kernel in w[2:]:
        trace.freeze(kernel, "kernel size")
    group: Expression = Atom(groups) if groups > 1 else constant(1)
    if groups > 1:
        trace.size(groups, group)
    if transposed:  # weight is (groups * channels in, channels out of one group, ...)
        trace.unify(inputs[1], w[0])
        trace.unify(w[0], times([group, Atom(weight.shape[0] // groups)]))
        channels = times([group, w[1]])
    else:  # weight is (groups * channels out of one group, channels in of one group, ...)
        trace.unify(w[0], times([group, Atom(weight.shape[0] // groups)]))
        trace.unify(inputs[1], times([group, w[1]]))
        channels = w[0]
    if bias is not None:
        trace.unify(trace.of(bias)[0], channels)
    spatial = (x if transposed else out).shape[2:]
    trace.work([inputs[0], *map(constant, spatial), *w])
    inputs_of_group = weight.shape[0] // groups if transposed else weight.shape[1]
    if groups == 1 or inputs_of_group > 1:  # a depthwise convolution only passes channels on
        trace.produce(channels, "channels")
        if groups > 1:
            trace.produce(group, "paths")
    trace.put(out, [inputs[0], channels, *(constant(n, "space") for n in out.shape[2:])])


@rule("embedding")
def embedding(trace: Any, out: Tensor, weight: Tensor, index: Tensor, *args: Any) -> None:
    """Rows are looked up by value; columns are elastic."""
    trace.freeze(trace.of(weight)[0], "rows are looked up by value")
    trace.produce(trace.of(weight)[1], "embedding")
    trace.put(out, [*trace.of(index), trace.of(weight)[1]])
