"""Filling: batches that are filled up to a number of examples which code was made for.

Compiled code is for one number of examples. The views that would run another number take longer
than the forecast says, which was measured on the code.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nestling import backends
from nestling.axes.structure import map_tensors
from nestling.runtime import LoadedModel


@dataclass(frozen=True)
class Filling:
    """Which batches are filled up, by entry.

    Attributes:
        batches: examples a call that were measured, ascending.
        fixed: name of an entry -> those of them that run on code made for just that number.

    Example:
        >>> found = Filling((1, 8), {"full": frozenset({1, 8})})
        >>> found.size("full", 3), found.size("half", 3)
        (8, 3)
    """

    batches: Sequence[int]
    fixed: Mapping[str, frozenset[int]]

    @classmethod
    def of(cls, model: LoadedModel, batches: Sequence[int]) -> Filling:
        """Return how a model that is prepared for these batches fills them up."""

        def fixed(name: str) -> frozenset[int]:
            own = {batch: backends.find(model.backend_of(name, batch)).bound for batch in batches}
            return frozenset(batch for batch, bound in own.items() if bound == "batch")

        return cls(tuple(sorted(batches)), {entry.name: fixed(entry.name) for entry in model.menu})

    def size(self, entry: str, count: int) -> int:
        """Return with how many examples an entry runs so many."""
        above = bisect_left(self.batches, count)
        if above == len(self.batches) or self.batches[above] not in self.fixed.get(entry, ()):
            return count
        return self.batches[above]

    def run(
        self, model: LoadedModel, entry: str, args: Sequence[Tensor], kwargs: Mapping[str, Any]
    ) -> Any:
        """Run an entry on inputs whose first dimension is the batch; fill it with the last one."""
        count = len(next(iter((*args, *kwargs.values()))))
        size = self.size(entry, count)
        if size == count:
            return model(*args, subnet=entry, **kwargs)

        def filled(tensor: Tensor) -> Tensor:
            return torch.cat([tensor, tensor[-1:].expand(size - count, *tensor.shape[1:])])

        def cut(tensor: Tensor) -> Tensor:
            # What has no row for each example is refused where it is handed out, by its shape.
            return tensor[:count] if tensor.shape[:1] == (size,) else tensor

        named: dict[str, Any] = {name: filled(tensor) for name, tensor in kwargs.items()}
        return map_tensors(model(*map(filled, args), subnet=entry, **named), cut)
