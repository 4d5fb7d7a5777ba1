"""Multiply-accumulates of one forward run for one example."""

from nestling.extent import Counts
from nestling.spec import Space


def macs(space: Space, spec: Counts) -> int:
    """Return the multiply-accumulates of convolutions, matrix products and attention.

    Norms, activations and pooling are not counted, as is usual; one multiply-accumulate is two
    floating-point operations.

    Example:
        >>> nestling.costs.macs(net.space, net.space.full)
        40813184
    """
    return space.macs(spec)
