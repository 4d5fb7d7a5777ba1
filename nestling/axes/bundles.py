"""Bundles: an axis that the code takes to be as wide as several others together.

Attention is often written with `C // heads` for the size of a head, or with `reshape(B, N, C)`
after it, where `C` is the width of its input. Then the embedding is no axis of its own: it must
become (heads, head size).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from nestling import extent as extents
from nestling.extent import Along, Extent, Fixed, Product
from nestling.spec import Space

Factors: TypeAlias = tuple[Extent, ...]


def bundles(space: Space, name: str) -> Iterator[dict[str, Extent]]:
    """Yield the ties by which an axis, or one that it is a factor of, becomes a product.

    All products of its size that have one shape become one: `(heads, head size)` of each layer
    that reads or writes the embedding.
    """
    yield from _bundled(space, name)
    for other, axis in space.axes.items():
        if other != name and not axis.ordered and axis.size > space.axes[name].size:
            for tie in _bundled(space, other):
                if any(name in extents.axes_of(extent) for extent in tie.values()):
                    yield tie


def _bundled(space: Space, name: str) -> Iterator[dict[str, Extent]]:
    shapes: dict[tuple[int, ...], list[Factors]] = {}
    for factors in dict.fromkeys(_products(space, name)):
        shapes.setdefault(tuple(factor.size for factor in factors), []).append(factors)
    for alike in shapes.values():
        tie = _joined(alike)
        if tie is not None:
            yield {name: Product(alike[0]), **tie}


def _products(space: Space, name: str) -> Iterator[Factors]:
    """Yield what has the size of an axis, outer to inner, in the tensors that it cuts."""
    for tensor in dict.fromkeys(tensor for tensor, _ in space.touches(name)):
        for extent in space.layouts[tensor].extents:
            for part in extents.parts_of(extent):
                if isinstance(part, Product):
                    yield from _runs(part.factors, name, space.axes[name].size)


def _runs(factors: Factors, name: str, size: int) -> Iterator[Factors]:
    """Yield the neighbouring factors that make up a size, at least one of them an axis."""
    for first, last in itertools.combinations(range(len(factors) + 1), 2):
        run = factors[first:last]
        plain = all(isinstance(factor, (Along, Fixed)) for factor in run)
        if len(run) > 1 and plain and math.prod(factor.size for factor in run) == size:
            axes = [axis for factor in run for axis in extents.axes_of(factor)]
            if axes and name not in axes and len(set(axes)) == len(axes):
                yield run


def _joined(alike: Sequence[Factors]) -> dict[str, Extent] | None:
    """Return the tie that makes products of one shape one; None where they cannot be."""
    tie: dict[str, Extent] = {}
    for factors in alike[1:]:
        for leader, other in zip(alike[0], factors, strict=True):
            if leader == other:
                continue
            if not isinstance(leader, Along) or not isinstance(other, Along):
                return None
            if tie.setdefault(other.axis, leader) != leader:
                return None
    leaders = {axis for factor in alike[0] for axis in extents.axes_of(factor)}
    return None if leaders & tie.keys() else tie
