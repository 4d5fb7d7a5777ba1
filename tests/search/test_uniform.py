import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nestling
from nestling import SpecError
from nestling.search import ladder
from nestling.search.uniform import width_of


@pytest.fixture(scope="module")
def space(small):
    return small.supernet().space


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_each_spec_is_the_nearest_by_exhaustion(space, fractions):
    full = space.macs(space.full)
    found = ladder(space, fractions)
    shares = [space.macs(spec) / full for spec in found]
    assert shares == sorted(shares, reverse=True)
    assert len(set(found)) == len(found)
    assert set(found) <= set(space.uniform)
    for fraction in fractions:
        best = min(abs(space.macs(spec) / full - fraction) for spec in space.uniform)
        assert min(abs(share - fraction) for share in shares) == best


def test_the_default_spans_the_full_net_to_a_tenth(space):
    found = ladder(space)
    assert found[0] == space.full
    assert space.macs(found[-1]) < 0.2 * space.macs(space.full)


@pytest.mark.parametrize(
    "fractions", [[], "1", 0.5, [0], [-0.1], [1.5], [float("nan")], ["x"], [True]]
)
def test_fractions_are_shares(space, fractions):
    with pytest.raises(SpecError, match="fraction"):
        ladder(space, fractions)


def test_every_uniform_spec_has_a_width(space):
    for spec in space.uniform:
        width = width_of(space, spec)
        assert 0 < width <= 1
        assert space.spec(width=width) == spec
    assert width_of(space, space.full) == 1.0


def test_axes_of_different_steps_agree_on_a_width(small):
    space = nestling.Supernet(
        small.seeded(small.Mlp, 6, 12, 3), torch.randn(2, 6), step={"one": 5, "two": 1}
    ).space
    assert len(space.uniform) > 4
    for spec in space.uniform:
        assert space.spec(width=width_of(space, spec)) == spec


def test_a_spec_that_is_not_uniform_has_no_width(space):
    axis = next(iter(space.axes.values()))
    with pytest.raises(SpecError, match="only a uniform spec has a width"):
        width_of(space, space.spec({axis.name: axis.counts[0]}))
