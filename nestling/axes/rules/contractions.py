"""Matrix products, convolutions and embeddings: where multiply-accumulates are spent."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nestling.axes.expression import Atom, Expression, constant, times
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
    if not trace.is_weight(right) and not trace.is_weight(left):
        trace.replay()  # neither side is masked: what a cut unit holds must not count
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
    if not trace.is_weight(weight):
        trace.replay()
    trace.put(out, expressions)


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
        trace.freeze(space, "space")
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
        if groups > 1:
            trace.produce(group, "paths")
    if not trace.is_weight(weight):
        trace.replay()
    trace.put(out, [inputs[0], channels, *(constant(n, "space") for n in out.shape[2:])])


@rule("embedding")
def embedding(trace: Any, out: Tensor, weight: Tensor, index: Tensor, *args: Any) -> None:
    """Rows are looked up by value; columns are elastic."""
    trace.freeze(trace.of(weight)[0], "rows are looked up by value")
    trace.produce(trace.of(weight)[1], "embedding")
    trace.put(out, [*trace.of(index), trace.of(weight)[1]])
