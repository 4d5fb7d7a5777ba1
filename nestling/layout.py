"""Layouts: what the tensors, sizes, blocks and work of a model are made of, along its axes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nestling import extent as extents
from nestling.extent import Counts, Extent
from nestling.passage import Passage


@dataclass(frozen=True)
class Layout:
    """What the dimensions of one parameter or buffer are made of."""

    extents: tuple[Extent, ...]
    parameter: bool
    itemsize: int

    def shape(self, counts: Counts) -> tuple[int, ...]:
        """Return the shape that a spec leaves."""
        return tuple(extents.count(extent, counts) for extent in self.extents)


@dataclass(frozen=True)
class Frozen:
    """A dimension of a parameter that cannot be cut, and why."""

    parameter: str
    dim: int
    size: int
    op: str
    module: str
    reason: str


@dataclass(frozen=True)
class Attribute:
    """A size that a module holds as an integer (or at `index` of a tuple) and that follows axes."""

    module: str
    name: str
    index: int | None
    extent: Extent


@dataclass(frozen=True)
class Block:
    """A residual block that subnets of less depth pass by.

    Attributes:
        module: its path.
        axis: the depth axis of its stage.
        place: how many blocks of the stage come before it: it is kept by counts above that.
        passage: what it returns when it is passed by.
    """

    module: str
    axis: str
    place: int
    passage: Passage


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates of one op for one example: the product of its extents over `per`."""

    module: str
    extents: tuple[Extent, ...]
    per: int = 1

    def macs(self, counts: Counts) -> int:
        """Return the multiply-accumulates that a spec leaves."""
        return math.prod(extents.count(extent, counts) for extent in self.extents) // self.per
