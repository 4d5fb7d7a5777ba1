"""Subnets: plain modules whose parameters are slices of the supernet's.

A subnet is a deep copy of the net in which every parameter was replaced on the way by a view of the
shared one, and every size attribute by its smaller value. Its gradients accumulate in the same
slices of the shared gradients. Where the kept entries are not one range, the parameter is gathered:
a leaf that is filled again when the shared one has changed, and whose gradient is added back.
"""

from __future__ import annotations

import copy
import functools
import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from nestling import extent as extents
from nestling.cut import Cut
from nestling.errors import ModelError, SpecError, UncalibratedWarning
from nestling.extent import Counts
from nestling.passage import passed_by
from nestling.rewrite import rewrite
from nestling.setting import apply, own_holder_of
from nestling.skeleton import copy_attributes, copy_skeleton
from nestling.spec import Attribute, Space
from nestling.tether import GatherTether, SharedGradient, Tether, tether
from nestling.weights import loose_tensors, parameter_like, put

__all__ = [
    "Binding",
    "Cut",
    "SharedGradient",
    "binding",
    "build",
    "expect_calibration",
    "is_calibrated",
    "is_statistic",
    "keeps_statistics",
    "order_of",
    "pack",
    "rebind",
    "refuse",
    "set_attributes",
]

_SAVE = "save_pretrained"  # how several libraries save a model: its weights and its config
# What a live subnet holds besides its class's own: `pack` leaves it out.
_REDUCER = "_ddp_params_and_buffers_to_ignore"  # what DistributedDataParallel reads of a module
_OWN = ("_nestling", "_apply", "zero_grad", "__deepcopy__", "__reduce_ex__", _REDUCER, _SAVE)
_ORDER = "nestling_order"  # what a packed copy remembers
_BUILDER = "nestling_builder"  # what a net of `models` remembers


