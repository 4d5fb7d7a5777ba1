"""Dense nets: every layer reads the concatenation of all earlier ones in its block."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated

import torch
from torch import Tensor, nn

from nestling.models.arguments import Between, Channels, Classes
from nestling.models.layers import chain, conv
from nestling.models.registry import builder

Growth = Annotated[int, Between(1, 512)]


class DenseLayer(nn.Sequential):
    """A chain of layers whose output channels are set after its input channels."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, height, width) to (batch, inputs + growth, height, width)."""
        new = super().forward(x)  # type: ignore[no-untyped-call]
        return torch.cat([x, new], 1)


def _norm_relu_conv(number: int, inputs: int, outputs: int, kernel: int) -> dict[str, nn.Module]:
    return {
        f"norm{number}": nn.BatchNorm2d(inputs),
        f"relu{number}": nn.ReLU(),
        f"conv{number}": conv(inputs, outputs, kernel=kernel),
    }


def _dense_block(inputs: int, depth: int, growth: int, *, bottleneck: bool) -> nn.Sequential:
    """Return `depth` layers of `growth` new channels each."""
    block: dict[str, nn.Module] = {}
    for i in range(depth):
        channels = inputs + i * growth
        if bottleneck:
            layers = _norm_relu_conv(1, channels, 4 * growth, 1)
            layers |= _norm_relu_conv(2, 4 * growth, growth, 3)
        else:
            layers = _norm_relu_conv(1, channels, growth, 3)
        block[f"denselayer{i + 1}"] = DenseLayer(OrderedDict(layers))
    return chain(**block)


def _transition(inputs: int, outputs: int) -> nn.Sequential:
    return chain(
        norm=nn.BatchNorm2d(inputs),
        relu=nn.ReLU(),
        conv=conv(inputs, outputs, kernel=1),
        pool=nn.AvgPool2d(2),
    )


def _densenet(
    stem: dict[str, nn.Module],
    depths: tuple[int, ...],
    *,
    channels: int,
    growth: int,
    bottleneck: bool,
    num_classes: int,
) -> nn.Sequential:
    """Return a dense net; one with bottlenecks also halves the channels between its blocks."""
    features = dict(stem)
    for i, depth in enumerate(depths, start=1):
        features[f"denseblock{i}"] = _dense_block(channels, depth, growth, bottleneck=bottleneck)
        channels += depth * growth
        if i < len(depths):
            outputs = channels // 2 if bottleneck else channels
            features[f"transition{i}"] = _transition(channels, outputs)
            channels = outputs
    features[f"norm{len(depths) + 1}"] = nn.BatchNorm2d(channels)
    return chain(
        features=chain(**features),
        relu=nn.ReLU(),
        avgpool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        classifier=nn.Linear(channels, num_classes),
    )


@builder
def densenet40(
    growth: Growth = 12, num_classes: Classes = 10, *, in_channels: Channels = 3
) -> nn.Sequential:
    """Build the 40-layer dense net for CIFAR pictures, without bottlenecks or compression.

    The test of concatenations: three blocks of twelve layers, 1.0 M parameters,
    265 M multiply-accumulates at 32x32.

    Args:
        growth: channels that each layer adds.
        num_classes: logits per picture; the output is (batch, num_classes).
        in_channels: channels of the input, (batch, in_channels, height, width), at least 4x4
            pixels.

    Raises:
        ModelError: an argument is out of its range.

    Example:
        >>> import torch
        >>> densenet40(growth=2)(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])

    Source:
        Huang et al., CVPR 2017, https://arxiv.org/abs/1608.06993, section 3.
    """
    return _densenet(
        {"conv0": conv(in_channels, 16, kernel=3)},
        (12, 12, 12),
        channels=16,
        growth=growth,
        bottleneck=False,
        num_classes=num_classes,
    )


@builder
def densenet121(
    num_classes: Classes = 1000, growth: Growth = 32, *, in_channels: Channels = 3
) -> nn.Sequential:
    """Build the 121-layer dense net for ImageNet pictures, with bottlenecks and compression.

    8.0 M parameters, 2.8 G multiply-accumulates at 224x224. Parameters are named as torchvision
    names them.

    Args:
        num_classes: logits per picture; the output is (batch, num_classes).
        growth: channels that each layer adds; the stem has twice as many.
        in_channels: channels of the input, (batch, in_channels, height, width), at least 29x29
            pixels.

    Raises:
        ModelError: an argument is out of its range.

    Example:
        >>> import torch
        >>> densenet121(10, growth=4)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    Source:
        Huang et al., CVPR 2017, https://arxiv.org/abs/1608.06993, table 1.
    """
    channels = 2 * growth
    stem: dict[str, nn.Module] = {
        "conv0": conv(in_channels, channels, kernel=7, stride=2),
        "norm0": nn.BatchNorm2d(channels),
        "relu0": nn.ReLU(),
        "pool0": nn.MaxPool2d(3, stride=2, padding=1),
    }
    return _densenet(
        stem,
        (6, 12, 24, 16),
        channels=channels,
        growth=growth,
        bottleneck=True,
        num_classes=num_classes,
    )
