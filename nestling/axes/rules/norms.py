"""Norms, reductions, softmax and pooling: ops whose value can depend on how many units there are.

Over a cut dimension they are not the masked full model: the proof replays them over the kept units.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from nestling.axes.expression import SPACE, Atom, Expression, constant, times
from nestling.axes.rules.table import rule


@rule(
    *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
    *("_batch_norm_with_update", "_batch_norm_no_update", "cudnn_batch_norm", "batch_norm"),
)
def batch_norm(trace: Any, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """Weight, bias and running statistics go with the channels."""
    channels = trace.of(x)[1]
    for parameter in args[:4]:
        if isinstance(parameter, Tensor):
            trace.unify(channels, trace.of(parameter)[0])
    trace.put(out[0] if isinstance(out, (tuple, list)) else out, trace.of(x))
    _constants(trace, out[1:] if isinstance(out, (tuple, list)) else ())


def _normalised_shape(args: list[Any], kwargs: dict[str, Any]) -> None:
    args[1] = list(args[0].shape[-len(args[1]) :])


@rule(
    *("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm"),
    replayed=True,
    resize=_normalised_shape,
)
def layer_norm(trace: Any, out: Any, x: Tensor, shape: Any, *args: Any, **kwargs: Any) -> None:
    """Normalises over the last dimensions; weight and bias go with them."""
    last = trace.of(x)[-len(shape) :]
    for parameter in args:
        if isinstance(parameter, Tensor):
            for one, other in zip(last, trace.of(parameter), strict=True):
                trace.unify(one, other)
    trace.put(out[0] if isinstance(out, (tuple, list)) else out, trace.of(x))
    for statistic in out[1:] if isinstance(out, (tuple, list)) else ():
        if statistic is not None:
            ones = [constant(1)] * (statistic.dim() - x.dim() + len(shape))
            trace.put(statistic, [*trace.of(x)[: -len(shape)], *ones])
    for size, expression in zip(shape, last, strict=True):
        trace.size(size, expression)


def _group_sizes(args: list[Any], kwargs: dict[str, Any]) -> None:
    channels, before, groups = args[0].shape[1], args[4], args[6]
    args[4], args[6] = channels, 1 if groups == 1 else groups * channels // before


@rule("native_group_norm", replayed=True, resize=_group_sizes)
def group_norm(
    trace: Any,
    out: Any,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    n: int,
    c: int,
    hw: int,
    groups: int,
    eps: float,
) -> None:
    """Channels are (groups, channels of a group): whole groups are cut, never inside one."""
    group: Expression = Atom(groups) if groups > 1 else constant(1)
    inside = Atom(c // groups)
    channels = trace.of(x)[1]
    trace.unify(channels, times([group, inside]))
    for parameter in (weight, bias):
        if parameter is not None:
            trace.unify(channels, trace.of(parameter)[0])
    if groups > 1:
        trace.freeze(inside, "channels of one group are normalised together: cut whole groups")
        trace.size(groups, group)
    trace.put(out[0], trace.of(x))
    for statistic in out[1:]:
        trace.put(statistic, [trace.of(x)[0], group])


@rule(
    *(
        "mean",
        "sum",
        "var",
        "var_mean",
        "std",
        "std_mean",
        "amax",
        "amin",
        "max",
        "min",
        "argmax",
        "argmin",
    ),
    *("all", "any", "prod", "logsumexp", "aminmax", "linalg_vector_norm", "norm", "nansum"),
    replayed=True,
)
def reduction(trace: Any, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """The dimensions that are reduced disappear."""
    rest = args[1:] if trace.op in ("linalg_vector_norm", "norm") else args
    dim = rest[0] if rest and not isinstance(rest[0], (float, bool, Tensor)) else kwargs.get("dim")
    if rest and isinstance(rest[0], Tensor):  # max(x, other) is pointwise
        trace.pointwise(out, x, *args, **kwargs)
        return
    dims = trace.dims(dim, x)
    if trace.op in ("argmax", "argmin"):
        for i in dims:
            trace.freeze(trace.of(x)[i], "its units are told apart by number")
    for result in tree_leaves(out):
        if isinstance(result, Tensor):
            keep = result.dim() == x.dim()
            trace.put(
                result,
                [
                    constant(1) if i in dims else e
                    for i, e in enumerate(trace.of(x))
                    if keep or i not in dims
                ],
            )


@rule("_weight_norm_interface", replayed=True)
def weight_norm(trace: Any, out: Any, v: Tensor, g: Tensor, dim: int = 0) -> None:
    """`g * v / |v|`: a norm for each unit of one dimension, over all other dimensions."""
    trace.unify(trace.of(v)[dim], trace.of(g)[dim])
    trace.put(out[0], trace.of(v))
    trace.put(out[1], trace.of(g))


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax", replayed=True)
def softmax(trace: Any, out: Tensor, x: Tensor, *args: Any) -> None:
    """Shares over the units of one dimension."""
    trace.put(out, trace.of(x))


@rule(
    *("max_pool2d_with_indices", "max_pool2d", "avg_pool2d", "_adaptive_avg_pool2d"),
    *("adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d"),
    *("upsample_bicubic2d", "_upsample_nearest_exact2d", "_upsample_bilinear2d_aa"),
    *("_upsample_bicubic2d_aa", "reflection_pad2d", "replication_pad2d", "mkldnn_max_pool2d"),
    "fractional_max_pool2d",
)
def pool2d(trace: Any, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """Works inside the last two dimensions."""
    _spatial(trace, out, x, 2)


@rule(
    *("max_pool3d_with_indices", "avg_pool3d", "_adaptive_avg_pool3d", "adaptive_max_pool3d"),
    *("_upsample_nearest_exact3d", "adaptive_avg_pool3d", "fractional_max_pool3d"),
    *("upsample_nearest3d", "upsample_trilinear3d", "reflection_pad3d", "replication_pad3d"),
)
def pool3d(trace: Any, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """Works inside the last three dimensions."""
    _spatial(trace, out, x, 3)


@rule(
    *("avg_pool1d", "adaptive_avg_pool1d", "max_pool1d", "max_pool1d_with_indices"),
    *("upsample_nearest1d", "_upsample_nearest_exact1d", "upsample_linear1d"),
    *("reflection_pad1d", "replication_pad1d"),
)
def pool1d(trace: Any, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """Works inside the last dimension."""
    _spatial(trace, out, x, 1)


def _spatial(trace: Any, out: Any, x: Tensor, dims: int) -> None:
    for expression in trace.of(x)[-dims:]:
        trace.freeze(expression, SPACE)
    for result in tree_leaves(out):
        if isinstance(result, Tensor):
            space = [constant(n, SPACE) for n in result.shape[-dims:]]
            trace.put(result, [*trace.of(x)[:-dims], *space])


def _constants(trace: Any, tensors: Any) -> None:
    for tensor in tree_leaves(tensors):
        if isinstance(tensor, Tensor):
            trace.put(tensor, [constant(size) for size in tensor.shape])
