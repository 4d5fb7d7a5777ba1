"""Axes: the elastic dimensions of a model, and the counts that each allows."""

from __future__ import annotations

from dataclasses import dataclass

WIDE = 128  # axes of at least this size go in steps of 16, narrower ones in steps of 8
BITS = "bits"  # a kind whose counts are not evenly spread: 2, 4, 8, and 32 for floating point
ORDERED = ("depth", BITS)  # kinds whose units have an order of their own, which nothing changes
SINGLE = ("heads", "paths", *ORDERED)  # kinds whose units go one at a time


@dataclass(frozen=True)
class Axis:
    """An elastic dimension of the model: slices of weights that are cut together.

    Attributes:
        name: the common module path of its producers; the kind follows where it is not plain.
        size: units of the full net.
        kind: what a unit is: channels, neurons, heads, head_size, embedding, paths, depth or bits.
        counts: the numbers of units that a spec may keep, ascending, the size last.
        outer: whether the uniform width cuts it; an axis inside the units of another one is not
            (half of the heads and half of each head would be a quarter).
    """

    name: str
    size: int
    kind: str
    counts: tuple[int, ...]
    outer: bool = True

    def nearest(self, units: float) -> int:
        """Return the allowed count nearest to a number of units; the larger one of two."""
        return min(self.counts, key=lambda count: (abs(count - units), -count))

    @property
    def ordered(self) -> bool:
        """Whether its units have an order of their own, so that rankers skip it."""
        return self.kind in ORDERED


def allowed_counts(size: int, kind: str, step: int | None) -> tuple[int, ...]:
    """Return the counts that an axis allows; they follow from its size, kind and step alone.

    Without a step: multiples of 16 for axes of 128 units and more, of 8 down to 16 units, and of
    the largest power of two up to half of the size below that; single heads, paths and layers.
    Aligned widths are the fast ones: 33 channels cost 40 % more time than 32.

    Example:
        >>> allowed_counts(64, "channels", None)
        (8, 16, 24, 32, 40, 48, 56, 64)
    """
    if step is None:
        if kind in SINGLE:
            step = 1
        elif size >= 16:
            step = 16 if size >= WIDE else 8
        else:
            step = 1 << max(0, (size // 2).bit_length() - 1)
    return (*range(step, size, step), size)
