"""Placing labels beside points so that none overlaps: plain geometry in pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# The angles tried, best first: below right is empty in a picture of accuracy against cost.
_ANGLES = (-30, 0, -60, -90, 30, 150, 90, 180, 60, 120, -120, -150, -15, 15, 165, 105)
_CLEARANCES = (10.0, 18.0, 30.0, 46.0, 66.0, 92.0, 124.0, 164.0, 212.0)
_PASSES = 3


class Box(NamedTuple):
    """A rectangle in pixels, y upwards."""

    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: Box) -> bool:
        """Return whether the two share any area."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.bottom < other.top
            and other.bottom < self.top
        )

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """Return the point of the box that is nearest to (x, y)."""
        return min(max(x, self.left), self.right), min(max(y, self.bottom), self.top)


def place_labels(
    anchors: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    *,
    keep_off: Sequence[Box],
    avoid: npt.NDArray[np.float64],
    bounds: Box,
) -> list[Box | None]:
    """Return a box for each label, or `None` where no free place was found.

    A label never meets another one or a box of `keep_off`, and never leaves `bounds`; it stays near
    its anchor and off the points of `avoid` where it can. Labels are placed one by one, then each
    is placed again knowing all the others.

    Args:
        anchors: the points that are labelled, in pixels.
        sizes: width and height of each label, in pixels.
        keep_off: boxes that no label may cover (the markers).
        avoid: points, shape (n, 2), that a label should not cover (along lines and bars).
        bounds: where labels may stand.
    """
    placed: list[Box | None] = [None] * len(anchors)
    for _ in range(_PASSES):
        before = list(placed)
        for i, (anchor, size) in enumerate(zip(anchors, sizes, strict=True)):
            others = [box for j, box in enumerate(placed) if j != i and box is not None]
            choices = [
                (_badness(box, anchor, clearance + rank, avoid, others), n, box)
                for n, (box, clearance, rank) in enumerate(_candidates(anchor, size))
                if _inside(box, bounds) and not any(box.meets(b) for b in (*keep_off, *others))
            ]
            placed[i] = min(choices)[2] if choices else None
        if placed == before:
            break
    return placed


def _candidates(
    anchor: tuple[float, float], size: tuple[float, float]
) -> list[tuple[Box, float, float]]:
    """Return boxes around the anchor with their clearance and the rank of their angle."""
    (x, y), (width, height) = anchor, size
    found: list[tuple[Box, float, float]] = []
    for clearance in _CLEARANCES:
        for rank, degrees in enumerate(_ANGLES):
            across, up = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            # The box's nearest side, not its middle, keeps the clearance.
            middle_x = x + across * clearance + width / 2 * max(-1.0, min(1.0, 1.6 * across))
            middle_y = y + up * clearance + height / 2 * max(-1.0, min(1.0, 1.6 * up))
            left, bottom = middle_x - width / 2, middle_y - height / 2
            found.append((Box(left, bottom, left + width, bottom + height), clearance, rank))
    return found


def _badness(
    box: Box,
    anchor: tuple[float, float],
    distance: float,
    avoid: npt.NDArray[np.float64],
    others: Sequence[Box],
) -> float:
    """Return distance plus penalties for covered lines and for a leader that crosses a label."""
    x, y = avoid[:, 0], avoid[:, 1]
    covered = (x > box.left) & (x < box.right) & (y > box.bottom) & (y < box.top)
    end = box.nearest(*anchor)
    crossed = 0
    for step in (0.2, 0.4, 0.6, 0.8):
        px, py = (a + step * (b - a) for a, b in zip(anchor, end, strict=True))
        crossed += sum(o.left < px < o.right and o.bottom < py < o.top for o in others)
    return distance + 7.0 * int(covered.sum()) + 60.0 * crossed


def _inside(box: Box, bounds: Box) -> bool:
    return (
        box.left >= bounds.left
        and box.right <= bounds.right
        and box.bottom >= bounds.bottom
        and box.top <= bounds.top
    )
