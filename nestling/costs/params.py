"""Parameters: numbers that training learns."""

from nestling.extent import Counts
from nestling.spec import Space


def params(space: Space, spec: Counts) -> int:
    """Return the number of parameters of the subnet; buffers are not counted.

    Example:
        >>> nestling.costs.params(net.space, net.space.full)
        272474
    """
    return space.params(spec)
