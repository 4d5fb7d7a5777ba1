"""Trainable noise: a unit is worth little if it learned to bear much noise on its weights.

The full net is trained with noise on the weights that make its units, `W + alpha * eta`, where
`eta` is drawn anew at every forward run with the standard deviation of the weight, and one gain
`alpha` a unit and weight is trained with the weights, from 0 and without decay.

Source: Yang, He, Cao and Fan, A Progressive Sub-Network Searching Framework for Dynamic Inference
(arXiv 2009.05681), stage 1. That the largest gain goes first is how we read the paper, so the
direction is an option.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nestling.errors import ModelError
from nestling.objectives.sandwich import Loss, task_loss
from nestling.spec import Space
from nestling.supernet import Supernet
from nestling.training import Run
from nestling.units import combined, loose_axes, makers
from nestling.weights import substituted

DIRECTIONS = ("descending", "ascending")


class Gains(nn.Module):
    """One gain for each unit of an axis and each weight that makes it, all in one vector.

    Args:
        space: of the net.
        device: where its weights are.
    """

    def __init__(self, space: Space, device: torch.device) -> None:
        super().__init__()
        names = [axis.name for axis in loose_axes(space)]
        self.places = [place.to(device) for name in names for place in makers(space, name)]
        self.sizes = [place.size for place in self.places]
        self.alpha = nn.Parameter(torch.zeros(sum(self.sizes), device=device))

    def noised(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights that make units with fresh noise on them.

        A weight that makes the units of two axes (heads, and the parts of each head) has noise of
        its own from each.

        Args:
            weights: by name; gradients reach them and the gains, never the noise.
        """
        found: dict[str, Tensor] = {}
        for place, gains in zip(self.places, self.alpha.split(self.sizes), strict=True):
            weight = weights[place.parameter]
            noise = torch.randn_like(weight) * weight.detach().std(correction=0)
            before = found.get(place.parameter, weight)
            found[place.parameter] = before + place.spread(gains).to(weight.dtype) * noise
        return found

    def sizes_by_axis(self) -> dict[str, list[Tensor]]:
        """Return the size of the gains of each axis, weight by weight."""
        found: dict[str, list[Tensor]] = {}
        for place, gains in zip(self.places, self.alpha.split(self.sizes), strict=True):
            found.setdefault(place.axis, []).append(gains.detach().abs().double())
        return found


class Noisy(nn.Module):
    """A net that runs with noise on its weights while it is in training mode."""

    def __init__(self, net: nn.Module, gains: Gains) -> None:
        super().__init__()
        self.net = net
        self.gains = gains

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the net, whose weights are its own again afterwards."""
        if not self.training:
            return self.net(*args, **kwargs)
        with substituted(self.net, self.gains.noised(dict(self.net.named_parameters()))):
            return self.net(*args, **kwargs)


def noise(
    run: Run, *, direction: str = "descending", epochs: int | None = None
) -> Mapping[str, Tensor]:
    """Train the full net with noise and score units by the gains that they learned.

    Args:
        run: whose net is trained. The gains are a group of its optimiser, at its learning rate.
        direction: "descending" cuts units of large gains first, "ascending" those of small ones.
        epochs: of the training; the run's by default.

    Raises:
        ModelError: an unknown direction, no epoch, or a training that diverged.
        DataError: the batches do not fit.
    """
    if direction not in DIRECTIONS:
        raise ModelError(f"direction= is one of {', '.join(DIRECTIONS)}, not {direction!r}")
    check_trains(run, epochs)
    gains = Gains(run.net.space, run.device)

    def objective(net: Supernet) -> Iterator[tuple[nn.Module, Loss]]:
        yield Noisy(net.pooled(net.space.full), gains).train(), run.loss or task_loss

    run.train_stage(objective, name="noise ranking", extra=gains, epochs=epochs)
    sign = -1.0 if direction == "descending" else 1.0
    return {axis: sign * combined(sizes) for axis, sizes in gains.sizes_by_axis().items()}


def check_trains(run: Run, epochs: int | None) -> None:
    """Check that a ranker that trains is given something to train with.

    Raises:
        ModelError: there is no epoch, or no batch.
    """
    number = run.epochs if epochs is None else epochs
    if isinstance(number, bool) or not isinstance(number, int) or number < 1 or not run.length:
        raise ModelError(
            f"this ranker trains the net, for at least 1 epoch on batches of training data, but "
            f"epochs= is {number!r} with {run.length} batches; give train= and epochs="
        )
