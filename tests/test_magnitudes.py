"""The clip that rounds numbers best, against every clip tried on the numbers themselves."""

from __future__ import annotations

import pytest
import torch

from nestling import quantize
from nestling.magnitudes import Magnitudes


def numbers(kind, signed, count=20_000):
    generator = torch.Generator().manual_seed(3)
    bell = torch.randn(count, generator=generator)
    found = {
        "bell": bell,
        "long tails": bell * torch.randn(count, generator=generator).square(),
        "even": torch.rand(count, generator=generator) * 2 - 1,
        "mostly zero": bell * (torch.rand(count, generator=generator) < 0.05),
    }[kind]
    return found if signed else found.relu()


def error(values, clip, bits, signed):
    rounded = quantize.quantised_inputs(values, torch.tensor(clip), bits, signed=signed)
    return float((rounded - values).double().abs().pow(3).mean())


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", ["bell", "long tails", "even", "mostly zero"])
def test_no_clip_rounds_much_better(kind, bits, signed):
    """Bins and clips in steps leave a little."""
    values = 7.0 * numbers(kind, signed)
    seen = Magnitudes()
    for part in values.split(3_000):
        seen.add(part)
    found = seen.best_clip(bits, signed=signed)
    most = float(values.abs().max())
    best = min(error(values, most * share / 100, bits, signed) for share in range(1, 101))
    assert found <= most
    assert error(values, found, bits, signed) <= 1.05 * best


def test_more_bits_reach_farther():
    seen = Magnitudes()
    seen.add(numbers("long tails", signed=True))
    clips = [seen.best_clip(bits, signed=True) for bits in range(2, 9)]
    assert clips == sorted(clips)
    assert clips[-1] > 2 * clips[0]


def test_numbers_that_tell_nothing():
    seen = Magnitudes()
    assert seen.best_clip(4, signed=True) == 1.0
    seen.add(torch.tensor([0.0, float("nan"), float("inf"), -float("inf")]))
    seen.add(torch.empty(0, 3))
    assert seen.best_clip(4, signed=True) == 1.0
    seen.add(torch.full((5, 2), -3.0, dtype=torch.float64))
    assert seen.best_clip(8, signed=True) == pytest.approx(3.0, rel=0.02)
    assert seen.best_clip(2, signed=True) <= 3.0


def test_whatever_device_is_the_default():
    values = numbers("bell", signed=True)
    clips = []
    for device in ("cpu", "meta"):
        with torch.device(device):
            seen = Magnitudes()
            seen.add(values)
            clips.append(seen.best_clip(4, signed=True))
    assert clips[0] == clips[1]


@pytest.mark.parametrize("size", [1e-30, 1e-10, 1e30])
def test_sizes_far_from_one(size):
    seen = Magnitudes()
    seen.add(size * torch.tensor([0.5, 1.0, 1.0]))
    assert 0 < seen.best_clip(4, signed=False) <= 1.01 * size
