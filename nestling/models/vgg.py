"""VGG nets with batch norm: a plain chain of 3x3 convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from nestling.models.arguments import Channels, Classes, Width
from nestling.models.layers import chain
from nestling.models.registry import builder

Head = Literal["linear", "mlp"]

_WIDENING = (1, 2, 4, 8, 8)
"""Channels of the five stages, as multiples of the first one's."""


def _vgg(
    depths: Sequence[int], *, num_classes: int, width: int, in_channels: int, head: Head
) -> nn.Sequential:
    features = nn.Sequential()
    channels = in_channels
    for depth, factor in zip(depths, _WIDENING, strict=True):
        for _ in range(depth):
            # The bias does nothing before a norm; published weights and counts have it.
            features.append(nn.Conv2d(channels, width * factor, 3, padding=1))
            features.append(nn.BatchNorm2d(width * factor))
            features.append(nn.ReLU())
            channels = width * factor
        features.append(nn.MaxPool2d(2))
    side = 7 if head == "mlp" else 1
    return chain(
        features=features,
        avgpool=nn.AdaptiveAvgPool2d(side),
        flatten=nn.Flatten(),
        classifier=_make_head(head, channels * side**2, num_classes),
    )


def _make_head(head: Head, inputs: int, num_classes: int) -> nn.Module:
    if head == "linear":
        return nn.Linear(inputs, num_classes)
    hidden = 4096
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(hidden, num_classes),
    )


@builder
def vgg11_bn(
    num_classes: Classes = 10,
    width: Width = 64,
    *,
    in_channels: Channels = 3,
    head: Head = "linear",
) -> nn.Sequential:
    """Build the 11-layer VGG net with batch norm.

    A net without shortcuts, where every layer's width is free; 9.2 M parameters for CIFAR.
    With `head="mlp"` the parameters are named as in torchvision.

    Args:
        num_classes: logits per picture; the output is (batch, num_classes).
        width: channels of the first stage; the five have 1, 2, 4, 8 and 8 times as many.
        in_channels: channels of the input, (batch, in_channels, height, width), at least 32x32
            pixels.
        head: `"linear"` averages over the picture, then one linear layer; `"mlp"` is the ImageNet
            one: 7x7 pixels are flattened into two layers of 4096 neurons with dropout.

    Raises:
        ModelError: an argument is out of its range.

    Example:
        >>> import torch
        >>> vgg11_bn(width=8)(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])

    Source:
        Simonyan and Zisserman, ICLR 2015, https://arxiv.org/abs/1409.1556, configuration A.
    """
    return _vgg(
        (1, 1, 2, 2, 2),
        num_classes=num_classes,
        width=width,
        in_channels=in_channels,
        head=head,
    )


@builder
def vgg16_bn(
    num_classes: Classes = 10,
    width: Width = 64,
    *,
    in_channels: Channels = 3,
    head: Head = "linear",
) -> nn.Sequential:
    """Build the 16-layer VGG net with batch norm.

    The usual target of pruning without shortcuts: 14.7 M parameters, 313 M multiply-accumulates
    at 32x32. With `head="mlp"` the parameters are named as in torchvision.

    Args:
        num_classes: logits per picture; the output is (batch, num_classes).
        width: channels of the first stage; the five have 1, 2, 4, 8 and 8 times as many.
        in_channels: channels of the input, (batch, in_channels, height, width), at least 32x32
            pixels.
        head: `"linear"` or `"mlp"`, as for `vgg11_bn`.

    Raises:
        ModelError: an argument is out of its range.

    Example:
        >>> import torch
        >>> vgg16_bn(width=8)(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])

    Source:
        Simonyan and Zisserman, ICLR 2015, https://arxiv.org/abs/1409.1556, configuration D.
    """
    return _vgg(
        (2, 2, 3, 3, 3),
        num_classes=num_classes,
        width=width,
        in_channels=in_channels,
        head=head,
    )


@builder
def vgg19_bn(
    num_classes: Classes = 10,
    width: Width = 64,
    *,
    in_channels: Channels = 3,
    head: Head = "linear",
) -> nn.Sequential:
    """Build the 19-layer VGG net with batch norm.

    The deepest of its family; 20.0 M parameters for CIFAR. With `head="mlp"` the parameters are
    named as in torchvision.

    Args:
        num_classes: logits per picture; the output is (batch, num_classes).
        width: channels of the first stage; the five have 1, 2, 4, 8 and 8 times as many.
        in_channels: channels of the input, (batch, in_channels, height, width), at least 32x32
            pixels.
        head: `"linear"` or `"mlp"`, as for `vgg11_bn`.

    Raises:
        ModelError: an argument is out of its range.

    Example:
        >>> import torch
        >>> vgg19_bn(width=8)(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])

    Source:
        Simonyan and Zisserman, ICLR 2015, https://arxiv.org/abs/1409.1556, configuration E.
    """
    return _vgg(
        (2, 2, 4, 4, 4),
        num_classes=num_classes,
        width=width,
        in_channels=in_channels,
        head=head,
    )
