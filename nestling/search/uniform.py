"""Uniform widths: one multiplier for all axes; the plainest proposal and the common baseline.

Source: Yu et al., Slimmable Neural Networks (ICLR 2019); Yu and Huang, Universally Slimmable
Networks (ICCV 2019).
"""

from __future__ import annotations

from collections.abc import Sequence

from nestling.spec import Space, Spec

FRACTIONS = (1.0, 0.75, 0.5, 0.35, 0.25, 0.15, 0.1)


def ladder(space: Space, fractions: Sequence[float] = FRACTIONS) -> list[Spec]:
    """Return distinct uniform specs, largest first, each nearest to one share of the full MACs.

    Args:
        space: of the net.
        fractions: wanted shares of the full net's multiply-accumulates.

    Example:
        >>> [round(net.space.macs(spec) / 1e6, 1) for spec in nestling.search.ladder(net.space)]
    """
    full = space.macs(space.full)
    nearest = {
        min(space.uniform, key=lambda spec: abs(space.macs(spec) / full - fraction)): None
        for fraction in fractions
    }
    return sorted(nearest, key=space.macs, reverse=True)
