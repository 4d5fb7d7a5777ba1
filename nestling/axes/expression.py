"""Expressions: what each tensor dimension is made of while the model is being traced.

An expression is an `Atom` (an unknown run of units), a `Times` (a product of expressions, outermost
first, as a reshape makes it) or a `Join` (expressions that follow one another, as a concatenation
makes it). A constant is a frozen atom. Ops only ever `unify` two expressions; everything else
follows from union-find. When the trace is over, expressions are resolved into frozen `Extent`s.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

_serial = itertools.count()


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a dimension is frozen: the rule in words, the op and the module where it struck."""

    text: str
    op: str = ""
    module: str = ""


class Atom:
    """A run of `size` units; bound to another expression once unification finds what it is."""

    __slots__ = ("bound", "frozen", "serial", "size")

    def __init__(self, size: int, frozen: Reason | None = None) -> None:
        self.size = size
        self.frozen = frozen
        self.bound: Expression | None = None
        self.serial = next(_serial)

    def __repr__(self) -> str:
        return f"{'!' if self.frozen else ''}a{self.serial}({self.size})"


class Times:
    """A product of expressions, outermost first."""

    __slots__ = ("factors", "size")

    def __init__(self, factors: Iterable[Expression]) -> None:
        self.factors = tuple(factors)
        self.size: int = math.prod(factor.size for factor in self.factors)

    def __repr__(self) -> str:
        return f"({' * '.join(map(repr, self.factors))})"


class Join:
    """Expressions that follow one another."""

    __slots__ = ("parts", "size")

    def __init__(self, parts: Iterable[Expression]) -> None:
        self.parts = tuple(parts)
        self.size: int = sum(part.size for part in self.parts)

    def __repr__(self) -> str:
        return f"[{' + '.join(map(repr, self.parts))}]"


Expression: TypeAlias = Atom | Times | Join


PLAIN = "its size is fixed here"
SPACE = "space: neighbours matter"


def constant(size: int, text: str = PLAIN, op: str = "", module: str = "") -> Atom:
    """Return an atom that is never cut, with the reason."""
    return Atom(size, Reason(text, op, module))


def find(expression: Expression) -> Expression:
    """Return what an expression is bound to, one level deep."""
    while isinstance(expression, Atom) and expression.bound is not None:
        expression = expression.bound
    return expression


def times(factors: Iterable[Expression]) -> Expression:
    """Return the product in normal form: no factor of one unit, no product inside a product."""
    flat: list[Expression] = []
    for factor in map(find, factors):
        if factor.size != 1:
            flat += factor.factors if isinstance(factor, Times) else [factor]
    if not flat:
        return constant(1)
    return flat[0] if len(flat) == 1 else Times(flat)


def join(parts: Iterable[Expression]) -> Expression:
    """Return the concatenation in normal form: no empty part, no join inside a join."""
    flat: list[Expression] = []
    for part in map(find, parts):
        if part.size:
            flat += part.parts if isinstance(part, Join) else [part]
    if not flat:
        return constant(0)
    return flat[0] if len(flat) == 1 else Join(flat)


def normal(expression: Expression) -> Expression:
    """Return the expression with all later bindings followed."""
    expression = find(expression)
    if isinstance(expression, Times):
        return times(normal(factor) for factor in expression.factors)
    if isinstance(expression, Join):
        return join(normal(part) for part in expression.parts)
    return expression


def atoms(expression: Expression) -> Iterator[Atom]:
    """Yield every atom of an expression, with repetitions."""
    expression = find(expression)
    if isinstance(expression, Atom):
        yield expression
    else:
        inner = expression.factors if isinstance(expression, Times) else expression.parts
        for part in inner:
            yield from atoms(part)


def live(expression: Expression) -> list[Atom]:
    """Return the atoms that can still be cut."""
    return [atom for atom in atoms(expression) if atom.frozen is None and atom.size > 1]


def freeze(expression: Expression, reason: Reason) -> None:
    """Freeze every atom of an expression that is not frozen already."""
    for atom in atoms(expression):
        if atom.frozen is None:
            atom.frozen = reason


