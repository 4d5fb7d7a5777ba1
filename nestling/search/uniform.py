"""Uniform widths: one multiplier for all axes; the plainest proposal and the common baseline.

Source: Yu et al., Slimmable Neural Networks (ICLR 2019); Yu and Huang, Universally Slimmable
Networks (ICCV 2019).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Annotated, TypeAlias

from nestling.errors import SpecError
from nestling.options import Checked
from nestling.search.request import Found, Progress, Score, Search
from nestling.spec import Space, Spec

FRACTIONS = (1.0, 0.75, 0.5, 0.35, 0.25, 0.15, 0.1)
HAIR = 1e-9  # far less than a unit: beyond the tie between two counts


def width_of(space: Space, spec: Spec) -> float:
    """Return the width of a uniform spec: `space.spec(width=width_of(space, spec)) == spec`.

    Of all widths that round to the spec, it is the one nearest to the mean share that axes keep.

    Raises:
        SpecError: the spec is not uniform.

    Example:
        >>> width_of(net.space, net.space.spec(width=0.5))
        0.5
    """
    least, most = 0.0, 1.0
    outer = [axis for axis in space.axes.values() if axis.outer]
    for axis in outer:
        place = axis.counts.index(spec[axis.name])
        turns = [(low + high) / 2 / axis.size for low, high in pairwise(axis.counts)]
        if place:
            least = max(least, turns[place - 1] + HAIR)
        if place < len(turns):
            most = min(most, turns[place] - HAIR)
    shares = [spec[axis.name] / axis.size for axis in outer] or [1.0]
    width = max(least, min(most, sum(shares) / len(shares)))
    if width > 1 or space.spec(width=width) != spec:
        raise SpecError(
            f"only a uniform spec has a width, and {dict(spec)} is not one; see space.uniform"
        )
    return width


def ladder(space: Space, fractions: Sequence[float] = FRACTIONS) -> list[Spec]:
    """Return distinct uniform specs, largest first, each nearest to one share of the full MACs.

    Args:
        space: of the net.
        fractions: wanted shares of the full net's multiply-accumulates, above 0 and at most 1.

    Raises:
        SpecError: there is no fraction, or one is no such share.

    Example:
        >>> [round(net.space.macs(spec) / 1e6, 1) for spec in nestling.search.ladder(net.space)]
    """
    check_fractions(fractions)
    full = space.macs(space.full)
    nearest = {
        min(space.uniform, key=lambda spec: abs(space.macs(spec) / full - fraction)): None
        for fraction in fractions
    }
    return sorted(nearest, key=space.macs, reverse=True)


def check_fractions(fractions: Sequence[float]) -> None:
    """Check shares of the full net's multiply-accumulates.

    Raises:
        SpecError: there is none, or one is not above 0 and at most 1.
    """
    listed = isinstance(fractions, Collection) and not isinstance(fractions, str)
    if not listed or not list(fractions):
        raise SpecError(
            f"fractions= lists at least one share, such as (1.0, 0.5), not {fractions!r}"
        )
    for fraction in fractions:
        if isinstance(fraction, bool) or not isinstance(fraction, (int, float)):
            raise SpecError(f"a fraction is a number, but it is {fraction!r}")
        if not 0 < fraction <= 1:
            raise SpecError(f"a fraction is above 0 and at most 1, but it is {fraction!r}")


Fractions: TypeAlias = Annotated[Sequence[float], Checked(check_fractions)]


def uniform(space: Space, *, fractions: Fractions = FRACTIONS) -> Search:
    """Search nothing: score the uniform widths nearest to some shares of the full net's MACs.

    Args:
        space: of the net.
        fractions: wanted shares, above 0 and at most 1.

    Returns:
        The specs of `ladder`, largest first.

    Raises:
        SpecError: there is no fraction, or one is no such share.

    Example:
        >>> found = nestling.search.conduct(uniform(net.space), net, score=score)
    """
    specs = ladder(space, fractions)
    found = []
    for done, spec in enumerate(specs):
        yield Progress(done, len(specs))
        accuracy: float = yield Score(spec)
        found.append(Found(spec, accuracy))
    yield Progress(len(specs), len(specs))
    return found
