"""The contract of bits: what holds for every supernet whose layers can be in few bits."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nestling import quantize
from nestling.axes.structure import tensors_in
from nestling.bits import by_hand, halved
from nestling.coding import Coded, coded_layers
from nestling.errors import UncalibratedWarning
from nestling.packing import pack
from nestling.quantize import FULL, MOST
from nestling.spec import Space, Spec
from nestling.supernet import Supernet


def check_bits(net: Supernet, *inputs: Any, seed: int = 0, **kwargs: Any) -> None:
    """Check that subnets in few bits are what the definition says, of any widths and depth.

    The top k bits of the stored integers are the k-bit weights; they are those that halving by hand
    gives, number for number; and the subnet computes what the subnet of the same shape in floating
    point computes with these weights and inputs. A packed copy computes the same. For a net without
    bits there is nothing to check.

    Args:
        net: the supernet; it is not changed.
        *inputs: as the model takes them.
        seed: of the random specs.
        **kwargs: keyword inputs.

    Raises:
        AssertionError: what does not hold.

    Example:
        >>> check_bits(nestling.Supernet(MyNet(), x, bits=(2, 4, 8)), x)
    """
    own = copy.deepcopy(net)
    if not own.space.codings:
        return
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", UncalibratedWarning)
        for spec in _specs(own.space, seed):
            subnet = own.subnet(spec).eval()
            for path, layer in coded_layers(subnet):
                _check_weight(f"{path} in {spec}", layer)
            found = _outputs(subnet, inputs, kwargs)
            for one, other in zip(_by_hand(own, spec, subnet, inputs, kwargs), found, strict=True):
                assert torch.equal(one, other), f"{spec} differs from what halving by hand gives"
            for one, other in zip(_outputs(pack(subnet), inputs, kwargs), found, strict=True):
                assert torch.equal(one, other), f"{spec} computes something else when it is packed"


def in_floating_point(space: Space, spec: Mapping[str, int]) -> Spec:
    """Return a spec with the bits of all weights and inputs full."""
    bits = {name for name, axis in space.axes.items() if axis.kind == "bits"}
    return Spec(space, {name: count for name, count in spec.items() if name not in bits})


def _check_weight(name: str, layer: Coded) -> None:
    (weight, given), bits = layer.stored, layer._weight_bits
    scale = quantize.positive(given)
    stored = quantize.integers(weight, scale)
    fewer = quantize.integers(weight, scale, bits)
    assert torch.equal(stored >> (MOST - bits), fewer), f"{name}: not the top bits of the integers"
    numbers, found = quantize.numbers(fewer, scale, bits), layer.weight
    assert torch.equal(numbers, found), f"{name}: its weight is not what its integers stand for"
    by_halves = halved(weight, scale[(...,) + (None,) * (weight.dim() - 1)], bits)
    assert torch.equal(by_halves, found), f"{name}: its weight is not what halving by hand gives"


def _by_hand(
    net: Supernet, spec: Spec, subnet: nn.Module, inputs: Any, kwargs: Any
) -> list[Tensor]:
    """Return the outputs of the floating-point subnet of the same shape, its weights replaced."""
    space = net.space
    plain = pack(net.subnet(in_floating_point(space, spec)).eval())
    absent = space.absent(spec)
    codings = [coding for coding in space.codings if not absent(coding.module)]
    with by_hand(plain, codings, spec, dict(subnet.named_parameters())):
        return _outputs(plain, inputs, kwargs)


def _outputs(module: nn.Module, inputs: Any, kwargs: Any) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors_in(module(*inputs, **kwargs))]


def _specs(space: Space, seed: int) -> list[Spec]:
    """Return the fewest bits alone, the most below full alone, and random counts of all axes."""
    draw = random.Random(seed)
    bits = [axis for axis in space.axes.values() if axis.kind == "bits"]
    fewest = {axis.name: axis.counts[0] for axis in bits}
    most = {axis.name: [n for n in axis.counts if n < FULL][-1] for axis in bits}
    mixed = [{n: draw.choice(a.counts) for n, a in space.axes.items()} for _ in range(3)]
    return [Spec(space, counts) for counts in (fewest, most, *mixed)]
