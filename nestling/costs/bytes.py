"""Bytes: the memory of a subnet's weights as a net of its own."""

from nestling.extent import Counts
from nestling.spec import Space


def bytes_(space: Space, spec: Counts) -> int:
    """Return the bytes of all parameters and buffers in the model's own dtypes.

    Weights in few bits count as that many bits each, packed without gaps, and their scales in full.

    Example:
        >>> nestling.costs.bytes_(net.space, net.space.full)
        1103416
    """
    return space.bytes(spec)
