"""Bits as axes: which layers of a net can be held in few bits, found and proven on the net."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nestling.axes.preparation import double
from nestling.axes.structure import tensors_in
from nestling.axes.tracer import run
from nestling.coding import (
    INPUT,
    SCALE,
    WEIGHT,
    Coding,
    attach,
    install,
    measure,
    unfit,
)
from nestling.errors import ModelError, SpecError, brief, did_you_mean
from nestling.magnitudes import Magnitudes
from nestling.quantize import FULL, MOST
from nestling.spec import Axis, Layout, Space
from nestling.weights import duplicate, substituted, tensors_of

ROUNDING = 1e-9  # of the largest number: what double precision leaves of the order of sums


@dataclass(frozen=True)
class Bits:
    """Which layers subnets may hold in few bits, and in how many.

    Each layer has an axis of its own, `LAYER.bits`, whose full count, 32, is the floating-point
    weight. The first and the last layer that run are left in floating point by default: they are
    small, and the accuracy depends on them most.

    Attributes:
        counts: numbers of bits of a weight, each 1 to 8.
        inputs: bits of the inputs of such layers: a number, which holds wherever the weight is in
            few bits; several, for an axis `LAYER.input_bits` of its own; None for floating point.
        first: numbers of bits of the first layer that runs; none leaves it in floating point.
        last: of the last layer that runs.
        layers: names or patterns of the layers; all convolutions and linear layers by default.

    Raises:
        SpecError: a number of bits is none, or there is no layer named.

    Example:
        >>> bits = nestling.Bits((2, 3, 4, 8), inputs=8, first=(8,), last=(8,))
        >>> net = nestling.Supernet(model, images, bits=bits)
        >>> small = net.subnet({"*.bits": 4})
    """

    counts: Sequence[int] = (2, 3, 4, 5, 6, 7, 8)
    inputs: int | Sequence[int] | None = None
    first: Sequence[int] = ()
    last: Sequence[int] = ()
    layers: str | Sequence[str] = "*"

    def __post_init__(self) -> None:
        inputs = [self.inputs] if isinstance(self.inputs, int) else self.inputs
        for name, given in (("counts", self.counts), ("first", self.first), ("last", self.last)):
            object.__setattr__(self, name, _checked(name, given))
        if inputs is not None:
            several = _checked("inputs", inputs)
            object.__setattr__(self, "inputs", several if inputs is self.inputs else several[0])
        if not self.counts:
            raise SpecError("counts= of Bits lists at least one number of bits, such as (2, 4, 8)")
        patterns = [self.layers] if isinstance(self.layers, str) else self.layers
        object.__setattr__(self, "layers", tuple(patterns))


def _checked(name: str, given: Any) -> tuple[int, ...]:
    """Return numbers of bits, ascending."""
    listed = isinstance(given, Iterable) and not isinstance(given, (str, bytes))
    found = list(given) if listed else [given]
    for bits in found if listed else [None]:
        if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= MOST:
            raise SpecError(
                f"{name}= lists numbers of bits, each from 1 to {MOST}, such as (2, 4, 8), but got "
                f"{given!r:.80}; floating point is always there, as the count {FULL}"
            )
    return tuple(sorted(set(found)))


@dataclass
class _Seen:
    """What runs show of the inputs of a layer: the least of them, or 0, and how large they are."""

    least: float
    magnitudes: Magnitudes


def coded(
    model: nn.Module,
    space: Space,
    bits: Bits | Sequence[int],
    args: Sequence[Any],
    kwargs: dict[str, Any],
) -> Space:
    """Return the space with axes of bits, and give the model the parameters that these need.

    Args:
        model: the net's own, in evaluation mode; its layers get scales.
        space: the proven space of the model.
        bits: what the user wants.
        args: example inputs.
        kwargs: example keyword inputs.

    Raises:
        SpecError: `bits` is nothing of the kind, or names no layer.
        ModelError: a layer that is named cannot be quantised, or none can; or a weight is NaN.
    """
    wish = bits if isinstance(bits, Bits) else Bits(bits)
    layers, notes = _layers(model, wish)
    seen = _seen(model, layers, wish, args, kwargs)
    order = list(seen)
    ends = {**dict.fromkeys(order[-1:], wish.last), **dict.fromkeys(order[:1], wish.first)}
    counts = {name: ends.get(name, wish.counts) for name in layers}
    left = [name for name, found in counts.items() if not found]
    codings = [_coding(name, wish, seen.get(name)) for name, found in counts.items() if found]
    if not codings:
        raise _nothing(model, left)
    if left:
        notes.append(f"{', '.join(left)} keep floating-point weights: first= and last= change that")
    attach(model, codings)
    space = _with_axes(space, codings, counts, wish)
    measure_scales(model, space)
    _set_clips(model, codings, seen)
    return _proven(model, replace(space, notes=(*space.notes, *notes)), args, kwargs)


def measure_scales(model: nn.Module, space: Space) -> None:
    """Set the scales of all weights that can be in few bits to the usual ones for them.

    Raises:
        ModelError: a weight is NaN or infinite.
    """
    fewer = {axis.name: [n for n in axis.counts if n < FULL] for axis in space.axes.values()}
    means = {name: sum(counts) / len(counts) for name, counts in fewer.items() if counts}
    measure(model, space.codings, means)


@torch.no_grad()
def _set_clips(model: nn.Module, codings: Sequence[Coding], seen: Mapping[str, _Seen]) -> None:
    """Set each clip to what rounds the inputs that were seen best, to its own number of bits."""
    for coding in codings:
        for bits in coding.clips:
            clip = seen[coding.module].magnitudes.best_clip(bits, signed=coding.signed)
            model.get_parameter(coding.clip(bits)).fill_(clip)


# -- which layers ---------------------------------------------------------------------------------


def _layers(model: nn.Module, wish: Bits) -> tuple[dict[str, nn.Module], list[str]]:
    """Return the layers to quantise by path, and notes on those that cannot be."""
    known = dict(model.named_modules())
    held: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        held.setdefault(id(parameter), []).append(name)
    found: dict[str, nn.Module] = {}
    notes: list[str] = []
    for pattern in wish.layers:
        matched = [path for path in known if fnmatch.fnmatchcase(path, pattern)]
        if not matched:
            near = did_you_mean(str(pattern), list(known))
            raise SpecError(f"layers= of Bits names {pattern!r}, but the model has no such {near}")
        for path in matched:
            why = unfit(known[path]) or _shared(known[path], held)
            if not why:
                found[path] = known[path]
            elif path == pattern:
                raise ModelError(f"the layer {path!r} cannot be quantised: {why}; leave it out")
            elif _weighs(known[path]) and path not in found:
                notes.append(f"{path} cannot be quantised: {why}")
    return {path: layer for path, layer in known.items() if path in found}, list(
        dict.fromkeys(notes)
    )


def _shared(layer: nn.Module, held: Mapping[int, Sequence[str]]) -> str:
    weight = layer._parameters["weight"]
    names = held.get(id(weight), [])
    if len({name.rpartition(".")[0] for name in names}) > 1:
        return f"its weight is shared with other modules ({', '.join(names[:3])})"
    assert weight is not None
    if weight.numel() <= weight.shape[0]:
        return "it has one weight a channel, so that scales would take more than bits save"
    return ""


def _weighs(layer: nn.Module) -> bool:
    """Return whether one would expect that a layer can be quantised."""
    return isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd))


def _nothing(model: nn.Module, left: Sequence[str]) -> ModelError:
    if left:
        return ModelError(
            f"bits= leaves nothing in few bits: of {type(model).__name__} only {', '.join(left)} "
            "can be quantised, and the first and the last layer keep floating point by default; "
            "use bits=nestling.Bits(first=(8,), last=(8,)), or counts of your own"
        )
    return ModelError(
        f"bits= finds no layer of {type(model).__name__} that can be quantised: only convolutions "
        "(not transposed) and linear layers with a weight of their own can be; leave bits= out"
    )


def _seen(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    wish: Bits,
    args: Sequence[Any],
    kwargs: dict[str, Any],
) -> dict[str, _Seen]:
    """Return what runs show of the layers' inputs, in the order in which these run first.

    In training mode norms work, so that inputs are as large as they will be; but a model may leave
    layers out there, and one example may be too few. The order is that of evaluation mode.
    """
    shown: list[dict[str, _Seen]] = [{}, {}]
    for training, found in zip((False, True), shown, strict=True):
        trial = duplicate(model).train(training)
        for path in layers:
            note = _noter(found, path, clipped=wish.inputs is not None)
            trial.get_submodule(path).register_forward_pre_hook(note, with_kwargs=True)
        try:
            run(trial, args, kwargs, None)
        except Exception as error:
            if not training:
                raise ModelError(
                    f"{type(model).__name__} fails when the inputs of its layers are looked at "
                    f"({brief(error)}); leave bits= out"
                ) from error
            found.clear()
    still, moving = shown
    for path, seen in still.items():
        if path in moving:
            seen.least = min(seen.least, moving[path].least)
            if moving[path].magnitudes.most:  # zeros tell nothing, such as of a dropped path
                seen.magnitudes = moving[path].magnitudes
    return still


def _noter(found: dict[str, _Seen], path: str, *, clipped: bool) -> Callable[..., None]:
    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = args[0] if args else next(iter(kwargs.values()))
        seen = found.setdefault(path, _Seen(0.0, Magnitudes()))  # a layer may run more than once
        if values.numel():
            seen.least = min(seen.least, float(values.min()))
        if clipped:
            seen.magnitudes.add(values)

    return note


def _coding(name: str, wish: Bits, seen: _Seen | None) -> Coding:
    """Return the coding of a layer; inputs that no run shows stay in floating point.

    Raises:
        SpecError: inputs that may be negative are wanted in a single bit.
    """
    inputs: str | int = FULL
    clips: tuple[int, ...] = ()
    signed = seen is None or seen.least < 0
    if wish.inputs is not None and seen is not None:
        clips = wish.inputs if isinstance(wish.inputs, tuple) else (wish.inputs,)
        if signed and min(clips) == 1:
            raise SpecError(
                f"inputs= of Bits asks for 1 bit, but the inputs of {name!r} may be negative, and "
                "zero, minus and plus take 2: ask for 2 and more, or leave it out of layers="
            )
        inputs = wish.inputs if isinstance(wish.inputs, int) else _joined(name, INPUT)
    return Coding(name, _joined(name, WEIGHT), inputs, signed, clips)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _with_axes(
    space: Space, codings: Sequence[Coding], counts: Mapping[str, Sequence[int]], wish: Bits
) -> Space:
    """Return the space with the axes of codings, and the layouts of their parameters."""
    axes, layouts = dict(space.axes), dict(space.layouts)
    for coding in codings:
        allowed = {coding.axis: counts[coding.module]}
        if isinstance(coding.inputs, str) and isinstance(wish.inputs, tuple):
            allowed[coding.inputs] = wish.inputs
        for name, bits in allowed.items():
            if name in axes:
                raise ModelError(f"an axis is named {name!r} already; rename the module")
            axes[name] = Axis(name, FULL, "bits", (*bits, FULL), outer=False)
        weight = layouts[coding.parameter("weight")]
        layouts[coding.parameter(SCALE)] = Layout(weight.extents[:1], True, weight.itemsize)
        for fewer in coding.clips:
            layouts[coding.clip(fewer)] = Layout((), True, weight.itemsize)
    return replace(space, axes=axes, layouts=layouts, codings=tuple(codings))


# -- the proof ------------------------------------------------------------------------------------


def _proven(model: nn.Module, space: Space, args: Sequence[Any], kwargs: dict[str, Any]) -> Space:
    """Prove that few bits do to the model what halving by hand does, or let go of layers.

    The reference is the full model whose weights were replaced, and whose inputs are, by numbers
    that are computed from the definition, not by the code that subnets use.
    """
    wide, (wide_args, wide_kwargs) = double(model, (tuple(args), kwargs))
    least = {name: axis.counts[0] for name, axis in space.axes.items() if axis.kind == "bits"}

    def holds(codings: Sequence[Coding]) -> bool:
        with by_hand(wide, codings, least, tensors_of(wide)):
            wanted = tensors_in(run(wide, wide_args, wide_kwargs, None))
        subnet = duplicate(wide)
        install(subnet, codings, least)
        found = tensors_in(run(subnet, wide_args, wide_kwargs, None))
        return len(found) == len(wanted) and all(map(_same, found, wanted))

    if holds(space.codings):
        return space
    good = [coding for coding in space.codings if holds([coding])]
    if not good or not holds(good):
        raise ModelError(
            f"few bits do not do to {type(model).__name__} what they must: a layer computes with "
            "weights that it does not read from self.weight when it runs, or the model draws "
            "random numbers in evaluation mode; leave bits= out, or choose layers by Bits(layers=)"
        )
    lost = [coding for coding in space.codings if coding not in good]
    for coding in lost:
        for name in coding.extras:
            path, _, key = name.rpartition(".")
            del model.get_submodule(path)._parameters[key]
    return _without(space, lost)


def _without(space: Space, lost: Sequence[Coding]) -> Space:
    """Return the space without some codings, and a note on each."""
    names = {name for each in lost for name in (each.axis, each.inputs)}
    extras = {name for each in lost for name in each.extras}
    notes = [f"{c.module} stays in floating point: it does not run on self.weight" for c in lost]
    return replace(
        space,
        axes={name: axis for name, axis in space.axes.items() if name not in names},
        layouts={name: layout for name, layout in space.layouts.items() if name not in extras},
        codings=tuple(coding for coding in space.codings if coding not in lost),
        notes=(*space.notes, *notes),
    )


@contextmanager
def by_hand(
    model: nn.Module,
    codings: Iterable[Coding],
    counts: Mapping[str, int],
    tensors: Mapping[str, Tensor],
) -> Iterator[None]:
    """Replace the weights of a model, and the inputs of its layers, by halved ones for a block.

    Args:
        model: with floating-point weights.
        codings: of its layers.
        counts: kept bits by axis.
        tensors: by name, the scales, and the weights to take instead of the model's own.
    """
    weights: dict[str, Tensor] = {}
    handles = []
    for coding in codings:
        bits, inputs = coding.weight_bits(counts), coding.input_bits(counts)
        if bits != FULL:
            weight, scale = (tensors[coding.parameter(name)] for name in ("weight", SCALE))
            columns = scale[(...,) + (None,) * (weight.dim() - 1)]
            weights[coding.parameter("weight")] = halved(weight, columns, bits)
        if inputs != FULL:
            hook = _input_by_hand(tensors[coding.clip(inputs)], inputs, coding.signed)
            layer = model.get_submodule(coding.module)
            handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        with substituted(model, weights):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _input_by_hand(clip: Tensor, bits: int, signed: bool) -> Callable[..., Any]:
    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (nearest(args[0], clip, bits, signed), *args[1:]), kwargs
        name = next(iter(kwargs))
        return args, {**kwargs, name: nearest(kwargs[name], clip, bits, signed)}

    return hook


@torch.no_grad()
def halved(values: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return numbers coded by halving, bit by bit, as the definition has it.

    Args:
        values: numbers.
        scale: the largest that the code reaches, to be broadcast; above zero.
        bits: at least 1.
    """
    rest = (values / scale).clamp(-1, 1)
    total = torch.zeros_like(rest)
    for place in range(1, bits + 1):
        bit = torch.where(rest < 0, -math.ldexp(1.0, -place), math.ldexp(1.0, -place))
        rest, total = rest - bit, total + bit
    return total * scale


@torch.no_grad()
def nearest(values: Tensor, clip: Tensor, bits: int, signed: bool) -> Tensor:
    """Return numbers as the nearest of the levels up to `clip`, in steps of one size.

    Args:
        values: numbers.
        clip: the highest level; one number, above zero.
        bits: two to the power of this many levels there may be.
        signed: whether there are levels below zero: the same ones, so that one less is used.
    """
    steps = (2**bits - 2) // 2 if signed else 2**bits - 1
    places = torch.arange(-steps if signed else 0, steps + 1, device=values.device)
    levels = places.to(values.dtype) / steps
    between = (places[:-1].to(values.dtype) + 0.5) / steps
    shares = (values / clip).contiguous()
    found: Tensor = levels[torch.bucketize(shares, between, right=True)] * clip
    return found


def _same(one: Tensor, other: Tensor) -> bool:
    """Return whether numbers are equal but for the order of sums, as memory formats have it."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    one, other = one.nan_to_num(), other.nan_to_num()
    if not one.is_floating_point():
        return torch.equal(one, other)
    largest = float(other.abs().max()) if other.numel() else 0.0
    return torch.allclose(one, other, rtol=0.0, atol=ROUNDING * largest)
