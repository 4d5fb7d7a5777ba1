"""Codings: layers of which subnets may hold the weight, and compute the inputs, in few bits.

In a subnet of fewer bits such a layer stays what it is, under the same names: its parameter is the
slice of the shared floating-point weight, as ever, and only what the layer's code reads as
`self.weight` is computed from it, rounded. A packed copy holds the rounded numbers themselves.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nestling import quantize
from nestling.errors import ModelError
from nestling.extent import Counts
from nestling.quantize import FULL, MOST
from nestling.weights import parameter_like

SCALE = "weight_scale"  # a parameter that a coded layer has besides its own; `clip_of` names others
WEIGHT, INPUT = "bits", "input_bits"  # how axes of bits end, after the path of their layer
SATURATED = 0.99  # share of a layer's weights beyond their scale that no training explains


@dataclass(frozen=True)
class Coding:
    """A layer of which subnets may hold the weight in few bits, and its inputs too.

    Attributes:
        module: its path.
        axis: the bits axis of its weight.
        inputs: the bits axis of its inputs, or their number of bits where the weight is in fewer
            bits than full; `quantize.FULL` leaves them as they are.
        signed: whether its inputs may be negative.
        clips: the numbers of bits, ascending, that its inputs may have below full. Each has a clip
            of its own: with one that fits 8 bits, most inputs in 2 bits would be zero.
    """

    module: str
    axis: str
    inputs: str | int = FULL
    signed: bool = True
    clips: tuple[int, ...] = ()

    def parameter(self, name: str) -> str:
        """Return the full name of a parameter of the layer."""
        return f"{self.module}.{name}" if self.module else name

    @property
    def extras(self) -> tuple[str, ...]:
        """The full names of the parameters that it has besides the layer's own."""
        return (self.parameter(SCALE), *map(self.clip, self.clips))

    def clip(self, bits: int) -> str:
        """Return the full name of the clip of inputs in so many bits."""
        return self.parameter(clip_of(bits))

    def weight_bits(self, counts: Counts) -> int:
        """Return how many bits a spec leaves a weight."""
        return counts.get(self.axis, FULL)

    def input_bits(self, counts: Counts) -> int:
        """Return how many bits a spec leaves an input."""
        if isinstance(self.inputs, str):
            return counts.get(self.inputs, FULL)
        return FULL if self.weight_bits(counts) == FULL else self.inputs

    def left_out(self, counts: Counts) -> Iterator[str]:
        """Yield the full names of those of its extras that a spec does not need."""
        if self.weight_bits(counts) == FULL:
            yield self.parameter(SCALE)
        kept = self.input_bits(counts)
        yield from (self.clip(bits) for bits in self.clips if bits != kept)

    def tied(self, names: Sequence[str]) -> Coding:
        """Return the coding with axes made one, under the first name."""
        axis = names[0] if self.axis in names else self.axis
        return replace(self, axis=axis, inputs=names[0] if self.inputs in names else self.inputs)


def clip_of(bits: int) -> str:
    """Return the name that the clip of inputs in so many bits has in its layer.

    Example:
        >>> clip_of(4)
        'input_clip_4'
    """
    return f"input_clip_{bits}"


def is_of_bits(axis: str) -> bool:
    """Return whether an axis is one of bits, by its name: for specs without their space.

    Example:
        >>> is_of_bits("layer1.0.conv1.bits"), is_of_bits("layer1.0.conv1")
        (True, False)
    """
    return axis.rpartition(".")[2] in (WEIGHT, INPUT)


# -- the parameters of the net --------------------------------------------------------------------


def is_attached(model: nn.Module, codings: Iterable[Coding]) -> bool:
    """Return whether a net has the parameters that codes need."""
    names = dict(model.named_parameters()).keys()
    return all(names >= set(coding.extras) for coding in codings)


def attach(model: nn.Module, codings: Sequence[Coding]) -> nn.Module:
    """Give the coded layers of a net the parameters that codes need, of no values yet.

    A net that has them stays as it is.

    Returns:
        The same model.

    Raises:
        ModelError: a layer is not there, or cannot take them.
    """
    for coding in codings if not is_attached(model, codings) else ():
        try:
            layer = model.get_submodule(coding.module)
        except AttributeError as error:
            raise ModelError(f"the model has no layer {coding.module!r} to quantise") from error
        why = unfit(layer)
        if why:
            raise ModelError(f"the layer {coding.module!r} cannot be quantised: {why}")
        weight = layer._parameters["weight"]
        assert weight is not None
        layer.register_parameter(SCALE, nn.Parameter(weight.new_ones(weight.shape[0])))
        for bits in coding.clips:
            layer.register_parameter(clip_of(bits), nn.Parameter(weight.new_ones(())))
    return model


