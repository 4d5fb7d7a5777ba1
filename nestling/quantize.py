"""Nested bits: one stored integer for each weight, whose top k bits are the k-bit weight.

A number x in units of its scale is coded by halving, as often as there are bits: with r_0 = x cut
to [-1, 1], each bit is the sign b_j of what is left (that of zero is +), r_j = r_{j-1} - b_j / 2^j,
and the number of k bits is the sum of b_j / 2^j up to k. Another bit only halves the steps; none of
the others changes. Read with 0 for minus, the bits are an integer in two's complement but for its
first bit, which is turned round; so this is

    n_k = floor(x * 2^(k-1)), cut to -2^(k-1) ... 2^(k-1) - 1        the integer of k bits
    Q_k(x) = (n_k + 1/2) / 2^(k-1)                                   the number that it stands for
    n_k = n_8 >> (8 - k)                                             its top k bits

The code is symmetric and has no zero, only the half step on either side of it. A kernel computes
with the integers n_k and adds half of the sum of its inputs: (n_k + 1/2) . a = n_k . a + sum(a)/2,
which is exact.

Inputs are not stored, so nothing is gained if their code is nested; and zero has to stay zero, for
convolutions pad with it, ReLUs leave most inputs at it, and it is what units are that a subnet has
not. So inputs go to the nearest of even steps, zero among them: 2^k - 1 steps up to the clip where
they are never negative, else 2^(k-1) - 1 steps on either side. Integer kernels take both as they
are.

Source: Cui et al., Fully Nested Neural Network for Adaptive Compression and Quantization (IJCAI
2020); the code by halving is our reconstruction of it. Gradients: Bengio et al., Estimating or
Propagating Gradients Through Stochastic Neurons (2013), and for the scale Esser et al., Learned
Step Size Quantization (ICLR 2020).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nestling.errors import ModelError

FULL = 32  # the count of bits that stands for the floating-point number, of whatever width
MOST = 8  # bits of a stored integer
LEAST = 1e-12  # of a scale: what is divided by it stays finite


def integers(values: Tensor, scale: Tensor, bits: int = MOST) -> Tensor:
    """Return the stored integers of weights; those of fewer bits are their top bits.

    Args:
        values: numbers.
        scale: the largest number that the code reaches, above zero: one number, or one for each
            entry of the first dimension.
        bits: 1 to 8.

    Returns:
        int8 from -2^(bits-1) to 2^(bits-1) - 1, of the same shape.

    Raises:
        ModelError: a number is NaN or infinite.

    Example:
        >>> integers(torch.tensor([-1.0, -0.3, 0.0, 0.3, 9.0]), torch.tensor(1.0), 2)
        tensor([-2, -1,  0,  0,  1], dtype=torch.int8)
    """
    if not bool(torch.isfinite(values).all()):
        raise ModelError("only finite numbers can be quantised, but some are NaN or infinite")
    return _places(values / _along(scale, values), _nested(bits)).to(torch.int8)


def numbers(codes: Tensor, scale: Tensor, bits: int = MOST) -> Tensor:
    """Return the numbers that stored integers stand for, as `quantised` gives them.

    Example:
        >>> numbers(torch.tensor([-2, -1, 0, 1]), torch.tensor(1.0), 2)
        tensor([-0.7500, -0.2500,  0.2500,  0.7500])
    """
    return _units(codes.to(scale.dtype), _nested(bits)) * _along(scale, codes)


def top(codes: Tensor, bits: int, of: int = MOST) -> Tensor:
    """Return the top bits of stored integers: those of fewer bits.

    Args:
        codes: integers of `of` bits.
        bits: how many to keep, at most `of`.
        of: how many they have.

    Example:
        >>> top(torch.tensor([-128, -1, 127], dtype=torch.int8), 2)
        tensor([-2, -1,  1], dtype=torch.int8)
    """
    return codes >> (of - bits)


def quantised(values: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return weights rounded to what some bits can stand for, with gradients to train by.

    The gradient goes straight through to the numbers within the code's range, and is zero beyond
    it. That of the scale is the one of scale * Q(values / scale) where Q is taken for its argument
    plus a constant, divided by the root of the number of values that share the scale: it adds up
    over them, and would move the scale faster than any value.

    Args:
        values: numbers, floating point.
        scale: as for `integers`; its sign does not matter.
        bits: 1 to 8.

    Example:
        >>> quantised(torch.tensor([-0.3, 0.1, 0.8]), torch.tensor(1.0), 2)
        tensor([-0.2500,  0.2500,  0.7500])
    """
    return _quantised(values, scale, _nested(bits))


