"""Traps in what nets do with their weights before they use them; see `traps.py`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from traps import Net, conv, trap


class StandardisedConv(nn.Conv2d):
    def forward(self, x):
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        spread = self.weight.var((1, 2, 3), keepdim=True, unbiased=False).add(1e-5).sqrt()
        weight = (self.weight - mean) / spread
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, groups=self.groups)


@trap(axes=2, plain=False)
class WeightStandardised(Net):
    """The weight is normalised over its inputs; the activations are not zero where cut."""

    def __init__(self):
        super().__init__(16, 8)
        self.one, self.two = StandardisedConv(16, 12, 3), StandardisedConv(12, 8, 3)

    def body(self, x):
        return self.two(torch.sigmoid(self.one(torch.sigmoid(x))))


@trap(axes=2, plain=False)
class WeightNorm(Net):
    def __init__(self):
        super().__init__(16, 8)
        self.one = parametrizations.weight_norm(nn.Conv2d(16, 12, 3))
        self.two = parametrizations.weight_norm(nn.Conv2d(12, 8, 3))

    def body(self, x):
        return self.two(F.relu(self.one(x)))


@trap(axes=2)
class SumOfWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = conv(3, 16), nn.Linear(16, 12), nn.Linear(16, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.stem(x).mean((2, 3))
        weight = self.one.weight + 0.5 * self.two.weight
        return self.head(F.relu(F.linear(x, weight, self.one.bias + self.two.bias)))


@trap(shape=(4, 12), axes=2)
class Perceptron(nn.Module):
    """A column vector on the right: `weight @ x`, with a scalar gate and a bare parameter."""

    def __init__(self):
        super().__init__()
        self.one, self.bias = nn.Parameter(torch.randn(16, 12)), nn.Parameter(torch.randn(16, 1))
        self.two, self.head = nn.Linear(16, 8), nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.one @ x.T + self.bias).T
        return self.head(F.silu(self.two(x)))


@trap(axes=1)
class Squeezed(Net):
    """Squeezing without a dimension drops the channels too when there is one left."""

    def __init__(self):
        super().__init__(16)

    def forward(self, x):
        return self.head(F.adaptive_avg_pool2d(self.stem(x), 1).squeeze())


@trap(axes=2)
class FrozenPart(Net):
    """Part of the weights does not require gradients."""

    def __init__(self):
        super().__init__(16)
        self.last = conv(16, 16)
        self.stem.requires_grad_(False)

    def body(self, x):
        return self.last(x)
