"""A cutoff: one bound on the scores of all axes, so that what is above it fits a share of MACs.

Scores must be comparable from axis to axis: scales of batch norms are, and so is what was divided
by its axis's mean.

Source: Liu, Li, Shen, Huang, Yan and Zhang, Learning Efficient Convolutional Networks through
Network Slimming (ICCV 2017): "a global threshold across all layers".
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping

import torch
from torch import Tensor

from nestling.errors import BudgetError
from nestling.spec import Space, Spec


def cutoff(space: Space, scores: Mapping[str, Tensor], share: float) -> Spec:
    """Return the counts of the units whose score is at least a common bound, the least that fits.

    Every axis keeps an allowed count, the nearest to its units above the bound, and at least its
    least one; axes without scores keep all.

    Args:
        space: of the net.
        scores: axis name to one number a unit.
        share: of the full net's MACs that the spec costs at most.

    Raises:
        BudgetError: the least counts cost more.

    Example:
        >>> spec = cutoff(net.space, rankers.scores(run, "slimming"), 0.3)
    """
    bounds = [*sorted({float(s) for score in scores.values() for s in score.tolist()}), math.inf]
    budget = share * space.macs(space.full)

    def spec(bound: float) -> Spec:
        counts = {
            name: space.axes[name].nearest(float(torch.count_nonzero(score >= bound)))
            for name, score in scores.items()
        }
        return Spec(space, counts)

    # The cost falls as the bound rises; the last one stands where none fits.
    place = bisect_left(
        bounds, True, hi=len(bounds) - 1, key=lambda bound: space.macs(spec(bound)) <= budget
    )
    found = spec(bounds[place])
    if space.macs(found) > budget:
        raise BudgetError(
            f"the least counts of all scored axes cost {space.macs(found) / budget * share:.3g} of "
            f"the full net's MACs, more than {share:.3g}; ask for more, or make the axes finer "
            "with step="
        )
    return found
