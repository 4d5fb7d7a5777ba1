"""Extents against brute force, and against hostile JSON."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling import extent as extents
from nestling.extent import Along, Concat, Fixed, Product

SIZES = {"a": 2, "b": 3, "c": 4, "d": 1}


def _leaves():
    along = st.sampled_from(sorted(SIZES)).map(lambda name: Along(name, SIZES[name]))
    return st.one_of(st.integers(0, 4).map(Fixed), along)


def _inner(children):
    parts = st.lists(children, min_size=1, max_size=3).map(tuple)
    return st.one_of(parts.map(Product), parts.map(Concat))


EXTENTS = st.recursive(_leaves(), _inner, max_leaves=5).filter(lambda extent: extent.size <= 400)
COUNTS = st.fixed_dictionaries(
    {}, optional={name: st.integers(0, size) for name, size in SIZES.items()}
)
ORDERS = st.fixed_dictionaries(
    {}, optional={name: st.permutations(range(size)) for name, size in SIZES.items()}
)


def labels(extent) -> list[tuple]:
    """Every entry as the units it belongs to: nothing but nested loops."""
    if isinstance(extent, Fixed):
        return [((None, i),) for i in range(extent.size)]
    if isinstance(extent, Along):
        return [((extent.axis, i),) for i in range(extent.size)]
    if isinstance(extent, Product):
        rows = itertools.product(*map(labels, extent.factors))
        return [tuple(itertools.chain.from_iterable(row)) for row in rows]
    return [((k, None), *row) for k, part in enumerate(extent.parts) for row in labels(part)]


def lives(label, counts) -> bool:
    return all(unit < counts.get(axis, math.inf) for axis, unit in label if isinstance(axis, str))


@given(EXTENTS, COUNTS)
def test_kept_is_brute_force(extent, counts):
    expected = [i for i, label in enumerate(labels(extent)) if lives(label, counts)]
    assert extents.kept(extent, counts) == expected
    assert extents.count(extent, counts) == len(expected)
    assert extent.size == len(labels(extent))


@given(EXTENTS, COUNTS)
@settings(max_examples=100, deadline=None)
def test_range_is_given_exactly_when_there_is_one(extent, counts):
    entries = extents.kept(extent, counts)
    span = extents.kept_range(extent, counts)
    if span is not None:
        assert list(range(*span)) == entries
    elif entries:
        assert entries != list(range(entries[0], entries[-1] + 1))


@given(EXTENTS, ORDERS)
def test_permuted_moves_every_unit_to_its_place(extent, orders):
    moved = extents.permuted(extent, orders)
    assert sorted(moved) == list(range(extent.size))
    before, after = labels(extent), [labels(extent)[i] for i in moved]

    def follow(axis, unit):
        return orders[axis][unit] if isinstance(axis, str) and axis in orders else unit

    assert after == [tuple((axis, follow(axis, unit)) for axis, unit in row) for row in before]


@given(EXTENTS)
def test_json_round_trip(extent):
    assert extents.from_json(json.loads(json.dumps(extents.to_json(extent)))) == extent


@given(EXTENTS, COUNTS)
def test_substitute_and_parts(extent, counts):
    assert extents.substitute(extent, lambda at: at) == extent
    fixed = extents.substitute(extent, lambda at: Fixed(at.size))
    assert fixed.size == extent.size
    assert not list(extents.axes_of(fixed))
    along = [part for part in extents.parts_of(extent) if isinstance(part, Along)]
    assert [part.axis for part in along] == list(extents.axes_of(extent))


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, -1, 1.0, "axis", [], {}, ["axis"], ["axis", "a"], ["axis", "a", 0]),
        *(["axis", "a", True], ["axis", 3, 4], ["axis", "a", 4, 5], ["*"], ["+"], ["*", None]),
        *(["?", 3], ["+", ["*", "x"]], {"axis": 3}, ["axis", "a", -3], ["axis", "a", 2.0]),
    ],
)
def test_hostile_json_is_refused(value):
    with pytest.raises(ValueError, match="not an extent"):
        extents.from_json(value)


def test_deep_json_is_refused_in_words():
    value: object = 3
    for _ in range(5000):
        value = ["*", value]
    with pytest.raises(ValueError, match="not an extent: nested too deeply"):
        extents.from_json(value)