def split(expression: Expression, at: int) -> tuple[Expression, Expression] | None:
    """Split an expression after `at` units; None when that falls inside a unit."""
    expression = normal(expression)
    if at == 0:
        return constant(0), expression
    if at == expression.size:
        return expression, constant(0)
    if isinstance(expression, Atom):
        first, rest = Atom(at), Atom(expression.size - at)
        _bind(expression, Join([first, rest]))
        return first, rest
    if isinstance(expression, Join):
        return _split_join(expression, at)
    inner = expression.size // find(expression.factors[0]).size
    if at % inner:
        return None
    halves = split(expression.factors[0], at // inner)
    if halves is None:
        return None
    return times([halves[0], *expression.factors[1:]]), times([halves[1], *expression.factors[1:]])


def unify(one: Expression, other: Expression, reason: Reason) -> None:
    """Make two expressions the same; what cannot be made the same is frozen, for `reason`."""
    one, other = normal(one), normal(other)
    if one is other or one.size == other.size == 0:
        return
    if one.size != other.size:
        _clash(one, other, "sizes differ", reason)
    elif isinstance(one, Atom):
        _locate(one, other, reason)
        _bind(one, other)
    elif isinstance(other, Atom):
        _locate(other, one, reason)
        _bind(other, one)
    elif isinstance(one, Times) and isinstance(other, Times):
        _unify_times(one, other, reason)
    elif isinstance(one, Join) and isinstance(other, Join):
        _unify_joins(one, other, reason)
    elif isinstance(one, Join) and isinstance(other, Times):
        _unify_join_with_times(one, other, reason)
    elif isinstance(one, Times) and isinstance(other, Join):
        _unify_join_with_times(other, one, reason)


def count(expression: Expression, counts: Mapping[Atom, int]) -> int:
    """Return how many entries of a traced dimension are kept, given a count per atom."""
    expression = find(expression)
    if isinstance(expression, Atom):
        return counts.get(expression, expression.size)
    if isinstance(expression, Join):
        return sum(count(part, counts) for part in expression.parts)
    return math.prod(count(factor, counts) for factor in expression.factors)


def kept(expression: Expression, counts: Mapping[Atom, int]) -> list[int]:
    """Return the kept entries of a traced dimension, given a count per atom."""
    expression = normal(expression)
    if isinstance(expression, Atom):
        return list(range(counts.get(expression, expression.size)))
    if isinstance(expression, Join):
        entries, offset = [], 0
        for part in expression.parts:
            entries += [offset + entry for entry in kept(part, counts)]
            offset += part.size
        return entries
    entries = [0]
    for factor in expression.factors:
        chosen = kept(factor, counts)
        entries = [entry * factor.size + unit for entry in entries for unit in chosen]
    return entries


def _locate(one: Expression, other: Expression, reason: Reason) -> None:
    """Note the op and module where a constant that knows neither first meets live units."""
    for constants, met in ((one, other), (other, one)):
        if live(met):
            for atom in atoms(constants):
                if atom.frozen is not None and not atom.frozen.op:
                    atom.frozen = Reason(atom.frozen.text, reason.op, reason.module)


def _bind(atom: Atom, to: Expression) -> None:
    if atom.frozen is not None:
        freeze(to, atom.frozen)
        if isinstance(to, Atom) and to.frozen is not None and not to.frozen.op:
            to.frozen = atom.frozen  # it says more
    atom.bound = to


def _clash(one: Expression, other: Expression, text: str, reason: Reason) -> None:
    why = Reason(f"{text}: {one.size} and {other.size} units meet here", reason.op, reason.module)
    freeze(one, why)
    freeze(other, why)


def _split_join(expression: Join, at: int) -> tuple[Expression, Expression] | None:
    left: list[Expression] = []
    rest = list(expression.parts)
    while at and rest[0].size <= at:
        left.append(rest.pop(0))
        at -= left[-1].size
    if at:
        halves = split(rest.pop(0), at)
        if halves is None:
            return None
        left.append(halves[0])
        rest.insert(0, halves[1])
    return join(left), join(rest)


def _unify_times(one: Times, other: Times, reason: Reason) -> None:
    """Match factors from the innermost; a larger factor is divided to fit the smaller one."""
    left, right = list(one.factors), list(other.factors)
    while left and right:
        big, small = normal(left.pop()), normal(right.pop())
        if big.size < small.size:
            left, right, big, small = right, left, small, big
        if big.size != small.size:
            if big.size % small.size:
                return _clash(one, other, "incompatible factors", reason)
            outer, inner = Atom(big.size // small.size), Atom(small.size)
            unify(big, Times([outer, inner]), reason)
            left.append(outer)
            big = inner
        unify(big, small, reason)
    return None


def _unify_joins(one: Join, other: Join, reason: Reason) -> None:
    """Match parts from the first; a longer part is split to fit the shorter one."""
    left: Expression = one
    right: Expression = other
    while left.size:
        lengths = [find(e.parts[0]).size if isinstance(e, Join) else e.size for e in (left, right)]
        halves = split(left, min(lengths)), split(right, min(lengths))
        if halves[0] is None or halves[1] is None:
            return _clash(one, other, "a part ends inside a unit", reason)
        unify(halves[0][0], halves[1][0], reason)
        left, right = normal(halves[0][1]), normal(halves[1][1])
    return None


def _unify_join_with_times(joined: Join, product: Times, reason: Reason) -> None:
    """Cut the product's outer factor at the borders of the joined parts."""
    inner = product.size // find(product.factors[0]).size
    groups: list[Expression] = []
    current: list[Expression] = []
    for part in joined.parts:
        current.append(part)
        if sum(group.size for group in current) % inner == 0:
            groups.append(join(current))
            current = []
    if current or len(groups) < 2:
        return _clash(joined, product, "a part ends inside a unit", reason)
    rest: Expression = product
    for group in groups:
        halves = split(rest, group.size)
        if halves is None:
            return _clash(joined, product, "a part ends inside a unit", reason)
        unify(group, halves[0], reason)
        rest = normal(halves[1])
    return None