@dataclass(slots=True, weakref_slot=True, eq=False)
class Binding:
    """What ties a live subnet to its supernet.

    Attributes:
        counts: kept units per axis.
        order: identity of the supernet's unit order when the subnet was made.
        full: whether it keeps everything; then its buffers are the net's own.
        parameters: name to tether, for every shared parameter.
        buffers: gathered constants, by name.
        private: name to buffer, for every buffer that is the subnet's own.
        own: name to parameter, for those that are not slices of the shared ones; see `ownership`.
        measured: whether the norm statistics are known to be the subnet's own.
        versions: of the private buffers while they are mere slices; 0 where missing.
        refusal: why the subnet must not run any more, nor be made again; empty if it may.
    """

    counts: Counts
    order: int
    full: bool
    parameters: dict[str, Tether] = field(default_factory=dict)
    buffers: dict[str, GatherTether] = field(default_factory=dict)
    private: dict[str, Tensor] = field(default_factory=dict)
    own: dict[str, nn.Parameter] = field(default_factory=dict)
    measured: bool = False
    versions: dict[str, int] = field(default_factory=dict)
    refusal: str = ""

    @property
    def calibrated(self) -> bool:
        """Whether the norm statistics were trained or recalibrated since the subnet was made."""
        if self.full or self.measured:
            return True
        if not any(map(is_statistic, self.private.values())):
            return True
        # Norm layers write their statistics behind autograd's back, but count their batches.
        return any(b._version != self.versions.get(name, 0) for name, b in self.private.items())

    def gathers(self) -> Iterator[tuple[str, GatherTether]]:
        """Yield name and tether of every parameter and buffer that is a copy."""
        yield from ((n, t) for n, t in self.parameters.items() if isinstance(t, GatherTether))
        yield from self.buffers.items()

    def refresh(self) -> None:
        """Fill every copy again, and point at shared tensors that were given other storage."""
        for link in (*self.parameters.values(), *self.buffers.values()):
            link.refresh(always=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> Binding:
        return self  # it is dropped from the copy


class Hook:
    """A hook of ours, before forward or `state_dict`; packing can tell it from the user's."""

    __slots__ = ("act", "opaque")

    def __init__(self, act: Callable[[nn.Module], None]) -> None:
        self.act = act
        self.opaque: Callable[[nn.Module], None] | None = None

    def __call__(self, module: nn.Module, *args: Any) -> None:
        # Versions of tensors mean nothing while the compiler traces, so it must not look inside;
        # it is not imported for that, since this takes seconds.
        if self.opaque is None and "torch._dynamo" in sys.modules:
            self.opaque = torch.compiler.disable(self.act)  # type: ignore[no-untyped-call]
        (self.opaque or self.act)(module)

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        return Hook(_nothing)


# What `torch.compiler.disable` sets, for the frame of the hook itself.
Hook.__call__._torchdynamo_disable = True  # type: ignore[attr-defined]


def binding(subnet: nn.Module) -> Binding | None:
    """Return what ties a subnet to its supernet; None for a stand-alone module."""
    found = subnet.__dict__.get("_nestling")
    return found if isinstance(found, Binding) else None


def is_calibrated(subnet: nn.Module) -> bool:
    """Return whether a module's norm statistics are its own, not mere slices of the full net's."""
    tie = binding(subnet)
    return tie is None or tie.calibrated


def is_statistic(buffer: Tensor) -> bool:
    """Return whether a buffer that training changes is a statistic of units, not a mere counter."""
    return buffer.is_floating_point() and buffer.dim() > 0


def keeps_statistics(module: nn.Module) -> bool:
    """Return whether a module is a norm layer with running statistics."""
    norm = nn.modules.batchnorm._NormBase
    return isinstance(module, norm) and module.track_running_stats


def order_of(module: nn.Module) -> int | None:
    """Return the unit order that a subnet or packed copy was made under; None if it knows none."""
    tie = binding(module)
    found = tie.order if tie is not None else module.__dict__.get(_ORDER)
    return found if isinstance(found, int) else None


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


def pack(subnet: nn.Module) -> nn.Module:
    """Return a detached, contiguous copy of a subnet: an ordinary module of the user's class.

    It runs at the full speed of a net of that shape, shares nothing with the supernet, and can be
    moved, trained, exported or saved on its own. `net.absorb(spec, packed)` takes it back.

    Raises:
        SpecError: the supernet's units were reordered since the subnet was made.

    Example:
        >>> small = nestling.pack(net.subnet(net.space.spec(fraction=0.25)))
    """
    return _pack(subnet, {})


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


def expect_calibration(subnet: nn.Module) -> None:
    """Let a subnet warn at its first evaluation, unless its statistics are its own by then."""
    tie = binding(subnet)
    if tie is None or tie.calibrated:
        return

    def look(module: nn.Module) -> None:
        calibrated = tie.calibrated
        if not calibrated and module.training:
            tie.measured = any(m.training for m in module.modules() if keeps_statistics(m))
            return
        module._forward_pre_hooks.pop(key, None)  # no closure over it, which would be a cycle
        if not calibrated:
            warnings.warn(
                "this subnet is evaluated with norm statistics that are slices of the full net's; "
                "its accuracy will be poor: call net.recalibrate(subnet, batches) first",
                UncalibratedWarning,
                stacklevel=_frames_to_the_user(),
            )

    key = subnet.register_forward_pre_hook(Hook(look)).id


def _frames_to_the_user() -> int:
    """Return how many frames up from the caller the first one outside of torch and nestling is."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _INSIDE:
        level, frame = level + 1, frame.f_back
    return level


_INSIDE = ("torch", "nestling")


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
    reference = weakref.ref(subnet)
    state = subnet.__dict__
    state["_nestling"] = tie
    state["_apply"] = functools.partial(_stand_alone, reference)
    state["zero_grad"] = functools.partial(_zero_grad, reference)
    state["__deepcopy__"] = functools.partial(_deepcopy, reference)
    state["__reduce_ex__"] = functools.partial(_reduce, reference)
    if callable(getattr(type(subnet), _SAVE, None)):
        state[_SAVE] = _Saver(reference, tie, again, conflicts)
    state[_REDUCER] = _NoReducer()
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


def _pack(subnet: nn.Module, memo: dict[int, Any]) -> nn.Module:
    tie = binding(subnet)
    if tie is not None:
        if tie.refusal:
            raise SpecError(tie.refusal)
        tie.refresh()
    with torch.inference_mode(False):
        for parameter in subnet.parameters():
            if id(parameter) not in memo:
                dense, thawed = _dense(parameter), parameter.requires_grad
                memo[id(parameter)] = parameter_like(dense, parameter, thawed)
        for buffer in subnet.buffers():
            if id(buffer) not in memo:
                memo[id(buffer)] = _dense(buffer)
        for tensor in loose_tensors(subnet):
            if not tensor.is_leaf:  # what a run with gradients left behind
                memo.setdefault(id(tensor), _dense(tensor))
        twin = _copy_root(subnet, memo)
    if tie is not None:
        twin.__dict__[_ORDER] = tie.order
    for module in twin.modules():
        _drop_own_hooks(module)
    return twin


def _copy_root(subnet: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Return `copy.deepcopy(subnet)` as its class would do it, without what makes it live."""
    kind = type(subnet)
    own_way: Any = getattr(kind, "__deepcopy__", None)
    if own_way is not None:
        copied = cast(nn.Module, own_way(subnet, memo))
        for key in _OWN:
            copied.__dict__.pop(key, None)
        return copied
    reduced: Any = kind.__reduce_ex__(subnet, 4)
    make, arguments, state, *_ = reduced
    twin: nn.Module = make(*arguments)
    memo[id(subnet)] = twin
    kept = {key: value for key, value in state.items() if key not in _OWN}
    twin.__setstate__(copy.deepcopy(kept, memo))  # type: ignore[no-untyped-call]
    return twin


def _dense(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.preserve_format)


def _like(buffer: Tensor, shared: Tensor) -> Tensor:
    """Return a private buffer with the device, dtype and memory format of the net's."""
    moved = buffer.to(shared.device, shared.dtype)
    if shared.dim() == 4 and not shared.is_contiguous():
        return moved.contiguous(memory_format=torch.channels_last)
    return moved


def _zero_grad(subnet: weakref.ref[nn.Module], set_to_none: bool = True) -> None:
    """`subnet.zero_grad()`: clears the subnet's slices of the shared gradients at once."""
    tie = binding(_alive(subnet))
    if tie is not None:
        for link in tie.parameters.values():
            link.clear(set_to_none)
        nn.ParameterList(tie.own.values()).zero_grad(set_to_none)


def _stand_alone(
    subnet: weakref.ref[nn.Module], change: Callable[[Tensor], Tensor], recurse: bool = True
) -> nn.Module:
    """`subnet.to(...)` and its kin: a stand-alone copy, since views cannot be moved alone."""
    warnings.warn(
        "a subnet's weights are views of its supernet's: subnet.to(...) returns a stand-alone copy "
        "and leaves the subnet as it is; to move them all, use net.to(...)",
        UserWarning,
        stacklevel=3,
    )
    return cast(nn.Module, pack(_alive(subnet))._apply(change))  # type: ignore[no-untyped-call]


def _deepcopy(subnet: weakref.ref[nn.Module], memo: dict[int, Any]) -> nn.Module:
    module = _alive(subnet)
    memo[id(module)] = _pack(module, memo)
    return cast(nn.Module, memo[id(module)])


def _reduce(subnet: weakref.ref[nn.Module], protocol: int) -> Any:
    """Pickle and `torch.save` store a packed copy: views would drag all shared weights along."""
    return pack(_alive(subnet)).__reduce_ex__(protocol)


class _Saver:
    """`subnet.save_pretrained(...)`: saves a packed copy, as its class does it.

    It holds the subnet weakly, for the subnet holds it. In `net.subnet(spec).save_pretrained(path)`
    nothing else does, so the subnet is gone when the call comes: then the saver makes it again,
    with the norm statistics that were its own.

    Args:
        subnet: that is saved.
        tie: of the subnet.
        again: makes the same subnet anew.
        conflicts: returns what the config cannot say of it.
    """

    __slots__ = ("again", "conflicts", "subnet", "tie")

    def __init__(
        self,
        subnet: weakref.ref[nn.Module],
        tie: Binding,
        again: Callable[[], nn.Module],
        conflicts: Callable[[], list[str]],
    ) -> None:
        self.subnet = subnet
        self.tie = tie
        self.again = again
        self.conflicts = conflicts

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Save it.

        Raises:
            SpecError: the supernet's units were reordered since the subnet was made.
        """
        lines = self.conflicts()
        if lines:
            warnings.warn(
                "the config that is saved cannot say all of this subnet, so the library will "
                f"refuse to load it: {'; '.join(lines[:3])}{' ...' if len(lines) > 3 else ''}; "
                "save the subnet of net.space.config_spec(spec) instead",
                UserWarning,
                stacklevel=2,
            )
        return getattr(pack(self._subnet()), _SAVE)(*args, **kwargs)

    def _subnet(self) -> nn.Module:
        subnet = self.subnet()
        if subnet is not None:
            return subnet
        if self.tie.refusal:
            raise SpecError(self.tie.refusal)
        made = self.again()
        own = binding(made)
        if own is not None and not own.full:  # the full one has the net's own
            with torch.no_grad():
                for name, buffer in own.private.items():
                    buffer.copy_(self.tie.private[name])
            for name, parameter in self.tie.own.items():
                put(made, made.get_parameter(name), parameter)
        return made


def _alive(subnet: weakref.ref[nn.Module]) -> nn.Module:
    module = subnet()
    if module is None:
        _gone()
    return module


def _gone() -> NoReturn:
    raise ReferenceError("the subnet has been deleted")


def _drop_own_hooks(module: nn.Module) -> None:
    before = module._forward_pre_hooks
    for key in [key for key, hook in before.items() if isinstance(hook, Hook)]:
        del before[key]
        module._forward_pre_hooks_with_kwargs.pop(key, None)
    saving = module._state_dict_pre_hooks
    for key in [key for key, hook in saving.items() if isinstance(hook, Hook)]:
        del saving[key]


def _nothing(module: nn.Module) -> None:
    return None
