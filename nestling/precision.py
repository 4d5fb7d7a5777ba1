"""Precision: the fastest number format and memory layout that training can use on a device.

On processors with AMX or AVX-512 bf16 instructions, bf16 autocast with channels-last convolutions
more than doubles training speed at unchanged accuracy; weights, gradients and the optimiser stay
float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from nestling.errors import ModelError, did_you_mean

NAMES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class Precision:
    """How training computes.

    Attributes:
        dtype: of the matrix products and convolutions.
        memory_format: of pictures and convolution weights.
        mixed: whether the weights stay float32 while `dtype` is narrower.
    """

    dtype: torch.dtype
    memory_format: torch.memory_format
    mixed: bool = False

    @contextmanager
    def autocast(self, device: torch.device) -> Iterator[None]:
        """Run a block in this precision."""
        if self.mixed:
            with torch.autocast(device.type, dtype=self.dtype):
                yield
        else:
            yield

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"{name}, channels-last" if self.memory_format == torch.channels_last else name


def choose(name: str, device: torch.device, model: nn.Module) -> Precision:
    """Return a precision by name; `"auto"` means the fastest that leaves accuracy unharmed.

    A model whose weights are not float32 trains in their own dtype.

    Raises:
        ModelError: the name is unknown, or asks for bf16 with weights that are not float32.
    """
    if name not in NAMES:
        near = did_you_mean(str(name), NAMES)
        raise ModelError(f"precision= is one of {', '.join(NAMES)}, not {name!r}{near}")
    weights = [p for p in model.parameters() if p.is_floating_point()]
    volumes = any(p.dim() == 5 for p in weights)  # torch cannot lay these out channels-last
    pictures = not volumes and any(isinstance(module, nn.Conv2d) for module in model.modules())
    layout = torch.channels_last if pictures else torch.contiguous_format
    others = {p.dtype for p in weights} - {torch.float32}
    if name == "bfloat16" and others:
        raise ModelError(
            f"precision='bfloat16' keeps float32 weights, but the model has {others.pop()}; "
            "convert it with model.float(), or use precision='auto'"
        )
    if name == "bfloat16" or (name == "auto" and not others and fast_bfloat16(device)):
        return Precision(torch.bfloat16, layout, mixed=True)
    return Precision(weights[0].dtype if weights else torch.float32, layout)


def fast_bfloat16(device: torch.device) -> bool:
    """Return whether the device multiplies bf16 matrices faster than float32 ones."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if device.type == "cpu":
        return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return False
