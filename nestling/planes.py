"""Bit planes: the integers of nested bits as they lie in a file, one plane for each bit.

Plane j of a weight holds the signs b_j of all of its entries, eight to a byte: 1 for plus, the
first entry in the highest bit. So the first k planes are the k-bit weight, and nothing else is in
them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def planes_of(codes: Tensor, bits: int) -> list[Tensor]:
    """Return the bit planes of integers, that of the top bit first.

    Args:
        codes: signed integers of `bits` bits, as `quantize.integers` gives them.
        bits: how many bits they have.

    Returns:
        As many uint8 tensors of one dimension, each of an eighth of the entries, rounded up.

    Example:
        >>> planes_of(torch.tensor([-2, -1, 0, 1]), 2)
        [tensor([48], dtype=torch.uint8), tensor([80], dtype=torch.uint8)]
    """
    flat = codes.detach().cpu().flatten().numpy().astype(np.int16) + (1 << (bits - 1))
    return [
        torch.from_numpy(np.packbits((flat >> place & 1).astype(np.uint8)))
        for place in reversed(range(bits))
    ]


def codes_of(planes: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """Return the integers that bit planes hold; fewer planes give integers of fewer bits.

    Args:
        planes: at least one, that of the top bit first.
        shape: of the weight.

    Returns:
        int8, as `planes_of` was given them.

    Raises:
        ValueError: a plane is no uint8 tensor of the right length.
    """
    size = math.prod(shape)
    total = np.zeros(size, dtype=np.int16)
    for plane in planes:
        if plane.dtype != torch.uint8 or tuple(plane.shape) != (bytes_of(size),):
            raise ValueError(
                f"a bit plane of {size} weights is {bytes_of(size)} bytes, not "
                f"{tuple(plane.shape)} of {plane.dtype}"
            )
        total = 2 * total + np.unpackbits(plane.cpu().numpy(), count=size)
    return torch.from_numpy((total - (1 << (len(planes) - 1))).astype(np.int8)).reshape(*shape)


def bytes_of(entries: int) -> int:
    """Return the bytes of a plane of so many weights."""
    return -(-entries // 8)
