"""Integers: packed copies whose layers in few bits hold integers, and compute as runtimes know it.

The layers read as `self.weight` what stored integers stand for, and round their inputs, by the ops
with which PyTorch writes down quantised nets. Whatever runs a net at its plain meaning gets what
the subnet computes, to rounding; a runtime that knows the ops computes with the integers.

A weight of k bits stands for (n + 1/2) / 2^(k-1) of its scale. Up to 7 bits that is the odd integer
2n + 1, which fits into 8 bits, times half of the step: kernels take it as it is. With 8 bits the
integer is n itself, and half a step of the sum of the inputs is added, which is exact too: the sum
over the channels, once a pixel, and then over the window, a convolution of one channel to one.

Source of the ops: `torch.ops.quantized_decomposed`, which torch.onnx, OpenVINO and PyTorch's own
compiler read.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor, nn

from nestling import quantize
from nestling.coding import Coded, InputCoder, coded_layers
from nestling.errors import SpecError
from nestling.quantize import MOST

_PLAIN = (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward, nn.Linear.forward)


def convert(packed: nn.Module, subnet: nn.Module) -> nn.Module:
    """Let the layers of a packed copy that are in few bits hold integers.

    Args:
        packed: copy of the subnet; changed in place.
        subnet: live, with layers in few bits.

    Returns:
        The same copy.

    Raises:
        SpecError: no layer of the subnet is in few bits.
    """
    layers = dict(coded_layers(subnet))
    if not layers:
        raise SpecError(
            "integers= takes a live subnet with weights in few bits, but no layer of this one is: "
            'give its spec fewer, as in net.subnet({"*.bits": 4}), of a supernet made with bits='
        )
    # Registers the ops; what is behind them takes a while to import.
    importlib.import_module("torch.ao.quantization.fx._decomposed")
    for path, coded in layers.items():
        layer = packed.get_submodule(path)
        _store(layer, coded)
        _round_inputs(layer)
    return packed


class Stored(nn.Module):
    """What a layer that holds integers is besides its own class."""

    _weight_bits: int

    @property
    def weight(self) -> Tensor:
        """The numbers that the layer's integers stand for; those of 8 bits without the half step.

        A layer of a user's own code gets all of it.
        """
        found = self._numbers(self._buffers["weight_integers"])
        half = self._buffers.get("weight_half")
        if half is None or self._adds_halves:
            return found
        return found + half.reshape(half.shape[:1] + (1,) * (found.dim() - 1))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer; what 8 bits take besides their integers is added."""
        found = super().forward(*args, **kwargs)
        half = self._buffers.get("weight_half")
        if half is None or not self._adds_halves:
            return found
        values = args[0] if args else next(iter(kwargs.values()))
        if isinstance(self, nn.Linear):
            return found + values.sum(-1, keepdim=True) * half
        return found + self._window_sums(values, half) * half

    def _window_sums(self, values: Tensor, half: Tensor) -> Tensor:
        """Return the sum of the inputs that each output of a convolution is computed from.

        Args:
            values: that it is given.
            half: a number for each channel of the outputs, in as many dimensions as an example has.
        """
        ones, dim = self._buffers["weight_ones"], -half.dim()
        assert ones is not None
        groups = ones.shape[0]
        if groups == 1:
            sums = values.sum(dim, keepdim=True)
        elif groups == values.shape[dim]:
            sums = values
        else:  # a sum for each group of channels
            parts = torch.split(values, values.shape[dim] // groups, dim)
            sums = torch.cat([part.sum(dim, keepdim=True) for part in parts], dim)
        found: Tensor = self._conv_forward(sums, ones.to(values.dtype), None)  # type: ignore[operator]
        return found if groups == 1 else found.repeat_interleave(half.shape[0] // groups, dim)

    @property
    def _adds_halves(self) -> bool:
        kind: Any = type(self).__mro__[2]
        return kind.forward in _PLAIN

    def _numbers(self, codes: Tensor | None) -> Tensor:
        step, zeros = self._buffers["weight_step"], self._buffers["weight_zeros"]
        assert step is not None
        made: Tensor = torch.ops.quantized_decomposed.dequantize_per_channel(
            codes, step.float(), zeros, 0, -128, 127, torch.int8
        )
        return made if step.dtype == torch.float32 else made.to(step.dtype)

    def extra_repr(self) -> str:
        """Return what the layer's own class says, and the bits."""
        own = super().extra_repr()
        return f"{own}{', ' if own else ''}bits={self._weight_bits}, integers"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Let copies hold integers too; a pickle would need a class that no module has by name."""
        return _remade, (type(self).__mro__[2],), object.__getstate__(self)


@functools.cache
def _stored_kind(kind: Any) -> Any:
    return type(kind.__name__, (Stored, kind), {"__module__": kind.__module__})


def _remade(kind: Any) -> Any:
    importlib.import_module("torch.ao.quantization.fx._decomposed")
    stored = _stored_kind(kind)
    return stored.__new__(stored)


def _store(layer: nn.Module, coded: Coded) -> None:
    """Put integers in the place of the weight of a packed layer."""
    (weight, given), bits = coded.stored, coded._weight_bits
    scale = quantize.positive(given.detach())
    codes = quantize.integers(weight.detach(), scale, bits)
    step = scale / 2 ** (bits - 1)
    del layer._parameters["weight"]
    if bits == MOST:
        space = weight.dim() - 2  # dimensions that a convolution runs along
        layer.register_buffer("weight_half", step.reshape(-1, *[1] * space) / 2)
        if space:
            layer.register_buffer("weight_ones", torch.ones_like(codes[: _groups(layer), :1]))
    else:
        codes, step = 2 * codes + 1, step / 2
    layer.register_buffer("weight_integers", codes)
    layer.register_buffer("weight_step", step)
    layer.register_buffer("weight_zeros", torch.zeros_like(step, dtype=torch.int64))
    kind: Any = type(layer)
    layer.__class__ = _stored_kind(kind)
    layer.__dict__["_weight_bits"] = bits


def _groups(layer: nn.Module) -> int:
    found = layer.groups
    assert isinstance(found, int)
    return found


class IntegerInput:
    """A hook that rounds the first input of a layer, as runtimes of integers know it."""

    def __init__(self, clip: float, code: quantize.Code) -> None:
        self.clip = clip
        self.code = code

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the inputs of the layer, the first one rounded."""
        if args:
            return (self._rounded(args[0]), *args[1:]), kwargs
        name = next(iter(kwargs))
        return args, {**kwargs, name: self._rounded(kwargs[name])}

    def _rounded(self, values: Tensor) -> Tensor:
        ops, code = torch.ops.quantized_decomposed, self.code
        dtype = torch.int8 if code.least else torch.uint8
        if code.most < (127 if code.least else 255):  # runtimes cut where the integers end
            values = values.clamp(-self.clip if code.least else 0.0, self.clip)
        given = self.clip / code.steps, 0, code.least, code.most, dtype
        made: Tensor = ops.dequantize_per_tensor(
            ops.quantize_per_tensor(values.float(), *given), *given
        )
        return made.to(values.dtype)


def _round_inputs(layer: nn.Module) -> None:
    """Put the ops that runtimes know in the place of those that training rounds inputs with."""
    for key, hook in list(layer._forward_pre_hooks.items()):
        if isinstance(hook, InputCoder):
            clip = layer._parameters.pop(hook.clip)
            assert clip is not None
            code = quantize.even_steps(hook.bits, hook.signed)
            layer._forward_pre_hooks[key] = IntegerInput(
                float(quantize.positive(clip.detach())), code
            )
