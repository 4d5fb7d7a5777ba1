"""Multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from torch import nn

from nestling.models.arguments import Between, Classes, Width
from nestling.models.layers import chain
from nestling.models.registry import builder

Features = Annotated[int, Between(1, 1_000_000)]
Hidden = Annotated[Sequence[Width], Between(0, 32)]


@builder
def mlp(
    in_features: Features = 784,
    hidden: Hidden = (256, 256),
    *,
    num_classes: Classes = 10,
    norm: bool = True,
) -> nn.Sequential:
    """Build a multi-layer perceptron.

    The smallest thing with widths to choose; flattens its input, so it takes pictures too.

    Args:
        in_features: numbers per sample; the input is (batch, ...) with that many after flattening.
        hidden: neurons of each hidden layer; none makes it a linear classifier.
        num_classes: logits per sample; the output is (batch, num_classes).
        norm: whether a batch norm stands before each activation.

    Raises:
        ModelError: an argument is out of its range.

    Example:
        >>> import torch
        >>> mlp(64, hidden=(32,))(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])

    Source:
        The norm's place is that of Ioffe and Szegedy, ICML 2015, https://arxiv.org/abs/1502.03167.
    """
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    features = in_features
    for i, neurons in enumerate(hidden, start=1):
        layers[f"linear{i}"] = nn.Linear(features, neurons, bias=not norm)
        if norm:
            layers[f"norm{i}"] = nn.BatchNorm1d(neurons)
        layers[f"relu{i}"] = nn.ReLU()
        features = neurons
    return chain(**layers, head=nn.Linear(features, num_classes))