def quantised_inputs(values: Tensor, clip: Tensor, bits: int, *, signed: bool) -> Tensor:
    """Return inputs rounded to the nearest of even steps, zero among them; gradients as above.

    Args:
        values: numbers, floating point.
        clip: the largest that the steps reach, one number; its sign does not matter.
        bits: 1 to 8; at least 2 of them for numbers that may be negative.
        signed: whether they may be.

    Example:
        >>> quantised_inputs(torch.tensor([0.0, 0.3, 2.0]), torch.tensor(1.0), 2, signed=False)
        tensor([0.0000, 0.3333, 1.0000])
    """
    return _quantised(values, clip, even_steps(bits, signed))


class Code(NamedTuple):
    """A code of numbers in units of their scale: integers n, each for (n + offset) / steps.

    Attributes:
        steps: that lie between zero and the scale.
        least: smallest integer.
        most: largest integer.
        offset: what is added to an integer: half a step, or nothing.
    """

    steps: int
    least: int
    most: int
    offset: float


def even_steps(bits: int, signed: bool) -> Code:
    """Return the code of inputs."""
    steps = (1 << (bits - 1 if signed else bits)) - 1
    return Code(steps, -steps if signed else 0, steps, 0.0)


def _nested(bits: int) -> Code:
    half = 1 << (bits - 1)
    return Code(half, -half, half - 1, 0.5)


def positive(scale: Tensor) -> Tensor:
    """Return a trained scale as the code takes it: above zero."""
    return scale.abs().clamp_min(max(LEAST, torch.finfo(scale.dtype).tiny))


def share_beyond(values: Tensor, scale: Tensor) -> float:
    """Return the share of numbers that lie beyond their scale, and so keep nothing but a sign."""
    return float((values.abs() > _along(positive(scale), values)).double().mean())


def usual_scale(values: Tensor, bits: float) -> Tensor:
    """Return the scale to begin training with: the best one for numbers from a bell curve.

    For k bits the least squared error comes at 1.60, 1.99, 2.34, 2.68 ... 3.94 root mean squares (k
    from 1 to 8), which is a straight line to 3 %. No scale exceeds the largest number.

    Args:
        values: numbers.
        bits: that the scale shall fit; a mean of several counts.

    Returns:
        A scale for each entry of the first dimension.

    Source: Max, Quantizing for Minimum Distortion (IRE Transactions, 1960), table II.
    """
    rest = list(range(1, values.dim()))
    size = values.detach().abs().to(torch.promote_types(values.dtype, torch.float32))
    mean = size.square().mean(rest) if rest else size.square()
    most = size.amax(rest) if rest else size
    fitting = torch.minimum((1.3 + bits / 3) * mean.sqrt(), most)
    return torch.where(fitting > 0, fitting, torch.ones_like(fitting)).to(values.dtype)


def _quantised(values: Tensor, scale: Tensor, code: Code) -> Tensor:
    found: Tensor = _Quantise.apply(values, positive(scale), code)  # type: ignore[no-untyped-call]
    return found


class _Quantise(torch.autograd.Function):
    """Rounding with the gradients of `quantised`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, scale: Tensor, code: Code) -> Tensor:
        along = _along(scale, values)
        return _units(_places(values / along, code), code) * along

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        values, scale, ctx.code = inputs
        ctx.save_for_backward(values, scale, output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, scale, output = ctx.saved_tensors
        along, gradient = _along(scale, values), gradients[0]
        inside = (values <= along) & (values >= (-along if ctx.code.least else 0))
        within = torch.where(inside, gradient, 0)
        if not ctx.needs_input_grad[1]:
            return within, None, None
        # d/ds of s * Q(v / s) is Q - v / s within the range, and Q beyond it.
        slope = gradient * torch.where(inside, output - values, output) / along
        rest = list(range(scale.dim(), values.dim()))
        total = slope.sum(rest) if rest else slope
        return within, total / math.sqrt(max(values.numel() // scale.numel(), 1)), None


def _places(units: Tensor, code: Code) -> Tensor:
    """Return the integers of numbers in units of their scale, as floating-point numbers.

    In the nested code `steps` is a power of two, which is multiplied without rounding, so that
    fewer bits are exactly the top ones.
    """
    places = torch.floor(units * code.steps + (0.5 - code.offset))
    return places.clamp(code.least, code.most)


def _units(places: Tensor, code: Code) -> Tensor:
    """Return what integers stand for, in units of the scale."""
    return (places + code.offset) / code.steps


def _along(scale: Tensor, values: Tensor) -> Tensor:
    """Return a scale in the shape that divides values: one for each entry of the first dim."""
    return scale.reshape(scale.shape + (1,) * (values.dim() - scale.dim()))
