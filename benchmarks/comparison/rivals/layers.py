"""Nets for several numbers of bits, as the rivals have them: shared weights, norms of their own.

The rivals quantise the same layers as our own method does in the same net.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nestling.packing import pack
from nestling.quantize import FULL
from nestling.spec import Space, Spec
from nestling.supernet import Supernet


class Rounded(torch.autograd.Function):
    """Numbers from 0 to 1 in even steps, with the gradient of what is not rounded."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, bits: int, down: bool) -> Tensor:
        """Round to the nearest of 2^bits - 1 steps, or down to the lower one of 2^bits."""
        if down:
            steps = 1 << bits
            return torch.floor(values * steps).clamp_(max=steps - 1) / steps
        steps = (1 << bits) - 1
        return torch.round(values * steps) / steps

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Pass the gradient through."""
        return gradients[0], None, None


def rounded(values: Tensor, bits: int, *, down: bool = False) -> Tensor:
    """Return numbers from 0 to 1 in even steps, see `Rounded`."""
    found: Tensor = Rounded.apply(values, bits, down)  # type: ignore[no-untyped-call]
    return found


class FewBits(nn.Module, ABC):
    """A layer whose weight and inputs are quantised, with the shared weight of another layer.

    Args:
        layer: a convolution or linear layer.
        bits: of its weight and inputs; 32 is floating point.
    """

    def __init__(self, layer: nn.Module, bits: int) -> None:
        super().__init__()
        self.layer = layer
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        """Compute what the layer computes, with rounded weights and inputs."""
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        found: Tensor = functional_call(
            self.layer, {"weight": self.weights(weight)}, (self.inputs(x),)
        )
        return found

    @abstractmethod
    def weights(self, weight: Tensor) -> Tensor:
        """Return the weight to compute with."""

    @abstractmethod
    def inputs(self, x: Tensor) -> Tensor:
        """Return the inputs to compute with."""


class Joint(nn.Module):
    """A net for each number of bits: quantised layers share their weights, norms are private.

    Everything else, biases and the layers that are not quantised, is shared too.

    Args:
        model: the net in floating point; it is not changed.
        layers: paths of what is quantised.
        bits: numbers of bits.
        kind: how.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[str], bits: Sequence[int], kind: type[FewBits]
    ) -> None:
        super().__init__()
        first = copy.deepcopy(model)
        self.nets = nn.ModuleDict(
            {str(count): _net(first, layers, count, kind) for count in sorted(bits, reverse=True)}
        )

    def at(self, bits: int) -> nn.Module:
        """Return the net for a number of bits."""
        return self.nets[str(bits)]

    @property
    def bits(self) -> list[int]:
        """The numbers of bits, most first."""
        return [int(name) for name in self.nets]

    def forward(self, x: Tensor) -> Tensor:
        """Run the net of most bits."""
        found: Tensor = self.at(self.bits[0])(x)
        return found


def _net(model: nn.Module, layers: Sequence[str], bits: int, kind: type[FewBits]) -> nn.Module:
    """Return a copy that shares all parameters but those of norms, with quantised layers."""
    own = {
        id(tensor)
        for part in model.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm)
        for tensor in part.parameters()
    }
    shared = {id(p): p for p in model.parameters() if id(p) not in own}
    net = copy.deepcopy(model, shared)
    for path in layers:
        name, _, key = path.rpartition(".")
        net.get_submodule(name).add_module(key, kind(net.get_submodule(path), bits))
    return net


def joint(net: Supernet, bits: Sequence[int], kind: type[FewBits]) -> Joint:
    """Return the nets of a supernet for some numbers of bits: its layers, its fresh weights."""
    model = pack(net.subnet(net.space.full))
    return Joint(model, [coding.module for coding in net.space.codings], bits, kind)


def all_in(space: Space, bits: int) -> Spec:
    """Return the spec whose weights and inputs are all in so many bits; all else is whole."""
    return Spec(space, {n: bits for n, axis in space.axes.items() if axis.kind == "bits"})


def counts_of(space: Space) -> list[int]:
    """Return the numbers of bits that all weights and inputs of a net may have, most first."""
    allowed = [set(axis.counts) for axis in space.axes.values() if axis.kind == "bits"]
    return sorted(set.intersection(*allowed), reverse=True) if allowed else []


def name_of(bits: int) -> str:
    """Return what a net in so many bits is called."""
    return "full" if bits == FULL else f"{bits} bits"


def offered(net: Supernet, trained: Joint) -> Mapping[str, tuple[Spec, nn.Module]]:
    """Return what a recipe returns: each net with its spec."""
    return {name_of(n): (all_in(net.space, n), trained.at(n)) for n in trained.bits}


def each(trained: Joint) -> Iterator[nn.Module]:
    """Yield the nets in training mode, that of most bits first."""
    for bits in trained.bits:
        yield trained.at(bits).train()
