"""L2 norms: a unit is worth the Euclidean length of the weights that make it.

Source: He, Kang, Dong, Fu and Yang, Soft Filter Pruning (IJCAI 2018).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from nestling.training import Run
from nestling.units import Place, scored


def l2(run: Run) -> Mapping[str, Tensor]:
    """Score units by the L2 norm of the weights that make them.

    Args:
        run: whose net is ranked; nothing is trained, and no batch is read.
    """
    weights = dict(run.net.named_parameters())

    def norm(place: Place) -> Tensor:
        return place.sums(weights[place.parameter].detach().double().square()).sqrt()

    return scored(run.net.space, norm)
