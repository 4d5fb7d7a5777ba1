"""Fisher: a unit is worth what the loss would lose, to second order, with its weights.

The squared gradient stands for the curvature (the empirical Fisher information). It is that of
whole batches, not of single examples, so that it costs no more than `taylor`: larger by what one
example's gradient varies from the next's.

Source: Theis, Korshunova, Tejani and Huszar, Faster Gaze Prediction with Dense Networks and Fisher
Pruning (arXiv 1801.05787).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from torch import Tensor

from nestling.options import whole
from nestling.rankers.taylor import BATCHES, added
from nestling.training import Run
from nestling.units import scored


def fisher(run: Run, *, batches: Annotated[int, whole(1)] = BATCHES) -> Mapping[str, Tensor]:
    """Score units by the sum of `(weight * gradient) ** 2` over their weights and batches.

    Args:
        run: whose net is ranked on its training batches; nothing is trained.
        batches: how many of them; fewer where the data has fewer.

    Raises:
        DataError: there is no batch.
        ModelError: `batches` is no whole number of at least 1, or a gradient is not finite.
    """
    totals = added(run, batches, lambda weight, gradient: (weight * gradient).square())
    return scored(run.net.space, lambda place: place.sums(totals[place.parameter]))
