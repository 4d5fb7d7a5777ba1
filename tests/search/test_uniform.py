import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling import SpecError
from nestling.search import ladder


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
