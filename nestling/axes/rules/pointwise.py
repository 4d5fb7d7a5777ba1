"""Pointwise ops, copies and factories: dimensions that broadcast together are the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from nestling.axes.expression import Atom, Expression, constant
from nestling.axes.rules.table import rule
from nestling.axes.scales import number_of, scale_by


@rule(
    # Ops that are pointwise in fact but do not carry the tag.
    *("pointwise", "hardswish", "hardsigmoid", "silu", "mish", "relu6", "hardtanh", "elu"),
    *("leaky_relu", "softplus", "celu", "selu", "threshold", "nan_to_num", "logit", "gelu"),
    *("native_dropout", "bernoulli", "where", "masked_fill", "clamp", "copy", "prelu"),
    *("_prelu_kernel", "fill", "zero", "rand_like", "randn_like", "rrelu_with_noise", "relu"),
)
def pointwise(trace: Any, out: Any, *args: Any, **kwargs: Any) -> None:
    """Every dimension of the output is the one of all inputs that span it."""
    result = out[0] if isinstance(out, (tuple, list)) else out
    _note_number(trace, args)
    expressions: list[Expression | None] = [None] * result.dim()
    for tensor in tree_leaves((args, kwargs)):
        if not isinstance(tensor, Tensor):
            continue
        for back, expression in enumerate(reversed(trace.of(tensor))):
            dim = result.dim() - 1 - back
            if dim < 0 or result.shape[dim] == 1 or expression.size != result.shape[dim]:
                continue
            known = expressions[dim]
            if known is None:
                expressions[dim] = expression
            else:
                trace.unify(known, expression)
    filled = [
        expression if expression is not None else constant(size)
        for expression, size in zip(expressions, result.shape, strict=True)
    ]
    for tensor in tree_leaves(out):
        if isinstance(tensor, Tensor):
            trace.put(tensor, filled)


def _note_number(trace: Any, args: Any) -> None:
    """Note a scale whose number may come from a size: of the tensor, the last product or sum."""
    number = number_of(trace.op, args)
    if number is not None:
        near = list(trace.of(args[0]))
        if trace.works:
            near.append(trace.works[-1][1][-1])
        if trace.replays:
            near += next(reversed(trace.replays.values())).inputs[0]
        trace.scales.append(scale_by(len(trace.names), number, near))


@rule(
    *("clone", "alias", "detach", "_to_copy", "lift_fresh", "lift_fresh_copy", "contiguous"),
    *("zeros_like", "ones_like", "full_like", "empty_like", "dropout", "to", "view_as_real"),
)
def same(trace: Any, out: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """Same dimensions out as in."""
    expressions = trace.of(x)
    trace.put(out, [*expressions, constant(2)] if out.dim() > x.dim() else expressions)


@rule(
    *("zeros", "ones", "full", "empty", "scalar_tensor", "empty_strided"),
    *("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided", "rand", "randn"),
)
def factory(trace: Any, out: Tensor, *args: Any, **kwargs: Any) -> None:
    """A uniform tensor may change its size with the subnet: fresh atoms, and a size argument."""
    expressions: list[Expression] = [Atom(n) if n > 1 else constant(n) for n in out.shape]
    trace.put(out, expressions)
    for size, expression in zip(out.shape, expressions, strict=True):
        trace.size(size, expression)


@rule(
    *("device", "size", "stride", "numel", "is_contiguous", "sym_size", "sym_stride", "sym_numel"),
    *("_local_scalar_dense", "item", "equal", "is_same_size"),
    *("_assert_tensor_metadata", "_assert_async", "_assert_scalar"),
)
def scalar(trace: Any, out: Any, *args: Any, **kwargs: Any) -> None:
    """Ops that give no tensor couple nothing."""
    for tensor in tree_leaves(out):
        if isinstance(tensor, torch.Tensor):
            trace.put(tensor, [constant(size) for size in tensor.shape])
