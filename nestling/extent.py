"""Extents: what a tensor dimension is made of, as plain frozen data.

A dimension of a weight is a fixed number of entries (`Fixed`), runs along one elastic axis
(`Along`), or is built from other extents: `Product` (outer to inner, as a reshape makes it) and
`Concat` (first to last, as a concatenation makes it). Given a count per axis, an extent says how
many entries are kept, which ones, and whether they form one range (then a view will do).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Counts: TypeAlias = Mapping[str, int]
"""Kept units per axis name; an axis that is missing keeps all of its units."""

MOST = 16  # neighbours of which all runs are looked at
DEEPEST = 100  # levels of products and concatenations that are read from JSON


@dataclass(frozen=True, slots=True)
class Fixed:
    """A dimension, or a part of one, that is never cut."""

    size: int


@dataclass(frozen=True, slots=True)
class Along:
    """A dimension that runs along the elastic axis of this name."""

    axis: str
    size: int


@dataclass(frozen=True, slots=True)
class Product:
    """A dimension made of factors, outermost first: entry (i, j) stands at i * inner + j."""

    factors: tuple[Extent, ...]

    @property
    def size(self) -> int:
        """Entries of the uncut dimension."""
        return math.prod(factor.size for factor in self.factors)


@dataclass(frozen=True, slots=True)
class Concat:
    """A dimension made of parts that follow one another."""

    parts: tuple[Extent, ...]

    @property
    def size(self) -> int:
        """Entries of the uncut dimension."""
        return sum(part.size for part in self.parts)


Extent: TypeAlias = Fixed | Along | Product | Concat


def count(extent: Extent, counts: Counts) -> int:
    """Return how many entries of the dimension a spec keeps.

    Example:
        >>> count(Product((Along("heads", 8), Fixed(64))), {"heads": 2})
        128
    """
    match extent:
        case Fixed(size):
            return size
        case Along(axis, size):
            return counts.get(axis, size)
        case Product(factors):
            return math.prod(count(factor, counts) for factor in factors)
        case Concat(parts):
            return sum(count(part, counts) for part in parts)


def kept(extent: Extent, counts: Counts) -> list[int]:
    """Return the kept entries of the dimension, ascending.

    Example:
        >>> kept(Concat((Along("a", 3), Along("b", 2))), {"a": 1, "b": 2})
        [0, 3, 4]
    """
    return _select(extent, lambda axis, size: range(counts.get(axis, size)))


def permuted(extent: Extent, orders: Mapping[str, Sequence[int]]) -> list[int]:
    """Return, for each new entry of the dimension, the old entry that moves there.

    Args:
        extent: what the dimension is made of.
        orders: per axis name, the old unit for each new position; missing axes stay as they are.

    Example:
        >>> permuted(Product((Along("a", 2), Fixed(2))), {"a": [1, 0]})
        [2, 3, 0, 1]
    """
    return _select(extent, lambda axis, size: orders.get(axis, range(size)))


def kept_range(extent: Extent, counts: Counts) -> tuple[int, int] | None:
    """Return `(start, stop)` when the kept entries are one range, otherwise None.

    Example:
        >>> kept_range(Product((Along("heads", 8), Fixed(64))), {"heads": 2})
        (0, 128)
        >>> kept_range(Product((Fixed(3), Along("dim", 64))), {"dim": 32}) is None
        True
    """
    if count(extent, counts) == 0:
        return 0, 0
    match extent:
        case Fixed(size):
            return 0, size
        case Along(axis, size):
            return 0, counts.get(axis, size)
        case Product(factors):
            return _product_range(factors, counts)
        case Concat(parts):
            return _concat_range(parts, counts)


def owned(extent: Extent, axis: str) -> list[tuple[int, int]]:
    """Return (entry, unit) for every entry of the dimension that belongs to a unit of an axis.

    An entry that stands in two units (a product of an axis with itself) is listed for both.

    Example:
        >>> owned(Concat((Product((Fixed(2), Along("a", 2))), Along("b", 9))), "a")
        [(0, 0), (1, 1), (2, 0), (3, 1)]
    """
    match extent:
        case Fixed():
            return []
        case Along(name, size):
            return [(unit, unit) for unit in range(size)] if name == axis else []
        case Product(factors):
            pairs: list[tuple[int, int]] = []
            inner = extent.size
            for outer, factor in enumerate(factors):
                inner //= max(1, factor.size)
                around = math.prod(each.size for each in factors[:outer])
                pairs += [
                    ((block * factor.size + entry) * inner + place, unit)
                    for entry, unit in owned(factor, axis)
                    for block in range(around)
                    for place in range(inner)
                ]
            return sorted(pairs)
        case Concat(parts):
            pairs, offset = [], 0
            for part in parts:
                pairs += [(offset + entry, unit) for entry, unit in owned(part, axis)]
                offset += part.size
            return pairs


def axes_of(extent: Extent) -> Iterator[str]:
    """Yield the name of every axis that the extent runs along (with repetitions)."""
    match extent:
        case Fixed():
            return
        case Along(axis):
            yield axis
        case Product(inner) | Concat(inner):
            for part in inner:
                yield from axes_of(part)


def parts_of(extent: Extent) -> Iterator[Extent]:
    """Yield the extent and everything that it is made of, outside in."""
    yield extent
    match extent:
        case Product(inner) | Concat(inner):
            for part in inner:
                yield from parts_of(part)


def pieces_of(extent: Extent) -> Iterator[Extent]:
    """Yield the parts of an extent, neighbours of a product or concatenation together too.

    Example:
        >>> list(pieces_of(Concat((Along("a", 3), Along("b", 2), Fixed(4)))))[-1]
        Concat(parts=(Along(axis='b', size=2), Fixed(size=4)))
    """
    for part in parts_of(extent):
        yield part
        if isinstance(part, (Product, Concat)):
            inner = part.factors if isinstance(part, Product) else part.parts
            if len(inner) <= MOST:
                for start, stop in itertools.combinations(range(len(inner) + 1), 2):
                    if 1 < stop - start < len(inner):
                        yield type(part)(inner[start:stop])


def substitute(extent: Extent, replace: Callable[[Along], Extent]) -> Extent:
    """Return the extent with every axis replaced (to freeze, to rename or to tie axes)."""
    match extent:
        case Fixed():
            return extent
        case Along():
            return replace(extent)
        case Product(factors):
            return Product(tuple(substitute(factor, replace) for factor in factors))
        case Concat(parts):
            return Concat(tuple(substitute(part, replace) for part in parts))


def to_json(extent: Extent) -> Any:
    """Return the extent as JSON values: 64, ["axis", "conv1", 64], ["*", ...] or ["+", ...]."""
    match extent:
        case Fixed(size):
            return size
        case Along(axis, size):
            return ["axis", axis, size]
        case Product(factors):
            return ["*", *map(to_json, factors)]
        case Concat(parts):
            return ["+", *map(to_json, parts)]


def from_json(value: Any) -> Extent:
    """Return the extent that `to_json` wrote.

    Raises:
        ValueError: the value is not of that form.
    """
    return _read(value, DEEPEST)


def _read(value: Any, levels: int) -> Extent:
    if levels == 0:
        raise ValueError(f"not an extent: nested too deeply (more than {DEEPEST} levels)")
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return Fixed(value)
    match value:
        case ["axis", str(name), int(size)] if size > 0 and not isinstance(size, bool):
            return Along(name, size)
        case ["*", _, *_]:
            return Product(tuple(_read(part, levels - 1) for part in value[1:]))
        case ["+", _, *_]:
            return Concat(tuple(_read(part, levels - 1) for part in value[1:]))
    raise ValueError(f"not an extent: {str(value)[:80]}")


def _select(extent: Extent, units: Callable[[str, int], Sequence[int]]) -> list[int]:
    match extent:
        case Fixed(size):
            return list(range(size))
        case Along(axis, size):
            return list(units(axis, size))
        case Product(factors):
            entries = [0]
            for factor in factors:
                chosen = _select(factor, units)
                entries = [entry * factor.size + unit for entry in entries for unit in chosen]
            return entries
        case Concat(parts):
            entries, offset = [], 0
            for part in parts:
                entries += [offset + entry for entry in _select(part, units)]
                offset += part.size
            return entries


def _product_range(factors: tuple[Extent, ...], counts: Counts) -> tuple[int, int] | None:
    inner = 1
    span = (0, 1)  # the range inside the factors seen so far, innermost first
    for factor in reversed(factors):
        own = kept_range(factor, counts)
        if own is None:
            return None
        if span == (0, inner):
            span = (own[0] * inner, own[1] * inner)
        elif own[1] - own[0] == 1:
            span = (own[0] * inner + span[0], own[0] * inner + span[1])
        else:
            return None
        inner *= factor.size
    return span


def _concat_range(parts: tuple[Extent, ...], counts: Counts) -> tuple[int, int] | None:
    """At least one part keeps something."""
    start, stop, offset = -1, -1, 0
    for part in parts:
        own = kept_range(part, counts)
        if own is None:
            return None
        if own[1] > own[0]:
            if start < 0:
                start = offset + own[0]
            elif stop != offset + own[0]:
                return None
            stop = offset + own[1]
        offset += part.size
    return start, stop
