"""MobileNets: depthwise convolutions, plain (v1) and in inverted residuals (v2)."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn

from nestling.models.arguments import Between, Channels, Classes
from nestling.models.layers import chain, conv, conv_norm
from nestling.models.registry import builder

Multiplier = Annotated[float, Between(0.05, 8.0)]
Stride = Annotated[int, Between(1, 2)]

_V1 = (
    # channels out, stride
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)

_V2 = (
    # expansion, channels out, blocks, stride of the first block
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """Widen by a 1x1 convolution, filter depthwise, narrow by a 1x1 one; add if shapes agree."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.conv = nn.Sequential()
        if expansion != 1:
            self.conv.append(conv_norm(inputs, hidden, kernel=1, activation=nn.ReLU6()))
        self.conv.append(
            conv_norm(hidden, hidden, kernel=3, stride=stride, groups=hidden, activation=nn.ReLU6())
        )
        self.conv.append(conv(hidden, outputs, kernel=1))
        self.conv.append(nn.BatchNorm2d(outputs))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, height, width) to (batch, outputs, height / stride, ...)."""
        out: Tensor = self.conv(x)
        return out + x if self.adds else out


def _divisible(channels: float) -> int:
    """Return the nearest multiple of 8 that is not below nine tenths of `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


@builder
def mobilenet_v1(
    num_classes: Classes = 1000,
    width: Multiplier = 1.0,
    *,
    in_channels: Channels = 3,
    stem_stride: Stride = 2,
) -> nn.Sequential:
    """Build MobileNet v1: thirteen pairs of a depthwise and a 1x1 convolution.

    4.2 M parameters, 569 M multiply-accumulates at 224x224.

    Args:
        num_classes: logits per picture; the output is (batch, num_classes).
        width: multiplies every channel count; counts are rounded to multiples of 8.
        in_channels: channels of the input, (batch, in_channels, height, width).
        stem_stride: step of the first convolution in pixels; 1 suits 32x32 pictures.

    Raises:
        ModelError: an argument is out of its range.

    Example:
        >>> import torch
        >>> mobilenet_v1(10, 0.25, stem_stride=1)(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])

    Source:
        Howard et al., 2017, https://arxiv.org/abs/1704.04861, table 1.
    """
    channels = _divisible(32 * width)
    features = nn.Sequential(
        conv_norm(in_channels, channels, kernel=3, stride=stem_stride, activation=nn.ReLU())
    )
    for base, stride in _V1:
        outputs = _divisible(base * width)
        depthwise = conv_norm(
            channels, channels, kernel=3, stride=stride, groups=channels, activation=nn.ReLU()
        )
        pointwise = conv_norm(channels, outputs, kernel=1, activation=nn.ReLU())
        features.append(chain(depthwise=depthwise, pointwise=pointwise))
        channels = outputs
    return chain(
        features=features,
        avgpool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(channels, num_classes),
    )


@builder
def mobilenet_v2(
    num_classes: Classes = 1000,
    width: Multiplier = 1.0,
    *,
    in_channels: Channels = 3,
    stem_stride: Stride = 2,
) -> nn.Sequential:
    """Build MobileNet v2: inverted residuals with linear bottlenecks.

    3.5 M parameters, 301 M multiply-accumulates at 224x224. Parameters are named as torchvision
    names them, so its weights can be loaded.

    Args:
        num_classes: logits per picture; the output is (batch, num_classes).
        width: multiplies every channel count (the last one only upwards); counts are rounded to
            multiples of 8.
        in_channels: channels of the input, (batch, in_channels, height, width).
        stem_stride: step of the first convolution in pixels; 1 suits 32x32 pictures.

    Raises:
        ModelError: an argument is out of its range.

    Example:
        >>> import torch
        >>> mobilenet_v2(10, 0.25, stem_stride=1)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    Source:
        Sandler et al., CVPR 2018, https://arxiv.org/abs/1801.04381, table 2.
    """
    channels = _divisible(32 * width)
    features = nn.Sequential(
        conv_norm(in_channels, channels, kernel=3, stride=stem_stride, activation=nn.ReLU6())
    )
    for expansion, base, blocks, first_stride in _V2:
        outputs = _divisible(base * width)
        for i in range(blocks):
            stride = first_stride if i == 0 else 1
            features.append(InvertedResidual(channels, outputs, stride=stride, expansion=expansion))
            channels = outputs
    last = _divisible(1280 * max(1.0, width))
    features.append(conv_norm(channels, last, kernel=1, activation=nn.ReLU6()))
    return chain(
        features=features,
        avgpool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        classifier=nn.Sequential(nn.Dropout(0.2), nn.Linear(last, num_classes)),
    )
