"""Random scores: the order that says nothing, to compare with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nestling.training import Run
from nestling.units import loose_axes


def random(run: Run) -> Mapping[str, Tensor]:
    """Score units at random.

    Args:
        run: whose net is ranked, and whose seed decides; nothing is trained, and no batch is read.
    """
    draw = torch.Generator().manual_seed(run.seed)
    return {
        axis.name: torch.rand(axis.size, generator=draw, dtype=torch.float64)
        for axis in loose_axes(run.net.space)
    }
