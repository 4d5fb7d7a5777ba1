"""Layers that several of our nets are put together from."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def chain(**layers: nn.Module) -> nn.Sequential:
    """Return the layers one after the other, each under its keyword's name.

    Most nets are a chain; named, it has the parameter names of the published weights without a
    class and a forward of its own.

    Example:
        >>> list(chain(conv=nn.Conv2d(3, 8, 3), relu=nn.ReLU()).state_dict())
        ['conv.weight', 'conv.bias']
    """
    return nn.Sequential(OrderedDict(layers))


def conv(inputs: int, outputs: int, *, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a convolution without bias that keeps the picture's size, up to its stride.

    Args:
        inputs: channels in.
        outputs: channels out.
        kernel: side of the square kernel in pixels, odd.
        stride: step in pixels.
        groups: 1, or `inputs` for a depthwise convolution.

    Example:
        >>> conv(3, 8, kernel=3).padding
        (1, 1)
    """
    return nn.Conv2d(
        inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
    )


def conv_norm(
    inputs: int,
    outputs: int,
    *,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    activation: nn.Module | None = None,
) -> nn.Sequential:
    """Return a convolution, its batch norm and, if one is given, its activation.

    Args:
        inputs: channels in.
        outputs: channels out.
        kernel: side of the square kernel in pixels, odd.
        stride: step in pixels.
        groups: 1, or `inputs` for a depthwise convolution.
        activation: the third layer; None leaves it out.

    Example:
        >>> len(conv_norm(3, 8, kernel=3, activation=nn.ReLU()))
        3
    """
    layers = nn.Sequential(
        conv(inputs, outputs, kernel=kernel, stride=stride, groups=groups), nn.BatchNorm2d(outputs)
    )
    return layers if activation is None else layers.append(activation)
