"""nvml: the energy counter of NVIDIA's GPUs (Volta and later), through the package nvidia-ml-py.

Source: https://docs.nvidia.com/deploy/nvml-api/, nvmlDeviceGetTotalEnergyConsumption
"""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nestling.energy.meter import Meter

MILLI = 1e-3


def meter(device: torch.device, root: Path) -> Meter | None:
    """Return the meter of a GPU; None where it has none, or the package is not installed."""
    if device.type != "cuda":
        return None
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(_uuid(device))
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError:
        return None
    reader = partial(nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
    return Meter(f"nvml: {torch.cuda.get_device_name(device)}", [reader], MILLI, [0])


def _uuid(device: torch.device) -> str:
    """Return what names a GPU whatever the order in which CUDA and NVML count them."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"
