import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nestling import extent as extents
from nestling.extent import Along, Concat, Fixed, Product
from nestling.units import Place, combined, relative

AXES = {"a": 3, "b": 2}
LEAVES = st.one_of(
    st.sampled_from([Along(name, size) for name, size in AXES.items()]),
    st.integers(1, 3).map(Fixed),
)


def some_extents():
    """Extents in which no product has an axis twice."""

    def join(children):
        parts = st.lists(children, min_size=1, max_size=3).map(tuple)
        return st.one_of(parts.map(Concat), parts.map(Product).filter(_is_simple))

    return st.recursive(LEAVES, join, max_leaves=6)


def _is_simple(extent):
    inside = [set(extents.axes_of(factor)) for factor in extent.factors]
    return sum(map(len, inside)) == len(set().union(*inside))


@given(some_extents())
def test_a_unit_owns_what_one_unit_less_does_not_keep(extent):
    for axis, size in AXES.items():
        pairs = []
        for unit in range(size):
            more, less = ({axis: count} for count in (unit + 1, unit))
            new = set(extents.kept(extent, more)) - set(extents.kept(extent, less))
            pairs += [(entry, unit) for entry in new]
        assert extents.owned(extent, axis) == sorted(pairs)


def test_an_axis_times_itself_owns_an_entry_twice():
    square = Product((Along("a", 2), Along("a", 2)))
    once = [(0, 0), (0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (3, 1), (3, 1)]
    assert extents.owned(square, "a") == once


def place(extent, axis, dim=0):
    pairs = torch.tensor(extents.owned(extent, axis))
    shape = (extent.size, 5) if dim == 0 else (5, extent.size)
    plain = isinstance(extent, Along)
    return Place(axis, AXES[axis], "weight", shape, dim, pairs[:, 0], pairs[:, 1], plain)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize(
    "extent",
    [
        Along("a", 3),
        Product((Fixed(2), Along("a", 3), Along("b", 2))),
        Concat((Along("a", 3), Along("b", 2), Along("a", 3))),
    ],
)
def test_sums_and_spreads(extent, dim):
    where = place(extent, "a", dim)
    values = np.random.default_rng(0).normal(size=where.shape)
    expected = np.zeros(3)
    for entry, unit in extents.owned(extent, "a"):
        expected[unit] += values.take(entry, axis=dim).sum()
    np.testing.assert_allclose(where.sums(torch.from_numpy(values)).numpy(), expected)
    gains = torch.tensor([1.0, 10.0, 100.0])
    spread = where.spread(gains).expand(where.shape).numpy()
    expected = np.zeros(where.shape)
    for entry, unit in extents.owned(extent, "a"):
        expected[entry if dim == 0 else np.s_[:, entry]] = gains[unit]
    np.testing.assert_array_equal(spread, expected)


def test_relative_scores_are_those_of_every_layer_alike():
    small, large = torch.tensor([1.0, 3.0]), torch.tensor([600.0, 200.0])
    assert combined([small, large]).tolist() == [1.0, 1.0]
    assert relative(torch.tensor([1.0, 3.0])).tolist() == [0.5, 1.5]
    assert relative(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]
