"""Evaluation: how good a module is on data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from nestling import batch as batches
from nestling.errors import DataError

Metric: TypeAlias = Callable[[Any, Any], Any]
"""Mean score of one batch from (outputs, targets); larger is better."""


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the top-1 accuracy, 0 to 1, of class scores (N, C) against class numbers (N,)."""
    return (outputs.argmax(1) == targets).double().mean()


def evaluate(module: nn.Module, data: Iterable[Any], metric: Metric = accuracy) -> float:
    """Return the mean metric of a module over data, each example counting the same.

    Args:
        module: is put into evaluation mode for the run and back into its own mode afterwards.
        data: yields `(inputs, targets)` pairs.
        metric: mean score of a batch; the default is top-1 accuracy.

    Raises:
        DataError: there is no batch; or a batch is no pair, does not fit, holds NaN, or has a
            metric that is no finite number.

    Example:
        >>> nestling.evaluate(net.subnet(net.space.full), val)
        0.9173
    """
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    modes = {each: each.training for each in module.modules()}
    module.eval()
    total, count = 0.0, 0
    try:
        with torch.no_grad():
            for batch in data:
                inputs, targets = (batches.move(part, device) for part in batches.pair(batch))
                batches.check_finite(inputs)
                examples = batches.size(inputs)
                total += _scored(module, inputs, targets, metric) * examples
                count += examples
    finally:
        for each, training in modes.items():
            each.training = training
    if not count:
        raise DataError("evaluation needs at least one batch, but the data yields none")
    return round(total / count, 12)  # so that equal counts are equal, however batched


def _scored(module: nn.Module, inputs: Any, targets: Any, metric: Metric) -> float:
    with batches.blamed("the model must accept the inputs of the data", inputs):
        outputs = batches.forward(module, inputs)
    with batches.blamed("metric= must give one number for (outputs, targets)", outputs, targets):
        value = float(metric(outputs, targets))
    if not math.isfinite(value):
        raise DataError(
            f"the metric of a batch must be finite, but it is {value}: the model's outputs or the "
            "targets hold NaN or infinity; look at them, or train with a lower learning rate"
        )
    return value
