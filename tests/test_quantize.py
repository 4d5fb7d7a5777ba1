"""Nested bits: the code by halving, its integers, and the gradients that train it."""

from __future__ import annotations

from fractions import Fraction
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nestling import quantize
from nestling.errors import ModelError
from nestling.quantize import (
    MOST,
    integers,
    numbers,
    quantised,
    quantised_inputs,
    top,
    usual_scale,
)

REALS = st.floats(-4, 4, width=32)
SCALES = st.floats(2**-7, 3, width=32)
BITS = st.integers(1, MOST)


def exactly(value, scale, bits):
    """The paper's definition in whole fractions: no rounding anywhere.

    The quotient is that of the code under test, since the code is of the rounded quotient.
    """
    units = Fraction(float(torch.tensor(value) / torch.tensor(scale)))
    rest, total = min(max(units, Fraction(-1)), Fraction(1)), Fraction(0)
    for place in range(1, bits + 1):
        bit = Fraction(1 if rest >= 0 else -1, 2**place)
        rest, total = rest - bit, total + bit
    return total


@settings(max_examples=200, deadline=None)
@given(REALS, SCALES, BITS)
def test_the_code_is_the_sum_of_the_signs_of_what_is_left(value, scale, bits):
    found = integers(torch.tensor([value]), torch.tensor(scale), bits)
    assert (int(found) + Fraction(1, 2)) / 2 ** (bits - 1) == exactly(value, scale, bits)


@settings(max_examples=100, deadline=None)
@given(st.lists(REALS, min_size=1, max_size=20), SCALES, BITS, BITS)
def test_the_top_bits_of_the_stored_integers_are_the_code_of_fewer(values, scale, bits, more):
    bits, more = sorted((bits, more))
    given, one = torch.tensor(values), torch.tensor(scale)
    stored, wide = (integers(given, one, n) for n in (MOST, more))
    fewer = integers(given, one, bits)
    assert torch.equal(top(stored, bits), fewer)
    assert torch.equal(top(wide, bits, more), fewer)
    assert torch.equal(numbers(fewer, one, bits), quantised(given, one, bits))


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 4, width=32), SCALES, BITS)
def test_what_is_never_negative_goes_to_the_nearest_level_and_zero_stays(value, scale, bits):
    one = torch.tensor(scale)
    levels = one.double() * torch.arange(2**bits) / (2**bits - 1)
    found = quantised_inputs(torch.tensor([0.0, value, 5.0]), one, bits, signed=False)
    assert float(found[0]) == 0
    assert float(found[2]) == pytest.approx(scale)
    away = float((levels - value).abs().min())
    assert abs(float(found[1]) - value) <= away + 1e-6 * scale
    if bits > 1:  # the same on either side of zero, with one bit for the sign
        either = torch.tensor([value, -value])
        both = quantised_inputs(either, one, bits, signed=True)
        one_less = quantised_inputs(either[:1], one, bits - 1, signed=False)
        torch.testing.assert_close(both, torch.cat([one_less, -one_less]))


@settings(max_examples=100, deadline=None)
@given(st.lists(REALS, min_size=1, max_size=20), SCALES, BITS)
def test_numbers_that_are_coded_already_stay(values, scale, bits):
    one = torch.tensor(scale)
    once = quantised(torch.tensor(values), one, bits)
    assert torch.equal(quantised(once, one, bits), once)
    again = quantised_inputs(once.abs(), one, bits, signed=False)
    assert torch.equal(quantised_inputs(again, one, bits, signed=False), again)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", range(1, MOST + 1))
def test_every_dtype_holds_every_code(bits, dtype):
    codes = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1))
    one = torch.ones((), dtype=dtype)
    found = numbers(codes, one, bits)
    assert found.dtype == dtype
    assert found.unique().numel() == 2**bits
    assert torch.equal(integers(found, one, bits), codes.to(torch.int8))


