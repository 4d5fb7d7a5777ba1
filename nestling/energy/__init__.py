"""Energy: joules that this machine has used, where it can tell. A reader is one file.

It has `meter(device, root)`, which returns a `Meter` or None where there is nothing to read. What
cannot be measured is said to be "not available here"; it is never estimated.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from nestling.catalogue import Catalogue
from nestling.energy.meter import Meter

__all__ = ["NOT_HERE", "Meter", "find_meter", "joules_of", "names"]

NOT_HERE = "not available here"
_ALL = Catalogue(__name__, "energy reader", function="meter")


def names() -> list[str]:
    """Return the names of all readers.

    Example:
        >>> names()
        ['nvml', 'rapl']
    """
    return _ALL.names()


def find_meter(device: torch.device | str, root: str | Path = "/") -> Meter | None:
    """Return what reads the energy of a device; None where nothing does.

    Args:
        device: that computes.
        root: of the file system.
    """
    where = torch.device(device)
    found = (_ALL.find(name)(where, Path(root)) for name in names())
    return next((meter for meter in found if meter is not None), None)


def joules_of(
    call: Callable[[], object],
    meter: Meter,
    *,
    seconds: float = 0.5,
    clock: Callable[[], float] = time.perf_counter,
    synchronize: Callable[[], object] | None = None,
) -> float:
    """Return the joules that the device uses while one call runs, whatever else runs on it.

    Args:
        call: is repeated.
        meter: of the device.
        seconds: at least so long, since counters move in steps of a millisecond and more.
        clock: returns seconds.
        synchronize: waits for the device to finish.
    """
    call()
    wait = synchronize or _nothing
    wait()
    before, start, runs = meter.joules(), clock(), 0
    while clock() - start < seconds or not runs:
        call()
        wait()
        runs += 1
    return (meter.joules() - before) / runs


def _nothing() -> None:
    return None
