"""Pricing: what a subnet costs, counted or measured on this device, as a cost for searches."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from nestling.costs import measure
from nestling.errors import ModelError, UncalibratedWarning, did_you_mean
from nestling.search.request import CostOf
from nestling.spec import Spec
from nestling.supernet import Supernet
from nestling.timing import check_batch, packed_copy, prepared, waiting

SECONDS = 0.2  # to measure one spec; a search asks for hundreds
LATENCY = "latency"  # the cost that is measured
_COUNTED = ["space", "spec"]  # what a cost that is counted is a function of


def costs() -> list[str]:
    """Return the names of all costs: those of files in `nestling.costs` that count, and latency.

    Example:
        >>> costs()
        ['bytes', 'macs', 'params', 'latency']
    """
    folder = importlib.import_module("nestling.costs")
    files = sorted(info.name for info in pkgutil.iter_modules(folder.__path__))
    return [*(name for name in files if _counted(name) is not None), LATENCY]


def cost_of(net: Supernet, name: str, batch: int = 1) -> CostOf:
    """Return a cost by its name.

    Args:
        net: the supernet.
        name: one of `costs()`.
        batch: examples in a call whose latency is measured.

    Raises:
        ModelError: there is no such cost.

    Example:
        >>> found = conduct(greedy(net.space), net, score=score, cost=cost_of(net, "bytes"))
    """
    check_cost(name)
    if name == LATENCY:
        return measured_latency(net, batch)
    counted = _counted(name)
    assert counted is not None
    return partial(counted, net.space)


def check_cost(cost: str) -> None:
    """Check that there is a cost of a name.

    Raises:
        ModelError: there is none.
    """
    known = costs()
    if cost not in known:
        raise ModelError(
            f"unknown cost {cost!r}{did_you_mean(str(cost), known)}; the costs are "
            f"{', '.join(known)}"
        )


def _counted(name: str) -> Callable[..., float] | None:
    """Return the function of a file that counts a cost from a space and a spec."""
    module = importlib.import_module(f"nestling.costs.{name}")
    # What is called as a builtin of Python has an underscore behind it.
    found: Any = getattr(module, name, None) or getattr(module, f"{name}_", None)
    if not inspect.isfunction(found) or list(inspect.signature(found).parameters) != _COUNTED:
        return None
    return found


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
