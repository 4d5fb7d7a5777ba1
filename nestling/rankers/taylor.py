"""Taylor: a unit is worth what the loss would lose, to first order, with its weights.

Source: Molchanov, Mallya, Tyree, Frosio and Kautz, Importance Estimation for Neural Network Pruning
(CVPR 2019). There the products are added up before the absolute value is taken; where a norm
follows, the loss does not depend on the size of a filter and that sum is zero by Euler's theorem,
so here the absolute value of each product is taken.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from torch import Tensor, nn

from nestling import batch as batches
from nestling.errors import DataError, ModelError
from nestling.objectives.sandwich import task_loss
from nestling.options import whole
from nestling.packing import pack
from nestling.training import Run
from nestling.units import Place, scored

BATCHES = 50  # of the training data


def taylor(run: Run, *, batches: Annotated[int, whole(1)] = BATCHES) -> Mapping[str, Tensor]:
    """Score units by the sum of `|weight * gradient|` over their weights and training batches.

    Args:
        run: whose net is ranked on its training batches; nothing is trained.
        batches: how many of them; fewer where the data has fewer.

    Raises:
        DataError: there is no batch.
        ModelError: `batches` is no whole number of at least 1, or a gradient is not finite.
    """
    totals = added(run, batches, lambda weight, gradient: (weight * gradient).abs())
    return scored(run.net.space, lambda place: _of(totals, place))


def added(run: Run, number: int, measure: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    """Return the sum over batches of what a measure gives for each weight and its gradient.

    The full net is run as a copy in evaluation mode, so that neither its weights and gradients nor
    its norm statistics change.

    Args:
        run: its net, batches and loss.
        number: of batches.
        measure: from (weight, gradient), both of the weight's shape, to that shape.

    Returns:
        Parameter name to the sum, in float64; zeros where no gradient came.
    """
    model = pack(run.net.subnet(run.net.space.full)).eval()
    weights = dict(model.named_parameters())
    totals = {
        name: torch.zeros(weight.shape, dtype=torch.float64, device=weight.device)
        for name, weight in weights.items()
    }
    seen = 0
    for item in itertools.islice(run.train, number):
        model.zero_grad()
        _backward(run, model, item)
        seen += 1
        for name, weight in weights.items():
            if weight.grad is not None:
                totals[name] += measure(weight.detach().double(), weight.grad.double())
    if not seen:
        raise DataError("this ranker looks at training batches, but there is none; give train=")
    if not all(bool(torch.isfinite(total).all()) for total in totals.values()):
        raise ModelError(
            "a gradient of the loss must be finite, but one is NaN or infinite; look at the "
            "weights and at loss="
        )
    return totals


def _backward(run: Run, model: nn.Module, item: object) -> None:
    inputs, targets = batches.pair(item)
    batches.check_finite(inputs)
    inputs, targets = batches.move(inputs, run.device), batches.move(targets, run.device)
    loss = run.loss or task_loss
    with batches.blamed("the model and loss= must accept the batches of train=", inputs, targets):
        loss(batches.forward(model, inputs), targets).backward()  # type: ignore[no-untyped-call]


def _of(totals: Mapping[str, Tensor], place: Place) -> Tensor:
    return place.sums(totals[place.parameter])
