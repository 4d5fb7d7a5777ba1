"""The algebra of expressions: normal forms, splitting, unification."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.axes import expression as algebra
from nestling.axes.expression import Atom, Join, Reason, Times, join, normal, split, times, unify

WHY = Reason("incompatible", "op", "module")


def expressions(size: int, depth: int = 2) -> st.SearchStrategy:
    """Strategies for fresh expressions of one size."""
    atom = st.builds(lambda: Atom(size))
    if depth == 0 or size < 2:
        return atom
    choices = [atom]
    for outer in range(2, size):
        if size % outer == 0:
            parts = st.tuples(expressions(outer, depth - 1), expressions(size // outer, depth - 1))
            choices.append(parts.map(times))
    for first in (1, size // 2, size - 1):
        if 0 < first < size:
            parts = st.tuples(expressions(first, depth - 1), expressions(size - first, depth - 1))
            choices.append(parts.map(join))
    return st.one_of(choices)


PAIRS = st.sampled_from([1, 2, 4, 6, 8, 12, 24]).flatmap(
    lambda size: st.tuples(expressions(size), expressions(size))
)


def shapes(*expressions) -> list:
    """Structures, with atoms numbered in the order of their first use in all of them."""
    numbers: dict[Atom, int] = {}

    def shape(expression):
        expression = normal(expression)
        if isinstance(expression, Atom):
            return expression.size, numbers.setdefault(expression, len(numbers))
        inner = expression.factors if isinstance(expression, Times) else expression.parts
        return type(expression).__name__, tuple(shape(part) for part in inner)

    return [shape(expression) for expression in expressions]


def walk(expression):
    yield expression
    if isinstance(expression, (Times, Join)):
        for part in expression.factors if isinstance(expression, Times) else expression.parts:
            yield from walk(algebra.find(part))


@given(PAIRS)
def test_unify_keeps_sizes_and_makes_both_the_same(pair):
    one, other = pair
    size = one.size
    unify(one, other, WHY)
    assert normal(one).size == normal(other).size == size
    clashed = [a for e in pair for a in algebra.atoms(e) if a.frozen is not None]
    units = dict.fromkeys(a for e in pair for a in algebra.atoms(normal(e)) if a.size > 1)
    draw = random.Random(size)
    for _ in range(3):
        counts = {atom: draw.randint(0, atom.size) for atom in units}
        assert clashed or algebra.kept(one, counts) == algebra.kept(other, counts)


@given(PAIRS)
def test_unify_is_idempotent(pair):
    one, other = pair
    unify(one, other, WHY)
    before = shapes(one, other)
    unify(one, other, WHY)
    unify(other, one, WHY)
    # After a clash all is frozen, and a later part may have been split where the clash was.
    clashed = any(atom.frozen is not None for each in pair for atom in algebra.atoms(each))
    assert clashed or before == shapes(one, other)


@given(st.sampled_from([2, 4, 6, 12]), st.data())
def test_unify_is_symmetric(size, data):
    """The same two structures give the same sizes of live atoms, whichever comes first."""
    seed = data.draw(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)))
    results = []
    for turned in (False, True):
        one, other = (_structure(size, number) for number in seed)
        unify(*((other, one) if turned else (one, other)), WHY)
        results.append([sorted(a.size for a in algebra.live(e)) for e in (one, other)])
    assert results[0] == results[1]


def _structure(size: int, number: int):
    """A fresh expression that is a function of a number."""
    divisors = [d for d in range(2, size) if size % d == 0]
    number, choice = divmod(number, 3)
    if choice == 1 and divisors:
        number, which = divmod(number, len(divisors))
        outer = divisors[which]
        return times([_structure(outer, number // 2), _structure(size // outer, number // 3)])
    if choice == 2 and size > 1:
        number, first = divmod(number, size - 1)
        return join([_structure(first + 1, number // 2), _structure(size - first - 1, number // 3)])
    return Atom(size)


@given(PAIRS)
def test_normal_forms(pair):
    for expression in pair:
        for part in walk(normal(expression)):
            if isinstance(part, Times):
                assert len(part.factors) > 1
                assert not any(isinstance(f, Times) or f.size == 1 for f in part.factors)
            if isinstance(part, Join):
                assert len(part.parts) > 1
                assert not any(isinstance(p, Join) or p.size == 0 for p in part.parts)


@given(PAIRS, st.data())
def test_split_gives_two_parts_that_join_to_the_whole(pair, data):
    expression = pair[0]
    at = data.draw(st.integers(0, expression.size))
    halves = split(expression, at)
    if halves is not None:
        assert (halves[0].size, halves[1].size) == (at, expression.size - at)
        unify(join(halves), expression, WHY)
        assert not any(atom.frozen for atom in algebra.atoms(expression) if atom.size > 1)


@given(PAIRS, st.data())
def test_count_is_the_number_of_kept_entries(pair, data):
    one, other = pair
    unify(one, other, WHY)
    counts = {
        atom: data.draw(st.integers(0, atom.size))
        for atom in dict.fromkeys(algebra.atoms(normal(one)))
    }
    entries = algebra.kept(one, counts)
    assert entries == sorted(set(entries))
    assert algebra.count(one, counts) == len(entries)


def test_sizes_that_differ_freeze_both_with_the_reason():
    one, other = Atom(4), Atom(6)
    unify(one, other, Reason("incompatible", "add", "block.1"))
    for atom in (one, other):
        assert atom.frozen == Reason("sizes differ: 4 and 6 units meet here", "add", "block.1")


def test_factors_that_do_not_fit_freeze_with_the_reason():
    one, other = Times([Atom(4), Atom(3)]), Times([Atom(3), Atom(4)])
    unify(one, other, WHY)
    assert not algebra.live(one)
    assert not algebra.live(other)
    assert next(algebra.atoms(one)).frozen.text.startswith("incompatible factors")


def test_frozen_atom_freezes_what_it_is_bound_to():
    cause = Reason("size of the model's output")
    frozen, free = Atom(4, cause), Atom(4)
    unify(free, frozen, WHY)
    product = Times([Atom(2), Atom(2)])
    unify(frozen, product, WHY)
    where = Reason(cause.text, WHY.op, WHY.module)  # a constant says where it first struck
    assert all(atom.frozen == where for e in (free, product) for atom in algebra.atoms(e))


def test_a_part_that_ends_inside_a_unit_freezes():
    joined, groups = Join([Atom(6), Atom(10)]), Times([Atom(4), Atom(4)])
    unify(joined, groups, WHY)
    assert not algebra.live(joined)
    assert next(algebra.atoms(joined)).frozen.text.startswith("a part ends inside a unit")


def test_whole_units_on_both_sides_stay_elastic():
    joined, groups = Join([Atom(8), Atom(16)]), Times([Atom(6), Atom(4)])
    unify(joined, groups, WHY)
    assert sorted(atom.size for atom in algebra.live(joined)) == [2, 4, 4, 4]


@pytest.mark.parametrize("size", [0, 1])
def test_nothing_to_cut_is_no_trouble(size):
    atom = Atom(size)
    unify(atom, times([Atom(size), Atom(5)]) if size == 0 else times([]), WHY)
    assert not algebra.live(atom)
