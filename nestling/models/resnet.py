"""Residual nets: He's for CIFAR and ImageNet, and a small one for 8x8 digits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from nestling.models.arguments import Channels, Classes, Width
from nestling.models.layers import chain, conv, conv_norm
from nestling.models.registry import builder

Shortcut = Literal["identity", "projection", "zero_pad"]
Stem = Literal["imagenet", "cifar"]


class ZeroPad(nn.Module):
    """A shortcut without weights: takes every `stride`-th pixel and pads channels with zeros.

    `before` and `after` are the channels of zeros on each side, plain integers that a narrower
    copy of the net sets anew; forward uses nothing else.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.before = before
        self.after = after
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to (batch, before + channels + after, ...)."""
        strided = x[:, :, :: self.stride, :: self.stride]
        return F.pad(strided, (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        """Show the sizes when printed."""
        return f"before={self.before}, after={self.after}, stride={self.stride}"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut.

    `skip` is the name under which the shortcut is held: published weights call it `shortcut` in
    CIFAR nets and `downsample` in ImageNet nets.
    """

    expansion = 1

    def __init__(
        self, inputs: int, width: int, *, stride: int, shortcut: Shortcut, skip: str
    ) -> None:
        super().__init__()
        self.conv1 = conv(inputs, width, kernel=3, stride=stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, kernel=3)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.skip = skip
        self.add_module(skip, _make_shortcut(shortcut, inputs, width, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, height, width) to (batch, width, height / stride, ...)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = out + getattr(self, self.skip)(x)
        return self.relu(out)  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution around a shortcut; the 3x3 one strides."""

    expansion = 4

    def __init__(
        self, inputs: int, width: int, *, stride: int, shortcut: Shortcut, skip: str
    ) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = conv(inputs, width, kernel=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, kernel=3, stride=stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, outputs, kernel=1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.skip = skip
        self.add_module(skip, _make_shortcut(shortcut, inputs, outputs, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, height, width) to (batch, 4 width, height / stride, ...)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = out + getattr(self, self.skip)(x)
        return self.relu(out)  # type: ignore[no-any-return]


class PreActivationBlock(nn.Module):
    """Norm, ReLU and 3x3 convolution, twice, around a shortcut that nothing follows.

    Where the shape changes the shortcut projects what comes out of the first ReLU.
    """

    expansion = 1

    def __init__(self, inputs: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv(inputs, width, kernel=3, stride=stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, kernel=3)
        self.relu = nn.ReLU()
        self.projects = stride != 1 or inputs != width
        if self.projects:
            self.shortcut = conv_norm(inputs, width, kernel=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, height, width) to (batch, width, height / stride, ...)."""
        out = self.relu(self.bn1(x))
        shortcut = self.shortcut(out) if self.projects else x
        out = self.conv2(self.relu(self.bn2(self.conv1(out))))
        return out + shortcut  # type: ignore[no-any-return]


def _make_shortcut(kind: Shortcut, inputs: int, outputs: int, stride: int) -> nn.Module:
    same_shape = stride == 1 and inputs == outputs
    if same_shape and kind != "projection":
        return nn.Identity()
    if kind == "zero_pad":
        before = (outputs - inputs) // 2
        return ZeroPad(before, outputs - inputs - before, stride)
    return conv_norm(inputs, outputs, kernel=1, stride=stride)


def _make_stages(
    block: type[BasicBlock] | type[Bottleneck] | type[PreActivationBlock],
    depths: Sequence[int],
    *,
    width: int,
    **options: Any,
) -> tuple[dict[str, nn.Module], int]:
    """Return stages of blocks by name, each half as fine and twice as wide, and their width.

    Further options are the blocks' own.
    """
    stages: dict[str, nn.Module] = {}
    channels = width
    for stage, depth in enumerate(depths):
        blocks = nn.Sequential()
        for i in range(depth):
            stride = 2 if stage > 0 and i == 0 else 1
            planes = width * 2**stage
            blocks.append(block(channels, planes, stride=stride, **options))
            channels = planes * block.expansion
        stages[f"layer{stage + 1}"] = blocks
    return stages, channels


def _resnet_cifar(
    depths: Sequence[int], *, num_classes: int, width: int, in_channels: int, shortcut: Shortcut
) -> nn.Sequential:
    stages, channels = _make_stages(
        BasicBlock, depths, width=width, shortcut=shortcut, skip="shortcut"
    )
    return chain(
        conv1=conv(in_channels, width, kernel=3),
        bn1=nn.BatchNorm2d(width),
        relu=nn.ReLU(),
        **stages,
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        linear=nn.Linear(channels, num_classes),
    )


def _resnet_imagenet(
    block: type[BasicBlock] | type[Bottleneck],
    depths: Sequence[int],
    *,
    num_classes: int,
    width: int,
    in_channels: int,
    shortcut: Shortcut,
    stem: Stem,
) -> nn.Sequential:
    stages, channels = _make_stages(
        block, depths, width=width, shortcut=shortcut, skip="downsample"
    )
    large = stem == "imagenet"
    start: dict[str, nn.Module] = {
        "conv1": conv(in_channels, width, kernel=7 if large else 3, stride=2 if large else 1),
        "bn1": nn.BatchNorm2d(width),
        "relu": nn.ReLU(),
    }
    if large:
        start["maxpool"] = nn.MaxPool2d(3, stride=2, padding=1)
    return chain(
        **start,
        **stages,
        avgpool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(channels, num_classes),
    )


@builder
def resnet20(
    num_classes: Classes = 10,
    width: Width = 16,
    *,
    in_channels: Channels = 3,
    shortcut: Shortcut = "identity",
) -> nn.Sequential:
    """Build He's 20-layer residual net for CIFAR pictures.

    The smallest net of the field's usual comparisons: 0.27 M parameters, 41 M multiply-accumulates
    at 32x32. Published weights are loaded with `shortcut="zero_pad"`.

    Args:
        num_classes: logits per picture; the output is (batch, num_classes).
        width: channels of the first stage; the others have two and four times as many.
        in_channels: channels of the input, (batch, in_channels, height, width), 32x32 pixels usual.
        shortcut: `"identity"` passes the input on and projects it (1x1 convolution, norm) where the
            shape changes; `"projection"` projects in every block, so that each block's width is
            free; `"zero_pad"` needs no weights: where the shape changes it strides and pads with
            zero channels (He's option A).

    Raises:
        ModelError: an argument is out of its range.

    Example:
        >>> import torch
        >>> resnet20()(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])

    Source:
        He et al., "Deep Residual Learning", CVPR 2016, section 4.2,
        https://arxiv.org/abs/1512.03385.
    """
    return _resnet_cifar(
        (3, 3, 3),
        num_classes=num_classes,
        width=width,
        in_channels=in_channels,
        shortcut=shortcut,
    )


@builder
def resnet56(
    num_classes: Classes = 10,
    width: Width = 16,
    *,
    in_channels: Channels = 3,
    shortcut: Shortcut = "identity",
) -> nn.Sequential:
    """Build He's 56-layer residual net for CIFAR pictures.

    The usual target of channel pruning: 0.85 M parameters, 126 M multiply-accumulates at 32x32.

    Args:
        num_classes: logits per picture; the output is (batch, num_classes).
        width: channels of the first stage; the others have two and four times as many.
        in_channels: channels of the input, (batch, in_channels, height, width), 32x32 pixels usual.
        shortcut: `"identity"`, `"projection"` or `"zero_pad"`, as for `resnet20`.

    Raises:
        ModelError: an argument is out of its range.

    Example:
        >>> import torch
        >>> resnet56()(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])

    Source:
        He et al., "Deep Residual Learning", CVPR 2016, section 4.2,
        https://arxiv.org/abs/1512.03385.
    """
    return _resnet_cifar(
        (9, 9, 9),
        num_classes=num_classes,
        width=width,
        in_channels=in_channels,
        shortcut=shortcut,
    )


@builder
def preact_resnet20(
    num_classes: Classes = 10, width: Width = 16, *, in_channels: Channels = 3
) -> nn.Sequential:
    """Build He's 20-layer residual net for CIFAR pictures with norms before the convolutions.

    The net of the usual comparisons of nets in few bits, which have it five times as wide
    (`width=80`): 6.8 M parameters, 1.0 G multiply-accumulates at 32x32.

    Args:
        num_classes: logits per picture; the output is (batch, num_classes).
        width: channels of the first stage; the others have two and four times as many.
        in_channels: channels of the input, (batch, in_channels, height, width), 32x32 pixels usual.

    Raises:
        ModelError: an argument is out of its range.

    Example:
        >>> import torch
        >>> preact_resnet20()(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])

    Source:
        He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016,
        https://arxiv.org/abs/1603.05027.
    """
    stages, channels = _make_stages(PreActivationBlock, (3, 3, 3), width=width)
    return chain(
        conv1=conv(in_channels, width, kernel=3),
        **stages,
        bn=nn.BatchNorm2d(channels),
        relu=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        linear=nn.Linear(channels, num_classes),
    )


@builder
def digits_resnet(
    num_classes: Classes = 10, width: Width = 32, *, in_channels: Channels = 1
) -> nn.Sequential:
    """Build a small residual net for 8x8 digits.

    It trains in seconds on a laptop, for the quickstart and for tests: 0.7 M parameters,
    6.5 M multiply-accumulates at 8x8. Three stages of two blocks, as wide as `resnet20`'s at
    twice its default width.

    Args:
        num_classes: logits per picture; the output is (batch, num_classes).
        width: channels of the first stage; the others have two and four times as many.
        in_channels: channels of the input, (batch, in_channels, height, width), 8x8 pixels usual.

    Raises:
        ModelError: an argument is out of its range.

    Example:
        >>> import torch
        >>> digits_resnet()(torch.zeros(1, 1, 8, 8)).shape
        torch.Size([1, 10])

    Source:
        The blocks are those of He et al., https://arxiv.org/abs/1512.03385; the sizes are ours.
    """
    return _resnet_cifar(
        (2, 2, 2),
        num_classes=num_classes,
        width=width,
        in_channels=in_channels,
        shortcut="identity",
    )


@builder
def resnet18(
    num_classes: Classes = 1000,
    width: Width = 64,
    *,
    in_channels: Channels = 3,
    shortcut: Shortcut = "identity",
    stem: Stem = "imagenet",
) -> nn.Sequential:
    """Build the 18-layer residual net for ImageNet pictures.

    11.7 M parameters, 1.8 G multiply-accumulates at 224x224. Parameters are named as torchvision
    names them, so its weights can be loaded.

    Args:
        num_classes: logits per picture; the output is (batch, num_classes).
        width: channels of the first stage; each further one of the four has twice as many.
        in_channels: channels of the input, (batch, in_channels, height, width).
        shortcut: `"identity"`, `"projection"` or `"zero_pad"`, as for `resnet20`.
        stem: `"imagenet"` starts with a 7x7 convolution of stride 2 and a max pool; `"cifar"` with
            a 3x3 convolution, for pictures of 32x32 and 64x64 pixels.

    Raises:
        ModelError: an argument is out of its range.

    Example:
        >>> import torch
        >>> resnet18(10, stem="cifar")(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])

    Source:
        He et al., "Deep Residual Learning", CVPR 2016, https://arxiv.org/abs/1512.03385.
    """
    return _resnet_imagenet(
        BasicBlock,
        (2, 2, 2, 2),
        num_classes=num_classes,
        width=width,
        in_channels=in_channels,
        shortcut=shortcut,
        stem=stem,
    )


@builder
def resnet50(
    num_classes: Classes = 1000,
    width: Width = 64,
    *,
    in_channels: Channels = 3,
    shortcut: Shortcut = "identity",
    stem: Stem = "imagenet",
) -> nn.Sequential:
    """Build the 50-layer residual net of bottlenecks for ImageNet pictures.

    25.6 M parameters, 4.1 G multiply-accumulates at 224x224. The 3x3 convolution of a bottleneck
    strides, not the first 1x1 one, and parameters are named as in torchvision, so its weights can
    be loaded.

    Args:
        num_classes: logits per picture; the output is (batch, num_classes).
        width: channels inside the first stage's bottlenecks; they put out four times as many, and
            each further one of the four stages has twice as many.
        in_channels: channels of the input, (batch, in_channels, height, width).
        shortcut: `"identity"`, `"projection"` or `"zero_pad"`, as for `resnet20`.
        stem: `"imagenet"` or `"cifar"`, as for `resnet18`.

    Raises:
        ModelError: an argument is out of its range.

    Example:
        >>> import torch
        >>> resnet50(10, 8, stem="cifar")(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])

    Source:
        He et al., "Deep Residual Learning", CVPR 2016, https://arxiv.org/abs/1512.03385.
    """
    return _resnet_imagenet(
        Bottleneck,
        (3, 4, 6, 3),
        num_classes=num_classes,
        width=width,
        in_channels=in_channels,
        shortcut=shortcut,
        stem=stem,
    )
