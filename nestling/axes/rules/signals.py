"""Signals: Fourier transforms, sliding windows, sampling on grids, complex numbers, distances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from nestling.axes.expression import SPACE, Atom, Expression, constant, times
from nestling.axes.rules.table import rule


@rule("_fft_c2c", "_fft_r2c", "_fft_c2r")
def fourier(trace: Any, out: Tensor, x: Tensor, dims: Sequence[int], *args: Any) -> None:
    """Every entry of a transformed dimension depends on all others; the rest stays."""
    expressions = list(trace.of(x))
    for dim in trace.dims(list(dims), x):
        trace.freeze(expressions[dim], "a Fourier transform mixes its units")
        expressions[dim] = constant(out.shape[dim], "a Fourier transform mixes its units")
    trace.put(out, expressions)


@rule("view_as_complex")
def view_as_complex(trace: Any, out: Tensor, x: Tensor) -> None:
    """The last dimension holds real and imaginary part."""
    *expressions, pair = trace.of(x)
    trace.freeze(pair, "real and imaginary part")
    trace.put(out, expressions)


@rule("im2col")
def im2col(trace: Any, out: Tensor, x: Tensor, kernel: Sequence[int], *args: Any) -> None:
    """Each channel becomes (channel, pixels of the window)."""
    *batch, channels, high, wide = trace.of(x)
    for space in (high, wide):
        trace.freeze(space, SPACE)
    window = constant(math.prod(kernel), "pixels of a window")
    trace.put(out, [*batch, times([channels, window]), constant(out.shape[-1], "windows")])


@rule("col2im")
def col2im(
    trace: Any, out: Tensor, x: Tensor, size: Sequence[int], kernel: Sequence[int], *args: Any
) -> None:
    """Channels are (channel, pixels of the window)."""
    *batch, channels, windows = trace.of(x)
    trace.freeze(windows, "windows")
    channel: Expression = Atom(out.shape[-3]) if out.shape[-3] > 1 else constant(1)
    window = constant(math.prod(kernel), "pixels of a window")
    trace.unify(channels, times([channel, window]))
    trace.put(out, [*batch, channel, *(constant(n, SPACE) for n in out.shape[-2:])])


@rule("unfold")
def unfold(trace: Any, out: Tensor, x: Tensor, dim: int, size: int, step: int) -> None:
    """Windows slide along one dimension and become the last one."""
    expressions = list(trace.of(x))
    text = "windows slide along it: neighbours matter"
    if x.dim():
        trace.freeze(expressions[dim], text)
        expressions[dim] = constant(out.shape[dim], text)
    trace.put(out, [*expressions, constant(size, text)])


@rule("grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler")
def grid_sample(trace: Any, out: Tensor, x: Tensor, grid: Tensor, *args: Any) -> None:
    """Channels stay; space is that of the grid."""
    batch, channels, *inside = trace.of(x)
    first, *places, pair = trace.of(grid)
    for space in (*inside, *places, pair):
        trace.freeze(space, SPACE)
    trace.unify(batch, first)
    trace.put(out, [batch, channels, *places])


@rule("max_unpool2d", "max_unpool3d")
def unpool(trace: Any, out: Tensor, x: Tensor, indices: Tensor, *args: Any) -> None:
    """Undoes a pooling, with the places that it noted."""
    kept = 2 if trace.op == "max_unpool2d" else 3
    for one, other in zip(trace.of(x), trace.of(indices), strict=True):
        trace.unify(one, other)
    for space in trace.of(x)[-kept:]:
        trace.freeze(space, SPACE)
    space = [constant(n, SPACE) for n in out.shape[-kept:]]
    trace.put(out, [*trace.of(x)[:-kept], *space])


@rule("_cdist_forward", "_euclidean_dist", replayed=True)
def distances(trace: Any, out: Tensor, left: Tensor, right: Tensor, *args: Any) -> None:
    """Distances of all rows of one side from all rows of the other."""
    a, b = trace.of(left), trace.of(right)
    trace.unify(a[-1], b[-1])
    for one, other in zip(reversed(a[:-2]), reversed(b[:-2]), strict=False):
        if one.size == other.size:
            trace.unify(one, other)
    batch = a[:-2] if left.dim() >= right.dim() else b[:-2]
    shape = zip(batch, out.shape, strict=False)
    trace.put(out, [*(e if e.size == n else constant(n) for e, n in shape), a[-2], b[-2]])