def test_integer_kernels_need_half_the_sum_of_the_inputs():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 4, 3, 3, generator=generator, dtype=torch.float64)
    image = torch.randint(0, 256, (2, 4, 7, 7), generator=generator).double()
    scale = usual_scale(weight, 4)
    for bits in (1, 2, 4, 8):
        codes = integers(weight, scale, bits).double()
        whole = nn.functional.conv2d(image, codes, padding=1)
        sums = nn.functional.conv2d(image, torch.ones_like(weight[:1]), padding=1)
        step = 2.0 ** (1 - bits) * scale.view(1, -1, 1, 1)
        wanted = nn.functional.conv2d(image, quantised(weight, scale, bits), padding=1)
        torch.testing.assert_close((whole + sums / 2) * step, wanted, rtol=1e-12, atol=1e-9)


CODES = {
    "weights": (quantised, -1),
    "inputs": (partial(quantised_inputs, signed=False), 0),
    "signed inputs": (partial(quantised_inputs, signed=True), -1),
}


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_gradients_are_those_of_the_straight_through_graph(bits, kind):
    code, least = CODES[kind]
    generator = torch.Generator().manual_seed(bits)
    values = torch.randn(5, 40, generator=generator, dtype=torch.float64, requires_grad=True)
    scale = (torch.rand(5, generator=generator, dtype=torch.float64) + 0.3).requires_grad_()
    toward = torch.randn(5, 40, generator=generator, dtype=torch.float64)
    found = torch.autograd.grad((code(values, scale, bits) * toward).sum(), (values, scale))
    # Independently: rounding as a constant that is added inside of the range.
    cut = (values / scale[:, None]).clamp(least, 1)
    levels = code(cut.detach(), torch.ones((), dtype=torch.float64), bits)
    graph = scale[:, None] * (cut + (levels - cut).detach())
    wanted = torch.autograd.grad((graph * toward).sum(), (values, scale))
    torch.testing.assert_close(found[0], wanted[0])
    torch.testing.assert_close(found[1], wanted[1] / 40**0.5)
    assert bool((found[0] == 0).any())
    assert bool((found[0] != 0).any())


def test_a_scale_of_the_wrong_sign_or_of_zero_does_no_harm():
    values = torch.tensor([-1.0, 0.2, 3.0])
    plus, minus = (quantised(values, torch.tensor(s), 3) for s in (1.5, -1.5))
    assert torch.equal(plus, minus)
    assert bool(torch.isfinite(quantised(torch.zeros(3), torch.tensor(0.0), 2)).all())


@pytest.mark.parametrize("bits", range(1, MOST + 1))
def test_the_usual_scale_is_near_the_best_one_for_a_bell_curve(bits):
    values = torch.randn(1, 40_000, generator=torch.Generator().manual_seed(3))

    def error(scale):
        return float((quantised(values, scale, bits) - values).square().mean())

    usual = usual_scale(values, bits)
    best = min(error(usual * share) for share in torch.linspace(0.6, 1.6, 41))
    assert error(usual) <= 1.06 * best


def test_the_usual_scale_fits_channels_that_are_zero_or_nearly_sure():
    values = torch.stack([torch.zeros(8), torch.full((8,), 0.5), torch.randn(8)])
    scale = usual_scale(values, 8)
    assert scale.tolist()[:2] == [1.0, 0.5]
    assert float(scale[2]) <= float(values[2].abs().max())


def test_what_is_no_number_is_refused():
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ModelError, match="NaN or infinite"):
            integers(torch.tensor([0.0, bad]), torch.tensor(1.0))


def test_gradients_under_transforms_are_the_same():
    values, scale = torch.randn(3, 4), torch.rand(3) + 0.5
    whole = torch.func.grad(lambda s: quantised(values, s, 2).square().sum())(scale)
    each = torch.func.vmap(
        torch.func.grad(lambda s, v: quantised(v, s, 2).square().sum()), in_dims=(0, 0)
    )(scale, values)
    torch.testing.assert_close(each, whole)
    assert quantize.positive(scale).equal(scale)
