"""Network Slimming: a unit is worth its batch norm's scale, after a training that shrinks these.

The full net is trained with `loss + strength * sum |gamma|` over the scales of all norm layers that
an axis passes. Scores are the scales themselves, so they compare units of different axes: a global
cut (`nestling.execution.cutoff`) is the paper's.

Source: Liu, Li, Shen, Huang, Yan and Zhang, Learning Efficient Convolutional Networks through
Network Slimming (ICCV 2017).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from nestling.errors import ModelError
from nestling.objectives.sandwich import Loss, task_loss
from nestling.options import Checked, whole
from nestling.rankers.noise import check_trains
from nestling.supernet import Supernet
from nestling.training import Run
from nestling.units import Place, combined, loose_axes, makers, norm_scales

STRENGTH = 1e-4  # the paper's, for VGG on CIFAR-10


def slimming(
    run: Run,
    *,
    strength: Annotated[float, Checked(_check)] = STRENGTH,
    epochs: Annotated[int | None, whole(1, none=True)] = None,
) -> Mapping[str, Tensor]:
    """Train the full net with the L1 norm of its norm layers' scales and score units by these.

    A unit that passes several norm layers has the mean of their scales. Axes that pass none
    (heads, neurons between two linear layers) have the L1 norm of the weights that make them,
    relative to its mean, times the mean of all scales.

    Args:
        run: whose net is trained.
        strength: of the penalty. The paper has 1e-4 for VGG, 1e-5 for ResNet and DenseNet.
        epochs: of the training; the run's by default.

    Raises:
        ModelError: an option that is none, no epoch, or a training that diverged.
        DataError: the batches do not fit.
    """
    _check(strength)
    check_trains(run, epochs)
    space = run.net.space
    scales = list(norm_scales(run.net.model))
    touched = {axis.name: set(space.touches(axis.name)) for axis in loose_axes(space)}
    passed = [name for name in scales if any((name, 0) in dims for dims in touched.values())]

    def objective(net: Supernet) -> Iterator[tuple[nn.Module, Loss]]:
        subnet = net.pooled(space.full).train()
        weights = dict(subnet.named_parameters())
        yield subnet, _penalised(run.loss or task_loss, [weights[n] for n in passed], strength)

    run.train_stage(objective, name="slimming", epochs=epochs)
    weights = {name: p.detach().double().abs() for name, p in run.net.named_parameters()}
    usual = torch.cat([weights[name] for name in passed]).mean() if passed else torch.tensor(1.0)
    found = {}
    for name, dims in touched.items():
        own = [Place.of(space, name, scale, 0) for scale in passed if (scale, 0) in dims]
        if own:
            found[name] = torch.stack([_mean(place, weights) for place in own]).mean(0)
        else:
            sums = [place.sums(weights[place.parameter]) for place in makers(space, name)]
            found[name] = combined(sums) * usual.to(sums[0])
    return found


def _check(strength: float) -> None:
    number = isinstance(strength, (int, float)) and not isinstance(strength, bool)
    if not number or not 0 <= strength < math.inf:
        raise ModelError(f"strength= is a number of at least 0, but it is {strength!r}")


def _mean(place: Place, weights: Mapping[str, Tensor]) -> Tensor:
    """Return the mean of the entries of each unit."""
    weight = weights[place.parameter]
    return place.sums(weight) / place.sums(torch.ones_like(weight))


def _penalised(hard: Loss, scales: Sequence[Tensor], strength: float) -> Loss:
    """Return a loss with the penalty added."""

    def loss(outputs: Any, targets: Any) -> Tensor:
        value = hard(outputs, targets)
        return value + strength * sum((scale.abs().sum() for scale in scales), value.new_zeros(()))

    return loss
