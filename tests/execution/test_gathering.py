"""Gathering against plain indexing, for all extents and memory formats."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nestling.execution.gathering import Changed, Chosen, Entries, Window
from nestling.extent import Along, Concat, Fixed, Product

SIZES = {"a": 4, "b": 3, "c": 5}
AXES = st.sampled_from(sorted(SIZES)).map(lambda name: Along(name, SIZES[name]))
LEAVES = AXES | st.integers(1, 3).map(Fixed)
EXTENTS = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, min_size=1, max_size=3).flatmap(
        lambda parts: st.sampled_from([Product(tuple(parts)), Concat(tuple(parts))])
    ),
    max_leaves=5,
)


def by_hand(extent, units):
    """The entries of the chosen units, in plain Python."""
    match extent:
        case Fixed(size):
            return list(range(size))
        case Along(axis, size):
            return units.get(axis, list(range(size)))
        case Product(factors):
            found = [0]
            for factor in factors:
                own = by_hand(factor, units)
                found = [one * factor.size + other for one, other in itertools.product(found, own)]
            return found
        case Concat(parts):
            found, offset = [], 0
            for part in parts:
                found += [offset + entry for entry in by_hand(part, units)]
                offset += part.size
            return found


def drawn(data, counts):
    return {name: data.draw(st.permutations(range(SIZES[name])))[:n] for name, n in counts.items()}


def slots_of(counts):
    starts = itertools.accumulate([0, *counts.values()])
    return {name: (start, n) for (name, n), start in zip(counts.items(), starts, strict=False)}


def flat(units):
    return torch.tensor([unit for part in units.values() for unit in part])


@given(st.data(), EXTENTS)
def test_entries_are_those_of_the_units(data, extent):
    counts = {"a": data.draw(st.integers(1, 4)), "b": data.draw(st.integers(1, 3))}
    units = drawn(data, counts)
    found = Entries.of(extent, slots_of(counts))
    assert found.at(flat(units)).tolist() == by_hand(extent, units)
    assert len(found) == len(by_hand(extent, units))
    used = set(str(extent).split("'")) & {"a", "b"}
    assert found.whole == (not used)


@given(st.data(), EXTENTS)
def test_entries_that_change_with_a_slot(data, extent):
    counts = {"a": data.draw(st.integers(1, 3)), "b": data.draw(st.integers(1, 2))}
    before = drawn(data, counts)
    found = Entries.of(extent, slots_of(counts))
    for slot in range(sum(counts.values())):
        after = flat(before)
        after[slot] += 100
        marks = torch.zeros(len(after), dtype=torch.bool)
        marks[slot] = True
        moved = found.at(after) != found.at(flat(before))
        assert torch.equal(Changed(marks).within(found), moved.nonzero().view(-1))


FORMATS = {
    "contiguous": lambda x: x.contiguous(),
    "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "turned": lambda x: x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
    "inside": lambda x: torch.cat([x, x])[len(x) :],
}
LAYOUTS = {
    "both": (Along("a", 4), Along("b", 3), Fixed(3), Fixed(2)),
    "out": (Along("a", 4), Fixed(3), Fixed(3), Fixed(2)),
    "in": (Fixed(4), Along("b", 3), Fixed(3), Fixed(2)),
    "concat": (Along("a", 4), Concat((Along("b", 3), Along("a", 4))), Fixed(1), Fixed(1)),
    "product": (Product((Fixed(2), Along("a", 4))), Along("b", 3), Fixed(2), Fixed(2)),
    "kernel": (Along("c", 5), Fixed(2), Along("b", 3), Fixed(2)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", FORMATS)
def test_taken_and_put_as_plain_indexing_does(form, layout):
    dims = LAYOUTS[layout]
    torch.manual_seed(0)
    full = FORMATS[form](torch.randn([dim.size for dim in dims]))
    state = torch.empty_like(full).copy_(torch.randn(full.shape))
    counts = {"a": 2, "b": 2, "c": 3}
    slots = slots_of(counts)
    known = {dim: Entries.of(dim, slots) for dim in dims}
    window = Window(full, [known[dim] for dim in dims])
    small, rows = window.another(full)
    pairs = [(window.over(full), window.flat), (window.over(state), rows)]
    want = full.clone(), state.clone()
    held = None
    for _ in range(6):
        units = {name: torch.randperm(SIZES[name])[:n].tolist() for name, n in counts.items()}
        chosen = Chosen(flat(units))
        if held is None:
            window.take(pairs, window.index(chosen))
        else:
            window.exchange(pairs, held, chosen, Changed(held.units != chosen.units))
        grid = torch.meshgrid(*(torch.tensor(by_hand(d, units)) for d in dims), indexing="ij")
        for own, whole in zip((window.own, small), want, strict=True):
            assert torch.equal(own, whole[grid])
            new = torch.randn(own.shape)
            own.copy_(new)
            whole[grid] = new
        held = chosen
    window.put(pairs, window.index(held))
    assert torch.equal(full, want[0])
    assert torch.equal(state, want[1])
    assert window.own.is_contiguous(memory_format=torch.channels_last) or form != "channels-last"


def test_rows_are_copied_as_blocks():
    full = torch.zeros(6, 8, 3, 3)
    both = [Entries.of(Along("a", 6), {"a": (0, 2)}), Entries.of(Along("b", 8), {"b": (2, 3)})]
    kernel = [Entries.of(Fixed(3), {})] * 2
    assert Window(full, [*both, *kernel]).flat.shape == (6, 9)
    last = full.contiguous(memory_format=torch.channels_last)
    assert Window(last, [*both, *kernel]).flat.shape == (math.prod((2, 3, 9)),)
