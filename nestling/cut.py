"""Cuts: the part of a shared tensor that a subnet keeps."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from nestling import extent as extents
from nestling.extent import Counts, Extent
from nestling.spec import Layout

_DENSE = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """The part of a shared tensor that a subnet keeps.

    Attributes:
        ranges: `(dim, start, length)` of every dimension that keeps one range of its entries.
        gathered: `(dim, entries)` of every dimension whose kept entries are not one range.
    """

    ranges: tuple[tuple[int, int, int], ...]
    gathered: tuple[tuple[int, Tensor], ...]

    @classmethod
    def of(cls, layout: Layout, counts: Counts) -> Cut:
        """Return the cut that a spec makes in a tensor of this layout."""
        ranges, gathered = [], []
        for dim, extent in enumerate(layout.extents):
            span = extents.kept_range(extent, counts)
            if span is None:
                units = tuple((name, counts[name]) for name in _axes(extent) if name in counts)
                gathered.append((dim, _entries(extent, units)))
            elif span != (0, extent.size):
                ranges.append(_range(dim, span[0], span[1] - span[0]))
        return cls(tuple(ranges), tuple(gathered))

    @property
    def whole(self) -> bool:
        """Whether everything is kept."""
        return not self.ranges and not self.gathered

    def view(self, shared: Tensor) -> Tensor:
        """Return the ranges of a tensor as a view (gathered dimensions stay whole)."""
        for dim, start, length in self.ranges:
            shared = shared.narrow(dim, start, length)
        return shared

    def take(self, shared: Tensor) -> Tensor:
        """Return the kept entries: a view, or a copy in the same memory format."""
        part = self.view(shared)
        if not self.gathered:
            return part
        for dim, entries in self.gathered:
            part = part.index_select(dim, entries.to(shared.device))
        dense = _DENSE.get(shared.dim())
        if dense is not None and not shared.is_contiguous():
            return part.contiguous(
                memory_format=dense
                if shared.is_contiguous(memory_format=dense)
                else torch.contiguous_format
            )
        return part

    def add(self, shared: Tensor, part: Tensor) -> None:
        """Add the kept entries onto the whole tensor, in place."""
        self._write(shared, part, accumulate=True)

    def put(self, shared: Tensor, part: Tensor) -> None:
        """Write the kept entries into the whole tensor, in place."""
        self._write(shared, part, accumulate=False)

    def zero(self, shared: Tensor) -> None:
        """Set the kept entries of the whole tensor to zero, in place."""
        target = self.view(shared)
        if self.gathered:
            self._write(shared, torch.zeros_like(self.take(shared)), accumulate=False)
        else:
            target.zero_()

    def _write(self, shared: Tensor, part: Tensor, accumulate: bool) -> None:
        target = self.view(shared)
        part = part.to(target.dtype)
        if not self.gathered:
            target.add_(part) if accumulate else target.copy_(part)
        elif len(self.gathered) == 1:
            dim, entries = self.gathered[0]
            write = target.index_add_ if accumulate else target.index_copy_
            write(dim, entries.to(target.device), part)
        else:
            spread = [torch.arange(n, device=target.device) for n in target.shape]
            for dim, entries in self.gathered:
                spread[dim] = entries.to(target.device)
            target.index_put_(torch.meshgrid(*spread, indexing="ij"), part, accumulate=accumulate)


def _axes(extent: Extent) -> list[str]:
    return sorted(set(extents.axes_of(extent)))


@functools.lru_cache(maxsize=256)
def _entries(extent: Extent, units: tuple[tuple[str, int], ...]) -> Tensor:
    # One tensor for all that are cut alike: the weights, biases and statistics of a norm and the
    # inputs of the layer behind it.
    with torch.inference_mode(False):
        return torch.tensor(extents.kept(extent, dict(units)), device="cpu")


@functools.lru_cache(maxsize=4096)
def _range(dim: int, start: int, length: int) -> tuple[int, int, int]:
    return dim, start, length  # one tuple for all subnets: there are thousands of cuts, few ranges
