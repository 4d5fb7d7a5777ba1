"""Precision: the fastest number format and memory layout that a model can train in on a device.

On processors with AMX or AVX-512 bf16 instructions, bf16 autocast with channels-last convolutions
more than doubles training speed at unchanged accuracy; weights, gradients and the optimiser stay
float32. Not every model takes them: `x.view(len(x), -1)` fails on channels-last pictures. So what
is chosen for a device is tried on the model before it is used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nestling import batch as batches
from nestling.axes.structure import map_tensors
from nestling.errors import ModelError, brief, did_you_mean
from nestling.packing import pack
from nestling.supernet import Supernet
from nestling.surroundings import undisturbed
from nestling.weights import duplicate, lay_out

NAMES = ("auto", "float32", "bfloat16", "float32-channels-last")


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

    `"float32"` is plain: no narrower dtype, no other memory layout. A model whose weights are not
    float32 trains in their own dtype.

    Raises:
        ModelError: the name is unknown, or asks for bf16 with weights that are not float32.
    """
    if name not in NAMES:
        near = did_you_mean(str(name), NAMES)
        raise ModelError(f"precision= is one of {', '.join(NAMES)}, not {name!r}{near}")
    weights = [p for p in model.parameters() if p.is_floating_point() and not is_lazy(p)]
    volumes = any(p.dim() == 5 for p in weights)  # torch cannot lay these out channels-last
    pictures = not volumes and any(isinstance(module, nn.Conv2d) for module in model.modules())
    fast = pictures and name != "float32"
    layout = torch.channels_last if fast else torch.contiguous_format
    others = {p.dtype for p in weights} - {torch.float32}
    if name == "bfloat16" and others:
        raise ModelError(
            f"precision='bfloat16' keeps float32 weights, but the model has {others.pop()}; "
            "convert it with model.float(), or use precision='auto'"
        )
    if name == "bfloat16" or (name == "auto" and not others and fast_bfloat16(device)):
        return Precision(torch.bfloat16, layout, mixed=True)
    return Precision(weights[0].dtype if weights else torch.float32, layout)


def alternatives(name: str, chosen: Precision) -> list[Precision]:
    """Return the precisions to try on a model, the chosen one first, the plainest last.

    bf16 that was asked for by name stays; only its layout may become plain.
    """
    plain = replace(chosen, memory_format=torch.contiguous_format)
    found = [chosen, plain]
    if chosen.mixed and name == "auto":
        found += [replace(each, dtype=torch.float32, mixed=False) for each in (chosen, plain)]
    return list(dict.fromkeys(found))


def tried(
    wanted: Sequence[Precision],
    net: Supernet,
    inputs: Any,
    targets: Any,
    loss: Callable[[Any, Any], Tensor] | None,
    alone: nn.Module | None = None,
) -> tuple[Precision, str]:
    """Return the first precision that a net trains in, and why not the first of all; or "".

    The full and the narrowest subnet make a step each on a batch, and a run in evaluation mode.
    All of it happens on copies: no weight, statistic or random state changes. Where a subnet fails
    in every precision, precision is not what is wrong, and it does not count.

    Args:
        wanted: what to try, the plainest last; with only one, nothing is tried.
        net: whose subnets are tried.
        inputs: of a batch, on the net's device.
        targets: of the batch.
        loss: from (outputs, targets); None where the net is only evaluated.
        alone: a module of its own that is tried instead of the subnets.
    """
    if len(wanted) == 1:
        return wanted[0], ""
    with undisturbed(net.model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the real run says it again
        modules = (
            [alone]
            if alone is not None
            else [pack(net.subnet(spec)) for spec in dict.fromkeys((net.space.full, _least(net)))]
        )
        found: list[tuple[Precision, list[str]]] = []
        for precise in wanted:
            errors = [_error(precise, each, inputs, targets, loss) for each in modules]
            found.append((precise, [error for error in errors if error]))
            if not found[-1][1]:
                break
    best, _ = min(found, key=lambda each: len(each[1]))
    return best, "" if best is wanted[0] else found[0][1][0]


def _least(net: Supernet) -> Any:
    return net.space.uniform[0]


def _error(
    precise: Precision,
    module: nn.Module,
    inputs: Any,
    targets: Any,
    loss: Callable[[Any, Any], Tensor] | None,
) -> str:
    """Return in what a step of a copy of a module fails, in a line; "" where it does not."""
    copy = duplicate(module)
    lay_out(copy, precise.memory_format)
    device = next((p.device for p in copy.parameters()), torch.device("cpu"))
    try:
        given = batches.move(inputs, device, precise.memory_format)
        copy.train(loss is not None)
        with precise.autocast(device), torch.set_grad_enabled(loss is not None):
            outputs = in_float32(batches.forward(copy, given))
        if loss is None:
            return ""
        loss(outputs, targets).backward()  # type: ignore[no-untyped-call]
        copy.eval()
        with torch.no_grad():
            batches.forward(copy, inputs)
    except torch.OutOfMemoryError:
        return ""  # a copy more than the training needs; its own steps will tell
    except Exception as error:  # noqa: BLE001  (the user's code runs here)
        return brief(error)
    return ""


def in_float32(outputs: Any) -> Any:
    """Return outputs whose bf16 tensors are float32, as losses and metrics want them."""

    def widen(tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.dtype == torch.bfloat16 else tensor

    return map_tensors(outputs, widen)


def fast_bfloat16(device: torch.device) -> bool:
    """Return whether the device multiplies bf16 matrices faster than float32 ones."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if device.type == "cpu":
        return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return False
