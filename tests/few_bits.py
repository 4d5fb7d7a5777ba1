"""Nets with bits for tests, made once for each choice of bits."""

import copy

import torch
from small import ConvNet, seeded, supernet

from nestling.bits import Bits

WHOLE = Bits((1, 2, 4, 8), inputs=(4, 8), first=(8,), last=(8,))


def images(count=4, seed=2):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


_made = {}


def net_of(bits=(2, 4, 8), model=None, *inputs):
    """A supernet of its own weights; axes are found once for each choice of bits."""
    kind = model or (lambda: ConvNet(16))
    key = repr(bits), getattr(kind, "__name__", ""), len(inputs)
    if key not in _made or model is not None:
        _made[key] = supernet(seeded(kind), *inputs, bits=bits)
    return copy.deepcopy(_made[key])


def mixed(net):
    """Half of the width, and other bits in every layer."""
    bits = [n for n, axis in net.space.axes.items() if axis.kind == "bits"]
    counts = {n: net.space.axes[n].counts[place % 2] for place, n in enumerate(bits)}
    return net.space.spec({**net.space.spec(width=0.5), **counts})


def clips_in(module):
    return [name for name, _ in module.named_parameters() if "input_clip" in name]
