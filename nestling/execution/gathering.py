"""Gathering: any set of units, copied out of the shared tensors and back, fast.

A subnet keeps a prefix of every axis. Here the units that are kept change from step to step and are
any set, so a tensor's kept entries are copied to a small tensor and back. A slot is a place of the
small tensor; where its entry stands in the shared one is an affine function of the units in the
slots, worked out once a shape (`Entries`). A step then fills in the units, adds the dimensions up
to places in the tensor's storage, and copies with one indexed read or write, in any memory format.
Few units change from one step to the next: only what belongs to their slots is copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from nestling.extent import Along, Concat, Extent, Fixed, Product

Slots: TypeAlias = Mapping[str, tuple[int, int]]
"""Per axis whose units are chosen: where they begin in the list of all chosen units, and how many
there are."""

Pairs: TypeAlias = Sequence[tuple[Tensor, Tensor]]
"""Blocks of a shared tensor with those of the small one that is filled from it."""

SHORTEST = 4  # entries in a row that are copied as one block; fewer are copied one by one
MOST_PARTS = 0.7  # of a tensor: where more of it changes, all of it is copied


@dataclass(frozen=True, eq=False)
class Entries:
    """The entries of a dimension that belong to the chosen units, as a function of these.

    Attributes:
        constant: what does not depend on the units, (n,).
        terms: pairs (slots, factors), each (n,): entry j is `constant[j]` plus the sum over the
            terms of `units[slots[j]] * factors[j]`.
        plain: the first and the last slot where the entries are the units themselves, one after
            the other.
    """

    constant: Tensor
    terms: tuple[tuple[Tensor, Tensor], ...]
    plain: tuple[int, int] | None = None

    @classmethod
    def of(cls, extent: Extent, slots: Slots) -> Entries:
        """Return the entries of a dimension that is made of this.

        Args:
            extent: of the full tensor's dimension.
            slots: of the axes whose units are chosen; other axes keep all.

        Example:
            >>> found = Entries.of(Product((Along("heads", 4), Fixed(2))), {"heads": (0, 2)})
            >>> found.at(torch.tensor([1, 3]))
            tensor([2, 3, 6, 7])
        """
        match extent:
            case Fixed(size):
                return cls(torch.arange(size), ())
            case Along(axis, size):
                if axis not in slots:
                    return cls(torch.arange(size), ())
                start, count = slots[axis]
                own = torch.arange(start, start + count)
                term = (own, torch.ones_like(own))
                return cls(torch.zeros_like(own), (term,), (start, start + count))
            case Product(factors):
                found = cls.of(factors[0], slots)
                for factor in factors[1:]:
                    found = found._times(cls.of(factor, slots), factor.size)
                return found
            case Concat(parts):
                return cls._joined([cls.of(part, slots) for part in parts], parts)

    @property
    def whole(self) -> bool:
        """Whether they do not depend on the chosen units: all entries are kept."""
        return not self.terms

    def __len__(self) -> int:
        return len(self.constant)

    def to(self, device: torch.device) -> Entries:
        """Return the same on a device."""
        terms = tuple((slots.to(device), factors.to(device)) for slots, factors in self.terms)
        return Entries(self.constant.to(device), terms, self.plain)

    def at(self, units: Tensor) -> Tensor:
        """Return the entries, (n,), for the chosen units of all axes, one axis after the other."""
        if self.plain is not None:
            return units[self.plain[0] : self.plain[1]]
        entries = self.constant
        for slots, factors in self.terms:
            entries = torch.addcmul(entries, units.index_select(0, slots), factors)
        return entries

    def among(self, slots: Tensor) -> Tensor:
        """Return which entries belong to one of the slots that are marked, (n,)."""
        if self.plain is not None:
            return slots[self.plain[0] : self.plain[1]]
        marked = torch.zeros_like(self.constant, dtype=torch.bool)
        for own, factors in self.terms:
            marked |= slots[own] & (factors != 0)
        return marked

    def _times(self, inner: Entries, size: int) -> Entries:
        """Return the entries of a product: these are the outer ones, `size` the inner full size."""
        more, times = len(inner), len(self)
        outer = [(slots.repeat_interleave(more), f.repeat_interleave(more) * size)
                 for slots, f in self.terms]  # fmt: skip
        own = [(slots.repeat(times), factors.repeat(times)) for slots, factors in inner.terms]
        constant = self.constant.repeat_interleave(more) * size + inner.constant.repeat(times)
        return Entries(constant, (*outer, *own))

    @staticmethod
    def _joined(found: Sequence[Entries], parts: Sequence[Extent]) -> Entries:
        constants, offset = [], 0
        for entries, part in zip(found, parts, strict=True):
            constants.append(entries.constant + offset)
            offset += part.size
        terms = []
        for place in range(max(len(entries.terms) for entries in found)):
            own = [
                entries.terms[place]
                if place < len(entries.terms)
                else (torch.zeros_like(entries.constant), torch.zeros_like(entries.constant))
                for entries in found
            ]
            terms.append((torch.cat([s for s, _ in own]), torch.cat([f for _, f in own])))
        return Entries(torch.cat(constants), tuple(terms))


class Window:
    """The part of a shared tensor's storage that belongs to the chosen units, and a copy of it.

    Storage is counted in blocks: numbers in a row that are kept or left together.

    Args:
        shared: the full tensor.
        entries: of each of its dimensions; not all of them whole.

    Attributes:
        own: the small tensor, in the memory format of the shared one.
        flat: its blocks, one after the other.
    """

    def __init__(self, shared: Tensor, entries: Sequence[Entries]) -> None:
        strides = shared.stride()
        order = sorted(range(shared.dim()), key=lambda dim: (-strides[dim], dim))
        self._block, inner = _block(shared, entries, order)
        self._shape = [len(entries[dim]) for dim in order]
        self._places = [order.index(dim) for dim in range(shared.dim())]
        self.own, self.flat = self.another(shared)
        self._lines = []
        own_step = self.own.numel() // self._block
        for dim in order[: len(order) - inner]:
            own_step //= len(entries[dim])
            step = shared.stride(dim) // self._block
            own = torch.arange(len(entries[dim]), device=shared.device) * own_step
            fixed = (entries[dim].constant * step).to(shared.device)
            self._lines.append(_Line(entries[dim], step, fixed, own))

    def another(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return a small tensor of the dtype and device of another one, not filled; its blocks."""
        laid = torch.empty(self._shape, dtype=like.dtype, device=like.device)
        return laid.permute(self._places), self._blocks(laid, laid.numel())

    def over(self, shared: Tensor) -> Tensor:
        """Return the blocks of a tensor that is laid out as the shared one is."""
        last = sum((n - 1) * s for n, s in zip(shared.shape, shared.stride(), strict=True))
        return self._blocks(shared.detach(), last + 1)

    def _blocks(self, tensor: Tensor, numbers: int) -> Tensor:
        start, block = tensor.storage_offset(), self._block
        if block == 1:
            return tensor.as_strided((numbers,), (1,), start)
        return tensor.as_strided((numbers // block, block), (block, 1), start)

    def index(self, at: Chosen) -> Tensor:
        """Return which blocks of a shared tensor belong to the chosen units, in their order."""
        return _spread([line.at(at) for line in self._lines])

    def take(self, pairs: Pairs, index: Tensor) -> None:
        """Fill the small tensor, and others of its layout.

        Args:
            pairs: blocks of the shared tensor and of the small one, for each.
            index: as `index` returns it.
        """
        for shared, own in pairs:
            torch.index_select(shared, 0, index, out=own)

    def put(self, pairs: Pairs, index: Tensor) -> None:
        """Write the small tensor, and others of its layout, back."""
        for shared, own in pairs:
            _write(shared, index, own)

    def exchange(self, pairs: Pairs, old: Chosen, new: Chosen, changed: Changed) -> None:
        """Write units back and fill their slots with other ones.

        Args:
            pairs: as for `take`.
            old: the units that the small tensors hold.
            new: the units that they shall hold.
            changed: which slots differ.
        """
        parts = [(place, changed.within(line.entries)) for place, line in enumerate(self._lines)]
        parts = [(place, part) for place, part in parts if len(part)]
        share = sum(len(part) / len(self._lines[place].own) for place, part in parts)
        if not parts:
            return
        if share > MOST_PARTS:
            self.put(pairs, self.index(old))
            self.take(pairs, self.index(new))
            return
        places = [self._part(place, part, old, new) for place, part in parts]
        for own_index, old_index, _ in places:
            for shared, own in pairs:
                _write(shared, old_index, own.index_select(0, own_index))
        for own_index, _, new_index in places:
            for shared, own in pairs:
                _write(own, own_index, shared.index_select(0, new_index))

    def _part(
        self, place: int, part: Tensor, old: Chosen, new: Chosen
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the blocks of some entries of one dimension: in the copy, and before and after."""
        found = []
        for lines in (
            [line.own for line in self._lines],
            [line.at(old) for line in self._lines],
            [line.at(new) for line in self._lines],
        ):
            lines[place] = lines[place].index_select(0, part)
            found.append(_spread(lines))
        return found[0], found[1], found[2]


@dataclass(frozen=True, eq=False)
class _Line:
    """A dimension of a window: how far its entries are from the first one, in blocks."""

    entries: Entries
    step: int
    fixed: Tensor
    own: Tensor

    def at(self, chosen: Chosen) -> Tensor:
        if self.entries.whole:
            return self.fixed
        found = chosen.at(self.entries)
        return found if self.step == 1 else found * self.step


class Chosen:
    """The units that are chosen, with the entries that were asked for so far.

    Args:
        units: of all axes, one axis after the other.
    """

    def __init__(self, units: Tensor) -> None:
        self.units = units
        self._known: dict[int, Tensor] = {}

    def at(self, entries: Entries) -> Tensor:
        """Return the entries of these units."""
        found = self._known.get(id(entries))
        if found is None:
            found = self._known[id(entries)] = entries.at(self.units)
        return found


class Changed:
    """The slots whose units change, with the entries that were asked for so far.

    Args:
        slots: whether the unit of each slot changes, (slots,).
    """

    def __init__(self, slots: Tensor) -> None:
        self.slots = slots
        self._known: dict[int, Tensor] = {}
        self._none = slots.new_empty(0, dtype=torch.int64)

    def within(self, entries: Entries) -> Tensor:
        """Return the entries that belong to a slot that changes."""
        if entries.whole:
            return self._none
        found = self._known.get(id(entries))
        if found is None:
            found = self._known[id(entries)] = entries.among(self.slots).nonzero().view(-1)
        return found


def _spread(lines: Sequence[Tensor]) -> Tensor:
    """Return the sums of one number from each line, for all combinations, the last one fastest."""
    total = lines[0]
    for line in lines[1:]:
        total = (total.unsqueeze(1) + line).view(-1)
    return total


def _write(blocks: Tensor, index: Tensor, values: Tensor) -> None:
    if blocks.dim() == 1:
        blocks.scatter_(0, index, values)  # several times faster than index_copy_ for single ones
    else:
        blocks.index_copy_(0, index, values)


def _block(shared: Tensor, entries: Sequence[Entries], order: Sequence[int]) -> tuple[int, int]:
    """Return how many numbers lie in a row that are kept together, and of how many dimensions."""
    block, inner = 1, 0
    for dim in reversed(order):
        whole = entries[dim].whole and shared.stride(dim) == block
        if not (whole or (shared.shape[dim] == 1 and entries[dim].whole)):
            break
        block, inner = block * shared.shape[dim], inner + 1
    rest = [shared.stride(dim) for dim in order[: len(order) - inner]]
    if block < SHORTEST or any(stride % block for stride in rest):
        return 1, 0
    return block, inner
