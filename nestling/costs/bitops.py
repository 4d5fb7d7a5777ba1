"""Bit-operations: multiply-accumulates, each times the bits of its weight and of its input."""

from nestling.extent import Counts
from nestling.spec import Space


def bitops(space: Space, spec: Counts) -> int:
    """Return the bit-operations of a forward run for one example.

    Floating-point numbers count as 32 bits, whatever their width, so that a net without bits has
    1,024 bit-operations for each multiply-accumulate, and one of 4-bit weights and 8-bit inputs 32.

    Source: van Baalen et al., Bayesian Bits: Unifying Quantization and Pruning (NeurIPS 2020),
    where they are called BOPs.

    Example:
        >>> nestling.costs.bitops(net.space, net.space.full)
        41792700416
    """
    return space.bitops(spec)
