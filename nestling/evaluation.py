"""Evaluation: how good a module is on data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from nestling import batch as batches
from nestling.errors import DataError

Metric: TypeAlias = Callable[[Any, Any], Any]
"""Mean score of one batch from (outputs, targets); larger is better."""


def accuracy(outputs: Any, targets: Tensor | None) -> Tensor:
    """Return the top-1 accuracy, 0 to 1, of class scores (N, C, ...) against classes (N, ...).

    Args:
        outputs: the scores, or an output that holds them as its `logits`.
        targets: class numbers.

    Raises:
        DataError: there are no such scores, or no targets, or these are no class numbers; or they
            are a language model's scores (N, T, V), whose targets may or may not be shifted; or
            there is one score alone, of which it is not known from where on it means yes.
    """
    return hits(outputs, targets).double().mean()


def hits(outputs: Any, targets: Tensor | None) -> Tensor:
    """Return where the largest score is that of the target's class (N, ...), see `accuracy`.

    Raises:
        DataError: as `accuracy`.
    """
    scores = batches.scores_of(outputs)
    if scores is not outputs and scores.dim() == 3:
        raise DataError(
            f"what accuracy means for the scores {tuple(scores.shape)} of a sequence is for you to "
            "say: give metric=, such as metric=lambda outputs, labels: -outputs.loss"
        )
    if targets is None:
        raise DataError(
            f"accuracy needs targets, but the batch holds no {' or '.join(batches.TARGETS)}; name "
            "them so, or give metric="
        )
    if not _are_classes(targets, scores):
        raise DataError(
            "accuracy compares scores (N, C, ...) of two classes or more with class numbers "
            f"(N, ...), but got {batches.shapes((scores, targets))}; for another task pass "
            f"metric=, such as metric=lambda outputs, targets: {_other_metric(scores)} (larger is "
            "better)"
        )
    return scores.argmax(1) == targets


def _are_classes(targets: Tensor, scores: Tensor) -> bool:
    """Return whether targets can be the class numbers of scores, as integers or not."""
    if scores.dim() < 2 or scores.shape[1] < 2 or targets.shape != scores.select(1, 0).shape:
        return False
    return not targets.is_floating_point() or bool((targets == targets.round()).all())


def _other_metric(scores: Tensor) -> str:
    """Return what could be meant: one number an example is as a rule a logit of yes or no."""
    if scores.dim() == 1 or scores.shape[1] == 1:
        return "((outputs.flatten() > 0) == (targets.flatten() > 0.5)).double().mean()"
    return "-F.mse_loss(outputs, targets)"


def evaluate(module: nn.Module, data: Iterable[Any], metric: Metric = accuracy) -> float:
    """Return the mean metric of a module over data, each example counting the same.

    Args:
        module: is put into evaluation mode for the run and back into its own mode afterwards.
        data: yields `(inputs, targets)` pairs, or mappings of the model's keywords with "labels".
        metric: mean score of a batch, from what the model returns and the targets; the default is
            top-1 accuracy.

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


def check_metric(module: nn.Module, data: Iterable[Any], metric: Metric) -> None:
    """Check on one batch that a module can be evaluated: before a long training, not after it.

    Raises:
        DataError: it cannot; or the data can be read only once.
    """
    check_rereadable(data)
    evaluate(module, itertools.islice(data, 1), metric)


def check_rereadable(data: Iterable[Any]) -> None:
    """Check that held-out data can be read once for every subnet.

    Raises:
        DataError: it cannot.
    """
    if iter(data) is data:
        raise DataError(
            f"val= is read once for every subnet, and a {type(data).__name__} can be read only "
            "once; give a DataLoader or a list of batches"
        )


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
