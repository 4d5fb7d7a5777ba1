"""Pricing: what a subnet costs on this device, measured, as a cost for searches."""

from __future__ import annotations

import warnings

from nestling.costs import measure
from nestling.errors import UncalibratedWarning
from nestling.search.request import CostOf
from nestling.spec import Spec
from nestling.supernet import Supernet
from nestling.timing import check_batch, packed_copy, prepared, waiting

SECONDS = 0.2  # to measure one spec; a search asks for hundreds


def measured_latency(
    net: Supernet, batch: int = 1, *, seconds: float = SECONDS, packed: bool = True
) -> CostOf:
    """Return a cost: the median milliseconds of a call on this device, measured when asked for.

    Another measurement is another number; the driver asks once a spec and keeps it in the log.

    Args:
        net: the supernet.
        batch: examples in a call.
        seconds: longest time to measure one spec.
        packed: measure contiguous copies, as they are deployed, instead of views.

    Raises:
        ModelError: inputs cannot be made up.

    Example:
        >>> cost = measured_latency(net, batch=32)
        >>> found = conduct(greedy(net.space), net, score=score, cost=cost)
    """
    check_batch(batch)
    device = next(net.parameters()).device
    args, kwargs = net.signature.example(batch, device)

    def cost(spec: Spec) -> float:
        subnet = net.subnet(spec).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UncalibratedWarning)  # only the time is of interest
            call = prepared(packed_copy(net, subnet) if packed else subnet, args, kwargs)
            found = measure({"spec": call}, seconds=seconds, synchronize=waiting(device))
        return found["spec"].median

    return cost