def measure(model: nn.Module, codings: Iterable[Coding], bits: Mapping[str, float]) -> None:
    """Set the scales of weights to the usual ones for the weights as they are.

    Args:
        model: with what `attach` gives it.
        codings: of it.
        bits: by axis, what the scale shall fit.

    Raises:
        ModelError: a weight is NaN or infinite.
    """
    with torch.no_grad():
        for coding in codings:
            weight = model.get_parameter(coding.parameter("weight"))
            if not bool(torch.isfinite(weight).all()):
                raise ModelError(
                    f"the weight of {coding.module!r} has entries that are NaN or infinite, which "
                    "no bits can stand for; load weights that are finite, or leave bits= out"
                )
            scale = quantize.usual_scale(weight, bits[coding.axis])
            model.get_parameter(coding.parameter(SCALE)).copy_(scale)


def unfit(layer: nn.Module) -> str:
    """Return why a layer cannot be quantised; empty if it can."""
    kind = type(layer).__name__
    conv = isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    if not conv and not isinstance(layer, nn.Linear):
        return f"a {kind} is neither a convolution (not transposed) nor a linear layer"
    weight = layer._parameters.get("weight")
    if weight is None:
        return "its weight is no parameter of its own, but computed from others or missing"
    if weight.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        return f"its weight is of {weight.dtype}"
    if not weight.numel():
        return "its weight has no entries"
    names = (SCALE, *map(clip_of, range(1, MOST + 1)))
    taken = [name for name in names if hasattr(layer, name)]
    return f"its class {kind} has a {taken[0]!r} of its own" if taken else ""


# -- the layers of a subnet -----------------------------------------------------------------------


class Coded(nn.Module):
    """What a layer of a subnet of fewer bits is besides its own class."""

    _weight_bits: int

    @property
    def weight(self) -> Tensor:
        """The layer's weight, rounded to what its bits can stand for."""
        return quantize.quantised(*self.stored, self._weight_bits)

    @property
    def stored(self) -> tuple[nn.Parameter, nn.Parameter]:
        """The parameters that the rounded weight is computed from: a weight, and its scales."""
        weight, scale = self._parameters["weight"], self._parameters[SCALE]
        assert weight is not None
        assert scale is not None
        return weight, scale

    def extra_repr(self) -> str:
        """Return what the layer's own class says, and the bits."""
        own = super().extra_repr()
        return f"{own}{', ' if own else ''}bits={self._weight_bits}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Let copies be coded too; a pickle would need a class that no module has by name."""
        return _remade, (type(self).__mro__[2],), object.__getstate__(self)


@functools.cache
def _coded_kind(kind: Any) -> Any:
    return type(kind.__name__, (Coded, kind), {"__module__": kind.__module__})


def _remade(kind: Any) -> Any:
    coded = _coded_kind(kind)
    return coded.__new__(coded)


