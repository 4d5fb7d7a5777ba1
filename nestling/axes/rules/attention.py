"""Scaled dot-product attention: heads, head sizes and positions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from nestling.axes.expression import Atom, Expression, constant, times
from nestling.axes.rules.table import rule


def _evaluate(op: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Call the op on queries, keys and values whose head sizes may differ now.

    Fused kernels want one head size: the smaller one is padded with zeros, which add nothing.
    """
    q, _, v = args[:3]
    own, other = q.shape[-1], v.shape[-1]
    if own == other:
        return op(*args, **kwargs)
    most = max(own, other)
    padded = [F.pad(tensor, (0, most - tensor.shape[-1])) for tensor in args[:3]]
    if kwargs.get("scale") is None:
        kwargs = {**kwargs, "scale": 1 / math.sqrt(own)}
    out = op(*padded, *args[3:], **kwargs)
    if isinstance(out, (tuple, list)):
        return (out[0][..., :other], *out[1:])
    return out[..., :other]


@rule(
    *("scaled_dot_product_attention", "_scaled_dot_product_attention_math"),
    *("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu"),
    *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"),
    *("_scaled_dot_product_fused_attention_overrideable",),
    replayed=True,
    evaluate=_evaluate,
)
def attention(
    trace: Any, out: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any
) -> None:
    """Queries and keys share the head size, keys and values the positions, all the heads."""
    queries, keys, values = trace.of(q), trace.of(k), trace.of(v)
    result = out[0] if isinstance(out, (tuple, list)) else out
    trace.unify(queries[-1], keys[-1])
    trace.unify(keys[-2], values[-2])
    for i in range(q.dim() - 2):
        trace.unify(keys[i], values[i])
        if q.shape[i] == k.shape[i]:
            trace.unify(queries[i], keys[i])
        else:
            group = Atom(q.shape[i] // k.shape[i])
            trace.unify(queries[i], times([keys[i], group]))
            trace.size(group.size, group)
    leaves = tree_leaves((args, kwargs))
    mask = next((leaf for leaf in leaves if isinstance(leaf, Tensor)), None)
    if mask is not None:
        against = [keys[-2], queries[-2], *queries[-3::-1]]
        for one, other in zip(reversed(trace.of(mask)), against, strict=False):
            if one.size == other.size:
                trace.unify(one, other)
    for i in range(1, q.dim() - 2):
        trace.produce(queries[i], "heads")
    for size in (queries[-1], values[-1]):
        trace.produce(size, "head_size")
    trace.work([*queries[:-1], keys[-2], queries[-1]])
    trace.work([*queries[:-1], keys[-2], values[-1]])
    trace.put(result, [*queries[:-1], values[-1]])
    for tensor in tree_leaves(out[1:] if isinstance(out, (tuple, list)) else ()):
        if isinstance(tensor, Tensor):
            trace.put(tensor, _statistic(tensor, queries))


def _statistic(tensor: Tensor, queries: list[Expression]) -> list[Expression]:
    """Return the dimensions of what the op returns beside its result: one number a query."""
    sizes = [expression.size for expression in queries[:-1]]
    return queries[:-1] if list(tensor.shape) == sizes else [*map(constant, tensor.shape)]
