"""L1 norms: a unit is worth the sum of the absolute weights that make it.

Source: Li, Kadav, Durdanovic, Samet and Graf, Pruning Filters for Efficient ConvNets (ICLR 2017).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from nestling.training import Run
from nestling.units import Place, scored


def l1(run: Run) -> Mapping[str, Tensor]:
    """Score units by the L1 norm of the weights that make them.

    Args:
        run: whose net is ranked; nothing is trained, and no batch is read.
    """
    weights = dict(run.net.named_parameters())

    def norm(place: Place) -> Tensor:
        return place.sums(weights[place.parameter].detach().double().abs())

    return scored(run.net.space, norm)