class InputCoder:
    """A hook that rounds the first input of a layer to what some bits can stand for.

    It is a plain object, so that a packed copy can keep it, be exported and be pickled.
    """

    def __init__(self, bits: int, signed: bool) -> None:
        self.bits = bits
        self.signed = signed
        self.clip = clip_of(bits)  # the layer's attribute

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the inputs of the layer, the first one rounded."""
        clip = getattr(layer, self.clip)
        assert isinstance(clip, Tensor)
        if args:
            return (self._rounded(args[0], clip), *args[1:]), kwargs
        name = next(iter(kwargs))
        return args, {**kwargs, name: self._rounded(kwargs[name], clip)}

    def _rounded(self, values: Tensor, clip: Tensor) -> Tensor:
        clip = clip.to(values.dtype)
        return quantize.quantised_inputs(values, clip, self.bits, signed=self.signed)


def install(module: nn.Module, codings: Iterable[Coding], counts: Counts) -> None:
    """Let the layers of a subnet compute in the bits that a spec leaves them.

    Args:
        module: a net with what `attach` gives it, or a subnet; changed in place.
        codings: of those layers that it has.
        counts: kept units by axis.
    """
    for coding in codings:
        layer, bits = module.get_submodule(coding.module), coding.weight_bits(counts)
        for name in coding.left_out(counts):
            layer._parameters.pop(name.rpartition(".")[2], None)
        inputs = coding.input_bits(counts)
        if inputs != FULL:
            layer.register_forward_pre_hook(InputCoder(inputs, coding.signed), with_kwargs=True)
        if bits != FULL:
            kind: Any = type(layer)
            layer.__class__ = _coded_kind(kind)
            layer.__dict__["_weight_bits"] = bits


def coded_layers(module: nn.Module) -> Iterator[tuple[str, Coded]]:
    """Yield path and layer of every layer whose weight is in fewer bits than full."""
    yield from ((n, part) for n, part in module.named_modules() if isinstance(part, Coded))


def rounded(module: nn.Module) -> dict[int, nn.Parameter | None]:
    """Return what stands in a packed copy for parameters of a subnet, by their identity.

    For the weights of coded layers these are the rounded numbers; for their scales, nothing.

    Raises:
        ModelError: a weight is NaN or infinite, or nearly all of a layer lie beyond their scale.
    """
    found: dict[int, nn.Parameter | None] = {}
    for name, layer in coded_layers(module):
        weight, scale = layer.stored
        values = layer.weight.detach().clone(memory_format=torch.preserve_format)
        check_storable(name, weight.detach(), scale.detach())
        found[id(weight)] = parameter_like(values, weight, weight.requires_grad)
        found[id(scale)] = None
    return found


def check_storable(layer: str, weight: Tensor, scale: Tensor) -> None:
    """Check that integers can stand for a weight.

    Args:
        layer: its path, for the message.
        weight: of the layer.
        scale: of the weight, as it is trained.

    Raises:
        ModelError: a number is NaN or infinite, or nearly all weights lie beyond their scale.
    """
    if not bool(torch.isfinite(weight).all() & torch.isfinite(scale).all()):
        raise ModelError(
            f"the weight or the scale of {layer!r} has entries that are NaN or infinite, which "
            "no bits can stand for: the training has diverged; go back to weights that are "
            "finite, and lower the learning rate"
        )
    beyond = quantize.share_beyond(weight, scale)
    if beyond > SATURATED:
        raise ModelError(
            f"{beyond:.0%} of the weights of {layer!r} lie beyond their scale, so that nothing "
            "is left of them but signs; train in few bits, which moves the scales, or measure "
            "these anew: net.load_state_dict(weights) with weights alone, without scales"
        )


def settle(module: nn.Module) -> None:
    """Give the coded layers of a packed copy their own class back; they hold rounded numbers."""
    for _, layer in list(coded_layers(module)):
        layer.__class__ = type(layer).__mro__[2]
        layer.__dict__.pop("_weight_bits")
        layer._parameters.pop(SCALE)


def restored(subnet: nn.Module, packed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the parameters that a packed copy leaves a subnet: those with its finer bits.

    A packed copy holds rounded weights and no scales. Entries that are still those of the subnet
    leave it the bits that its rounding took; others are what they are now, to be rounded again.

    Args:
        subnet: live, of the same spec.
        packed: the copy's parameters by name; what has another shape stays as it is.
    """
    found = dict(packed)
    for path, layer in coded_layers(subnet):
        name, scale = (f"{path}.{key}" if path else key for key in ("weight", SCALE))
        before, now = layer.weight.detach(), packed.get(name)
        if scale not in packed and now is not None and now.shape == before.shape:
            (own, scales), now = layer.stored, now.detach().to(before)
            found[name] = torch.where(now == before, own.detach(), now)
            found[scale] = scales.detach()
    return found


def to_json(coding: Coding) -> list[Any]:
    """Return a coding as JSON values."""
    return [coding.module, coding.axis, coding.inputs, coding.signed, list(coding.clips)]


def from_json(value: Any, axes: Mapping[str, Sequence[int]]) -> Coding:
    """Return the coding that `to_json` wrote.

    Args:
        value: JSON values.
        axes: the counts of the axes of kind bits, by name.

    Raises:
        ValueError: the value is not of that form.
    """
    match value:
        case [str(module), str(axis), str() | int() as inputs, bool(signed), list(clips)]:
            found = Coding(module, axis, inputs, signed, tuple(clips))
            if axis in axes and _has_its_clips(found, axes):
                return found
    raise ValueError(f"not a coding of bits: {str(value)[:80]}")


def _has_its_clips(coding: Coding, axes: Mapping[str, Sequence[int]]) -> bool:
    """Return whether each number of bits that inputs may have is one, and has its clip.

    Axes that were tied allow what all of them did: then there are clips that no spec needs.
    """
    inputs, clips, known = coding.inputs, coding.clips, range(1, MOST + 1)
    if any(type(bits) is not int or bits not in known for bits in clips):
        return False
    if isinstance(inputs, str):
        ascending = list(clips) == sorted({*clips})
        return inputs in axes and ascending and {*axes[inputs]} - {FULL} <= {*clips}
    return type(inputs) is int and clips == (() if inputs == FULL else (inputs,))
