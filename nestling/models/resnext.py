"""Aggregated residual nets: every block sums many narrow paths of one shape."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn

from nestling.models.arguments import Between, Channels, Classes, Width
from nestling.models.layers import chain, conv, conv_norm
from nestling.models.registry import builder

EXPANSION = 4  # the first stage's outputs over the stem's channels
DEPTHS = (3, 3, 3)

Paths = Annotated[int, Between(1, 256)]


class PathsBlock(nn.Module):
    """A 1x1, a grouped 3x3 and a 1x1 convolution around a shortcut; each group is a path."""

    def __init__(self, inputs: int, outputs: int, *, paths: int, width: int, stride: int) -> None:
        super().__init__()
        inside = paths * width
        self.conv1 = conv(inputs, inside, kernel=1)
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv2 = conv(inside, inside, kernel=3, stride=stride, groups=paths)
        self.bn2 = nn.BatchNorm2d(inside)
        self.conv3 = conv(inside, outputs, kernel=1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        same = stride == 1 and inputs == outputs
        self.shortcut = (
            nn.Identity() if same else conv_norm(inputs, outputs, kernel=1, stride=stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, height, width) to (batch, outputs, height / stride, ...)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + self.shortcut(x))  # type: ignore[no-any-return]


@builder
def resnext29(
    num_classes: Classes = 10,
    width: Width = 64,
    *,
    paths: Paths = 8,
    path_width: Width = 64,
    in_channels: Channels = 3,
) -> nn.Sequential:
    """Build Xie's 29-layer aggregated residual net for CIFAR pictures.

    Its defaults are the paper's 8x64d: 34.4 M parameters, 5.4 G multiply-accumulates at 32x32.
    With `width=16, path_width=4` it is as small as a `resnet20`, and each of its nine blocks has
    eight paths to choose from.

    Args:
        num_classes: logits per picture; the output is (batch, num_classes).
        width: channels of the stem; the stages put out 4, 8 and 16 times as many.
        paths: of every block (its cardinality).
        path_width: channels of a path of the first stage; those of the others have two and four
            times as many.
        in_channels: channels of the input, (batch, in_channels, height, width), 32x32 pixels usual.

    Raises:
        ModelError: an argument is out of its range.

    Example:
        >>> import torch
        >>> resnext29(width=16, path_width=4)(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])

    Source:
        Xie et al., "Aggregated Residual Transformations for Deep Neural Networks", CVPR 2017,
        section 5.2, https://arxiv.org/abs/1611.05431.
    """
    stages: dict[str, nn.Module] = {}
    inputs = width
    for stage, depth in enumerate(DEPTHS):
        blocks = nn.Sequential()
        for number in range(depth):
            outputs, stride = width * EXPANSION * 2**stage, 2 if stage and not number else 1
            inside = path_width * 2**stage
            blocks.append(PathsBlock(inputs, outputs, paths=paths, width=inside, stride=stride))
            inputs = outputs
        stages[f"layer{stage + 1}"] = blocks
    return chain(
        conv1=conv(in_channels, width, kernel=3),
        bn1=nn.BatchNorm2d(width),
        relu=nn.ReLU(),
        **stages,
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        linear=nn.Linear(inputs, num_classes),
    )
