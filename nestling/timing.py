"""Timing: subnets timed on made-up inputs, alone or one against another."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from nestling.batch import shapes
from nestling.costs import latency
from nestling.costs.latency import Call, Ratio
from nestling.errors import ModelError, UncalibratedWarning
from nestling.narrowing import Compare, Narrowing, narrow
from nestling.packing import pack
from nestling.spec import Spec
from nestling.supernet import Supernet
from nestling.weights import is_channels_last, lay_out

NARROWING_SECONDS = 30.0  # to find which counts are worth having; enough for a small net


def narrowing_of(
    net: Supernet,
    specs: Iterable[Spec],
    batch: int = 1,
    *,
    seconds: float = NARROWING_SECONDS,
    packed: bool = False,
    known: Narrowing | None = None,
) -> Narrowing:
    """Measure on this device which counts of some specs are worth having.

    Raises:
        ModelError: inputs cannot be made up, or the model fails on those that were.
    """
    check_batch(batch)
    check_narrow(seconds)
    compare = _comparer(net, batch, packed)
    return narrow(net.space, specs, compare, seconds=seconds, known=known)


def check_narrow(seconds: object) -> None:
    """Check a time to narrow in.

    Raises:
        ModelError: it is no number of seconds.
    """
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not number or not 0 <= seconds < math.inf:  # type: ignore[operator]
        raise ModelError(
            f"the time to narrow in is a number of seconds, such as {NARROWING_SECONDS:g}, or 0 "
            f"for no narrowing, but it is {seconds!r}"
        )


def _comparer(net: Supernet, batch: int, packed: bool) -> Compare:
    """Return a function that times one subnet of a net against another, side by side."""
    device = next(net.parameters()).device
    args, kwargs = net.signature.example(batch, device)

    @lru_cache(maxsize=2)
    def call(spec: Spec) -> Call:
        subnet = net.subnet(spec)
        return prepared(packed_copy(net, subnet) if packed else subnet.eval(), args, kwargs)

    def compare(smaller: Spec, larger: Spec, precision: float, seconds: float) -> Ratio:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UncalibratedWarning)  # only the time is of interest
            return latency.paired_ratio(
                call(smaller),
                call(larger),
                precision=precision,
                seconds=seconds,
                synchronize=waiting(device),
            )

    return compare


def prepared(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
    """Return a call of a module on made-up inputs, tried once.

    Raises:
        ModelError: the model fails on them.
    """

    def run() -> object:
        with torch.no_grad():
            return module(*args, **kwargs)

    try:
        run()
    except Exception as error:
        raise ModelError(
            f"latency is measured on made-up inputs, and the model fails on "
            f"{shapes((args, kwargs))}: {error}; measure another batch, or do without "
            "(measure=False)"
        ) from error
    return run


def packed_copy(net: Supernet, module: nn.Module) -> nn.Module:
    """Return a contiguous copy of a subnet, laid out as the net's weights, in evaluation mode."""
    packed = pack(module)
    if is_channels_last(net.parameters()):
        lay_out(packed, torch.channels_last)
    return packed.eval()


def waiting(device: torch.device) -> Callable[[], object] | None:
    """Return what waits for a device to finish; None where calls do so themselves."""
    return torch.cuda.synchronize if device.type == "cuda" else None


def check_batch(batch: object) -> None:
    """Check a number of examples in a call.

    Raises:
        ModelError: it is no whole number of at least 1.
    """
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ModelError(f"batch= is a whole number of at least 1, but it is {batch!r}")
