"""Surroundings: what a user's code may change around itself, put back as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn

from nestling.weights import tensors_of

_ACCELERATORS = ("cuda", "xpu")  # those whose random states torch can fork


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Leave random states, the default dtype and the default device as they are found.

    Models draw random numbers when they are run, set seeds, or set the default dtype; whoever makes
    a supernet of one must not see that.

    Args:
        model: whose devices' random states are kept, besides the CPU's, Python's and NumPy's.
    """
    python, numpy = random.getstate(), np.random.get_state()
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        devices = {tensor.device for tensor in tensors_of(model).values()}
        for kind in _ACCELERATORS:
            numbers = sorted(each.index or 0 for each in devices if each.type == kind)
            if numbers:
                stack.enter_context(torch.random.fork_rng(devices=numbers, device_type=kind))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_default_dtype(dtype)
            if torch.get_default_device() != device:
                torch.set_default_device(device)
