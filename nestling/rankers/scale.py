"""Scales of norm layers: a unit is worth the factor by which its norm multiplies it.

Source: Liu, Li, Shen, Huang, Yan and Zhang, Learning Efficient Convolutional Networks through
Network Slimming (ICCV 2017), for batch norm.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from nestling.spec import Space
from nestling.training import Run
from nestling.units import Place, combined, loose_axes, makers, norm_scales


def scale(run: Run) -> Mapping[str, Tensor]:
    """Score units by the absolute scale of the norm layers that they pass, else by their L1 norm.

    A norm layer is any module with "norm" in its class's name and a `weight` of one dimension:
    batch, layer, group and RMS norm, and those of model libraries. Axes that pass none (heads,
    neurons between two linear layers) have the L1 norm of the weights that make them.

    Args:
        run: whose net is ranked; nothing is trained, and no batch is read.
    """
    net = run.net
    norms = list(norm_scales(net.model))
    weights = dict(net.named_parameters())

    def measure(place: Place) -> Tensor:
        return place.sums(weights[place.parameter].detach().double().abs())

    return {
        axis.name: combined(
            [
                measure(place)
                for place in _passed(net.space, axis.name, norms) or makers(net.space, axis.name)
            ]
        )
        for axis in loose_axes(net.space)
    }


def _passed(space: Space, axis: str, norms: list[str]) -> list[Place]:
    """Return where the units of an axis stand in the scales of norm layers."""
    touched = set(space.touches(axis))
    return [Place.of(space, axis, norm, 0) for norm in norms if (norm, 0) in touched]
