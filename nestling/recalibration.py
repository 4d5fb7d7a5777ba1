"""Recalibration: a subnet's norm statistics, measured afresh.

Source: Yu and Huang, Universally Slimmable Networks and Improved Training Techniques (ICCV 2019),
section 3.2: the plain mean over batches, not the moving average.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from nestling.batch import forward, inputs_of, move
from nestling.binding import (
    binding,
    expect_calibration,
    is_calibrated,
    is_statistic,
    keeps_statistics,
)
from nestling.errors import ModelError


def recalibrate(subnet: nn.Module, batches: Iterable[Any], private: Collection[str]) -> None:
    """Measure norm statistics over batches; on failure, leave the subnet as it was.

    Args:
        subnet: a live subnet or a packed copy.
        batches: `(inputs, targets)` pairs or bare inputs; moved to the subnet's device.
        private: names of the buffers that training changes.

    Raises:
        ModelError: there is no batch.
    """
    norms = [module for module in subnet.modules() if keeps_statistics(module)]
    others = list(_other_statistics(subnet, private))
    if not norms and not others:
        return
    seen, device = 0, _device_of(subnet)
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        _undone_on_failure(subnet, [*norms, *others]),
    ):
        with _measuring(subnet, norms, others):
            for batch in batches:
                seen += 1
                for norm in norms:
                    if isinstance(norm, nn.modules.instancenorm._InstanceNorm):
                        norm.momentum = 1 / seen  # it has no plain mean of its own
                forward(subnet, move(inputs_of(batch), device))
        if not seen:
            raise ModelError("recalibration needs at least one batch, but none was given")
    tie = binding(subnet)
    if tie is not None:
        tie.measured = True


def _device_of(subnet: nn.Module) -> torch.device:
    tensors = (tensor for group in (subnet.parameters(), subnet.buffers()) for tensor in group)
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


@contextmanager
def _measuring(
    subnet: nn.Module, norms: list[nn.Module], others: list[nn.Module]
) -> Iterator[None]:
    """Let only the norms work as in training, and average over all batches."""
    modes = [(module, module.training) for module in subnet.modules()]
    momenta = [norm.momentum for norm in norms]
    try:
        for module, _ in modes:
            module.training = False
        for norm in norms:
            norm.reset_running_stats()  # type: ignore[operator]
            norm.momentum = None  # type: ignore[assignment]
        for module in (*norms, *others):
            module.training = True
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes:
            module.training = training


@contextmanager
def _undone_on_failure(subnet: nn.Module, owners: list[nn.Module]) -> Iterator[None]:
    calibrated = is_calibrated(subnet)
    buffers = [b for module in owners for b in module._buffers.values() if b is not None]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    except BaseException:
        for buffer, old in zip(buffers, before, strict=True):
            buffer.copy_(old)
        tie = binding(subnet)
        if tie is not None and not calibrated:
            tie.versions = {name: buffer._version for name, buffer in tie.private.items()}
            expect_calibration(subnet)
        raise


def _other_statistics(subnet: nn.Module, private: Collection[str]) -> Iterator[nn.Module]:
    """Yield the layers of the user's own making that keep statistics: a norm written by hand.

    Only layers without layers inside: a block may hold dropout, which stays off.
    """
    for path, module in subnet.named_modules():
        if not keeps_statistics(module) and not any(True for _ in module.children()):
            for key, buffer in module._buffers.items():
                name = f"{path}.{key}" if path else key
                if buffer is not None and name in private and is_statistic(buffer):
                    yield module
                    break
