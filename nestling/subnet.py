"""Subnets: plain modules whose parameters are slices of the supernet's.

A subnet is a deep copy of the net in which every parameter was replaced on the way by a view of the
shared one, and every size attribute by its smaller value. Its gradients accumulate in the same
slices of the shared gradients. Where the kept entries are not one range, the parameter is gathered:
a leaf that is filled again when the shared one has changed, and whose gradient is added back.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nestling import extent as extents
from nestling.binding import TIE, Binding, Hook, alive, binding, expect_calibration
from nestling.coding import install
from nestling.cut import Cut
from nestling.errors import ModelError, SpecError
from nestling.extent import Counts
from nestling.packing import REDUCER, copiers
from nestling.passage import passed_by
from nestling.rewrite import rewrite
from nestling.setting import apply, own_holder_of
from nestling.skeleton import copy_attributes, copy_skeleton
from nestling.spec import Attribute, Space
from nestling.tether import GatherTether, SharedGradient, tether
from nestling.weights import loose_tensors

__all__ = ["build", "rebind", "refuse", "set_attributes"]

_BUILDER = "nestling_builder"  # what a net of `models` remembers


def build(
    model: nn.Module,
    space: Space,
    counts: Counts,
    *,
    private: frozenset[str],
    gradients: Mapping[str, SharedGradient],
    order: int = 0,
) -> nn.Module:
    """Return the subnet of a model for the kept units, as a module of views.

    Args:
        model: owns the shared parameters and buffers.
        space: says what every dimension is made of.
        counts: axis name to kept units; missing axes keep all.
        private: names of the buffers that each subnet has of its own (norm statistics).
        gradients: name to the shared gradient, for every parameter.
        order: identity of the model's unit order.
    """
    full = all(counts.get(name, axis.size) == axis.size for name, axis in space.axes.items())
    tie = Binding(dict(counts), order, full)
    again = functools.partial(
        build, model, space, counts, private=private, gradients=gradients, order=order
    )
    memo: dict[int, Any] = {id(t): t for t in loose_tensors(model)}
    absent = space.absent(counts)
    with torch.inference_mode(False):
        for name, parameter in model.named_parameters():
            if absent(name):
                continue
            cut = Cut.of(space.layouts[name], counts)
            memo[id(parameter)], tie.parameters[name] = tether(gradients[name], cut)
        for name, buffer in model.named_buffers():
            if absent(name):
                continue
            cut = Cut.of(space.layouts[name], counts)
            memo[id(buffer)] = _own_buffer(tie, name, buffer, cut, name in private)
        for passed in space.passed(counts):
            block = model.get_submodule(passed.module)
            memo[id(block)] = passed_by(block, passed.passage, copy_attributes(block, memo))
        subnet = copy_skeleton(model, memo)
    present = (_where_present(attribute, model, absent) for attribute in space.attributes)
    set_attributes(subnet, model, [a for a in present if a is not None], counts)
    install(subnet, (each for each in space.codings if not absent(each.module)), counts)
    apply(subnet, model, space.settings, counts)
    if not full:
        for module in subnet.modules():
            module.__dict__.pop(_BUILDER, None)  # it would build the full net
        for given in space.rewrites:
            if not absent(given.module):
                rewrite(subnet.get_submodule(given.module), given, counts)
    _attach(subnet, tie, again, functools.partial(space.config_conflicts, counts))
    return subnet


def _where_present(
    attribute: Attribute, model: nn.Module, absent: Callable[[str], bool]
) -> Attribute | None:
    """Return a size attribute of a module that a subnet has, or of a config that it shares.

    One config serves all blocks; it must tell the sizes of those that stay, also where the
    attribute was found in one that is passed by.
    """
    if not absent(attribute.module):
        return attribute
    first, dot, rest = attribute.name.partition(".")
    if not dot:
        return None
    config = vars(model.get_submodule(attribute.module)).get(first)
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            if value is config and not absent(path):
                return replace(attribute, module=path, name=f"{key}.{rest}")
    return None


def set_attributes(
    module: nn.Module, model: nn.Module, attributes: Iterable[Attribute], counts: Counts
) -> None:
    """Set the size attributes of a subnet and its modules to what a spec leaves.

    Args:
        module: the subnet.
        model: of which it is a copy; what the two share is left as it is.
        attributes: that stay.
        counts: kept units by axis name.
    """
    for attribute in attributes:
        place = own_holder_of(module, model, attribute.module, attribute.name)
        if place is None:
            continue
        holder, name = place
        value = extents.count(attribute.extent, counts)
        if attribute.index is None:
            if getattr(holder, name) != value:
                setattr(holder, name, value)
        else:
            values = list(getattr(holder, name))
            if values[attribute.index] != value:
                values[attribute.index] = value
                setattr(holder, name, type(getattr(holder, name))(values))


def rebind(subnet: nn.Module, model: nn.Module, space: Space, private: frozenset[str]) -> None:
    """Point a live subnet at the model's tensors again, after these were moved or converted.

    Its parameters stay the same objects, so hooks and whatever else holds them remain.
    """
    tie = binding(subnet)
    if tie is None:
        return
    tie.measured = tie.calibrated
    with torch.inference_mode(False):
        for link in tie.parameters.values():
            link.move()
        for name, parameter in tie.own.items():
            shared = model.get_parameter(name)
            parameter.data = _like(parameter.data, shared)
            if parameter.grad is not None:
                parameter.grad.data = _like(parameter.grad.data, shared)
        buffers = dict(model.named_buffers(remove_duplicate=False))
        tie.private = {}
        for path, module in subnet.named_modules():
            for key, buffer in module._buffers.items():
                name = f"{path}.{key}" if path else key
                if buffer is None or name not in buffers:
                    continue
                if name in private and not tie.full:
                    tie.private[name] = module._buffers[key] = _like(buffer, buffers[name])
                elif name in tie.buffers:  # the same object, which the hooks hold
                    tie.buffers[name].source = buffers[name]
                    tie.buffers[name].move()
                elif name in space.layouts:  # the first of several names
                    cut = Cut.of(space.layouts[name], tie.counts)
                    own = _own_buffer(tie, name, buffers[name], cut, name in private)
                    module._buffers[key] = own
    tie.versions = {name: buffer._version for name, buffer in tie.private.items()}


def refuse(subnet: nn.Module, message: str) -> None:
    """Make every later forward run of a subnet, or of a part of it, fail with a `SpecError`."""
    tie = binding(subnet)
    if tie is not None:
        tie.refusal = message

    def stop(module: nn.Module) -> None:
        raise SpecError(message)

    for module in subnet.modules():
        module.register_forward_pre_hook(Hook(stop), prepend=True)


def _own_buffer(tie: Binding, name: str, buffer: Tensor, cut: Cut, private: bool) -> Tensor:
    """Return what stands in a subnet for a buffer of the net: itself, a part of it, or a copy."""
    if private:
        own = buffer if tie.full else cut.take(buffer).clone()
        tie.private[name] = own
        return own
    if cut.whole:
        return buffer
    own = cut.take(buffer)
    if cut.gathered:
        tie.buffers[name] = GatherTether(buffer, own, cut)
    return own


def _attach(
    subnet: nn.Module,
    tie: Binding,
    again: Callable[[], nn.Module],
    conflicts: Callable[[], list[str]],
) -> None:
    state = subnet.__dict__
    state[TIE] = tie
    state |= copiers(subnet, tie, again, conflicts)
    state["zero_grad"] = functools.partial(_zero_grad, weakref.ref(subnet))
    state[REDUCER] = _NoReducer()
    parts: dict[str, dict[str, GatherTether]] = {}
    for name, gather in tie.gathers():
        path = name.rpartition(".")[0]
        while path:
            parts.setdefault(path, {})[name] = gather
            path = path.rpartition(".")[0]
        parts.setdefault("", {})[name] = gather
    for path, gathers in parts.items():
        part, fill = subnet.get_submodule(path), _Refresh(tuple(gathers.values()), not path)
        part.register_forward_pre_hook(Hook(fill), prepend=True)
        part.register_state_dict_pre_hook(Hook(fill.always))  # type: ignore[no-untyped-call]
    expect_calibration(subnet)


class _NoReducer:
    """Refuses `DistributedDataParallel`, which puts gradients of its own in the place of slices."""

    __slots__ = ()

    def __iter__(self) -> Iterator[str]:
        raise ModelError(
            "a live subnet cannot be wrapped in DistributedDataParallel, which would replace its "
            "slices of the shared gradients; run the subnets as they are and average the shared "
            "gradients once a step (dist.all_reduce(p.grad) for p in net.parameters()), or wrap "
            "nestling.pack(subnet)"
        )


class _Refresh:
    """Fills gathered copies again where the shared tensors have changed.

    Writes through `.data` (weights swapped for their averages) are not counted as changes, so a
    whole subnet that trains is filled at every forward run.
    """

    __slots__ = ("gathers", "whole")

    def __init__(self, gathers: tuple[GatherTether, ...], whole: bool) -> None:
        self.gathers = gathers
        self.whole = whole

    def __call__(self, module: nn.Module) -> None:
        for gather in self.gathers:
            gather.refresh(self.whole and module.training)

    def always(self, module: nn.Module) -> None:
        """Fill them whether a change was counted or not: before the state is saved."""
        for gather in self.gathers:
            gather.refresh(always=True)


def _like(buffer: Tensor, shared: Tensor) -> Tensor:
    """Return a private buffer with the device, dtype and memory format of the net's."""
    moved = buffer.to(shared.device, shared.dtype)
    if shared.dim() == 4 and not shared.is_contiguous():
        return moved.contiguous(memory_format=torch.channels_last)
    return moved


def _zero_grad(subnet: weakref.ref[nn.Module], set_to_none: bool = True) -> None:
    """`subnet.zero_grad()`: clears the subnet's slices of the shared gradients at once."""
    tie = binding(alive(subnet))
    if tie is not None:
        for link in tie.parameters.values():
            link.clear(set_to_none)
        nn.ParameterList(tie.own.values()).zero_grad(set_to_none)
