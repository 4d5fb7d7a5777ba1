"""Trainable noise: a unit is worth little if it learned to bear much noise on its weights.

The full net is trained with noise on the weights that make its units, `W + alpha * eta`, where
`eta` is drawn anew at every forward run with the standard deviation of the weight, and one gain
`alpha` a unit and weight is trained with the weights, from 0 and without decay.

Source: Yang, He, Cao and Fan, A Progressive Sub-Network Searching Framework for Dynamic Inference
(arXiv 2009.05681), stage 1. That the largest gain goes first is how we read the paper, so the
direction is an option.

How the gains are trained decides what they say. The pull that holds a gain back is the curvature of
the loss along its unit, and the noise of its gradient, which drives it away from 0, is as the root
of that. Under plain gradient steps ("plain", as in the paper) the two cancel: units that hardly
matter hardly move, and gains are small where units are worth little, at least in a short run. In
steps of one size ("scaled": each gradient is divided by the root of its own mean square) gains grow
large just where little holds them, which is what the ranking wants. And the last value of a gain
("last", the paper's score) is one draw from what it wanders over, so that units of one worth differ
by chance; the root of its mean square over the run ("spread") differs less.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from nestling.errors import ModelError
from nestling.objectives.sandwich import Loss, task_loss
from nestling.options import one_of, whole
from nestling.spec import Space
from nestling.supernet import Supernet
from nestling.training import Run
from nestling.units import combined, loose_axes, makers
from nestling.weights import substituted

DIRECTIONS = ("descending", "ascending")
STEPS = ("scaled", "plain")
SCORES = ("spread", "last")
SIZE = 0.1  # of a scaled gradient
KEEP = 0.99  # of the mean square of a gradient, at each step


class Gains(nn.Module):
    """One gain for each unit of an axis and each weight that makes it, all in one vector.

    Args:
        space: of the net.
        device: where its weights are.
        scaled: whether the gains' gradients are brought to one size.
    """

    squares: Tensor  # running mean square of each gain's gradient
    steps: Tensor  # how many gradients are in it
    spread: Tensor  # sum over all forward runs of each gain's square

    def __init__(self, space: Space, device: torch.device, *, scaled: bool) -> None:
        super().__init__()
        names = [axis.name for axis in loose_axes(space)]
        self.places = [place.to(device) for name in names for place in makers(space, name)]
        self.sizes = [place.size for place in self.places]
        self.alpha = nn.Parameter(torch.zeros(sum(self.sizes), device=device))
        self.register_buffer("squares", torch.zeros(sum(self.sizes), device=device))
        self.register_buffer("steps", torch.zeros((), device=device))
        self.register_buffer("spread", torch.zeros(sum(self.sizes), device=device))
        if scaled:
            hold: Any = self.alpha.register_post_accumulate_grad_hook
            hold(lambda _: self._scale())

    def _scale(self) -> None:
        """Bring the gradient of the gains to one size, as RMSprop does."""
        gradient = self.alpha.grad
        if gradient is not None:
            self.steps += 1
            self.squares.lerp_(gradient.square(), 1 - KEEP)
            mean = self.squares / (1 - KEEP**self.steps)
            still = mean == 0
            gradient.mul_(SIZE).div_(mean.sqrt().masked_fill(still, 1.0))

    def parts(self) -> Sequence[Tensor]:
        """Return the gains of each place."""
        return torch.split(self.alpha, self.sizes)

    def measured(self, score: str) -> Sequence[Tensor]:
        """Return the size of the gains of each place: of the last, or of all over the run."""
        last = score == "last"
        sizes = self.alpha.detach().abs() if last else self.spread.sqrt()
        return torch.split(sizes.double(), self.sizes)

    def noised(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights that make units with fresh noise on them.

        A weight that makes the units of two axes (heads, and the parts of each head) has noise of
        its own from each.

        Args:
            weights: by name; gradients reach them and the gains, never the noise.
        """
        self.spread += self.alpha.detach().square()
        found: dict[str, Tensor] = {}
        for place, gains in zip(self.places, self.parts(), strict=True):
            weight = weights[place.parameter]
            noise = torch.randn_like(weight) * weight.detach().std(correction=0)
            before = found.get(place.parameter, weight)
            found[place.parameter] = before + place.spread(gains).to(weight.dtype) * noise
        return found

    def scores(self, direction: str, score: str) -> dict[str, Tensor]:
        """Return a score for each unit: the mean over its weights of its gains' relative sizes.

        A gain of exactly 0 was never moved: the loss does not see that unit, which goes first in
        either direction.
        """
        found: dict[str, list[Tensor]] = {}
        for place, size in zip(self.places, self.measured(score), strict=True):
            if direction == "descending":
                size = torch.where(size == 0, 2 * size.max(), size)
            found.setdefault(place.axis, []).append(size)
        sign = -1.0 if direction == "descending" else 1.0
        return {axis: sign * combined(sizes) for axis, sizes in found.items()}


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
    run: Run,
    *,
    direction: Annotated[str, one_of(DIRECTIONS)] = "descending",
    steps: Annotated[str, one_of(STEPS)] = "scaled",
    score: Annotated[str, one_of(SCORES)] = "spread",
    epochs: Annotated[int | None, whole(1, none=True)] = None,
) -> Mapping[str, Tensor]:
    """Train the full net with noise and score units by the gains that they learned.

    Args:
        run: whose net is trained. The gains are a group of its optimiser, at its learning rate.
        direction: "descending" cuts units of large gains first, "ascending" those of small ones.
        steps: of the gains: "scaled", all of one size, or "plain", as their gradients are.
        score: what counts of a gain: its "spread" over the run, or its "last" size.
        epochs: of the training; the run's by default.

    Raises:
        ModelError: an option that is none, no epoch, or a training that diverged.
        DataError: the batches do not fit.
    """
    check_trains(run, epochs)
    gains = Gains(run.net.space, run.device, scaled=steps == "scaled")

    def objective(net: Supernet) -> Iterator[tuple[nn.Module, Loss]]:
        yield Noisy(net.pooled(net.space.full), gains).train(), run.loss or task_loss

    run.train_stage(objective, name="noise ranking", extra=gains, epochs=epochs)
    return gains.scores(direction, score)


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
