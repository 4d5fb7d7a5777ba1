"""Subnets: plain modules whose parameters are slices of the supernet's.

A subnet is a deep copy of the net in which every parameter was replaced on the way by a view of the
shared one, and every size attribute by its smaller value. Its gradients accumulate in the same
slices of the shared gradients. Where the kept entries are not one range, the parameter is gathered:
a leaf that is filled again when the shared one has changed, and whose gradient is added back.
"""

from __future__ import annotations

import copy
import functools
import math
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from nestling import extent as extents
from nestling.errors import ModelError, SpecError, UncalibratedWarning
from nestling.extent import Counts
from nestling.spec import Attribute, Layout, Space

_OWN = ("_nestling", "_apply", "__deepcopy__")  # what a live subnet holds besides its class's own


@dataclass(frozen=True)
class Cut:
    """The part of a shared tensor that a subnet keeps.

    Attributes:
        ranges: per dimension `(start, length)`; whole where the dimension is gathered.
        gathered: dimension to kept entries, for dimensions whose kept entries are not one range.
    """

    ranges: tuple[tuple[int, int], ...]
    gathered: tuple[tuple[int, tuple[int, ...]], ...]

    @classmethod
    def of(cls, layout: Layout, counts: Counts) -> Cut:
        """Return the cut that a spec makes in a tensor of this layout."""
        ranges, gathered = [], []
        for dim, extent in enumerate(layout.extents):
            span = extents.kept_range(extent, counts)
            if span is None:
                gathered.append((dim, tuple(extents.kept(extent, counts))))
                span = (0, extent.size)
            ranges.append((span[0], span[1] - span[0]))
        return cls(tuple(ranges), tuple(gathered))

    def view(self, shared: Tensor) -> Tensor:
        """Return the ranges of a tensor as a view (gathered dimensions stay whole)."""
        for dim, (start, length) in enumerate(self.ranges):
            if length != shared.shape[dim]:
                shared = shared.narrow(dim, start, length)
        return shared

    def take(self, shared: Tensor) -> Tensor:
        """Return the kept entries: a view, or a copy where something is gathered."""
        part = self.view(shared)
        for dim, entries in self.gathered:
            part = part.index_select(dim, torch.tensor(entries, device=shared.device))
        return part

    def add(self, shared: Tensor, part: Tensor) -> None:
        """Add the kept entries onto the whole tensor, in place."""
        self._write(shared, part, accumulate=True)

    def put(self, shared: Tensor, part: Tensor) -> None:
        """Write the kept entries into the whole tensor, in place."""
        self._write(shared, part, accumulate=False)

    def _write(self, shared: Tensor, part: Tensor, accumulate: bool) -> None:
        target = self.view(shared)
        if not self.gathered:
            target.add_(part) if accumulate else target.copy_(part)
        elif len(self.gathered) == 1:
            dim, entries = self.gathered[0]
            index = torch.tensor(entries, device=shared.device)
            write = target.index_add_ if accumulate else target.index_copy_
            write(dim, index, part.to(target.dtype))
        else:
            spread = [torch.arange(n, device=shared.device) for n in target.shape]
            for dim, entries in self.gathered:
                spread[dim] = torch.tensor(entries, device=shared.device)
            grid = torch.meshgrid(*spread, indexing="ij")
            target.index_put_(grid, part.to(target.dtype), accumulate=accumulate)


class SharedGradient:
    """The gradient of one shared parameter, and the subnet parameters bound to slices of it."""

    __slots__ = ("bound", "parameter", "users")

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self.bound: Tensor | None = None
        self.users: set[BindGradient] = set()  # hooks whose leaf holds a slice of `bound`

    def current(self) -> Tensor:
        """Return the shared gradient, made if it is missing; stale slices are let go of first."""
        gradient = self.parameter.grad
        if gradient is None or gradient is not self.bound:
            for user in self.users:
                leaf = user.leaf()
                if leaf is not None:
                    leaf.grad = None
            self.users.clear()
            if gradient is None:
                self.parameter.grad = torch.zeros_like(self.parameter)
                gradient = cast(Tensor, self.parameter.grad)
            self.bound = gradient
        return gradient


class BindGradient:
    """Backward hook of a view: before accumulation, make `leaf.grad` a slice of the shared one."""

    __slots__ = ("cut", "leaf", "shared")

    def __init__(self, shared: SharedGradient, leaf: nn.Parameter, cut: Cut) -> None:
        self.shared = shared
        self.leaf = weakref.ref(leaf)
        self.cut = cut

    def __call__(self, gradient: Tensor) -> None:
        refuse_create_graph()
        leaf = self.leaf()
        if leaf is None:
            return
        whole = self.shared.current()
        if self not in self.shared.users:
            self.shared.users.add(self)
        elif leaf.grad is not None:
            return
        else:  # the user cleared this subnet's gradients
            self.cut.view(whole).zero_()
        leaf.grad = self.cut.view(whole)


class ScatterGradient:
    """Hook of a gathered leaf: after accumulation, move its gradient into the shared one."""

    __slots__ = ("cut", "shared")

    def __init__(self, shared: SharedGradient, cut: Cut) -> None:
        self.shared = shared
        self.cut = cut

    def __call__(self, leaf: Tensor) -> None:
        if leaf.grad is not None:
            refuse_create_graph()
            self.cut.add(self.shared.current(), leaf.grad)
            leaf.grad = None


class Gathered:
    """A leaf that holds a copy of scattered entries; filled again when the shared ones changed."""

    __slots__ = ("cut", "leaf", "shared", "version")

    def __init__(self, shared: nn.Parameter, leaf: nn.Parameter, cut: Cut) -> None:
        self.shared = shared
        self.leaf = weakref.ref(leaf)
        self.cut = cut
        self.version = shared._version

    def refresh(self) -> None:
        """Fill the leaf again if the shared parameter has changed since."""
        if self.version == self.shared._version:
            return
        leaf = self.leaf()
        if leaf is not None:
            with torch.no_grad():
                leaf.copy_(self.cut.take(self.shared))
        self.version = self.shared._version


class Hook:
    """A forward pre-hook of ours, so that packing can tell it from the user's."""

    __slots__ = ("act",)

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act

    def __call__(self, module: nn.Module, args: Any) -> None:
        self.act()

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        return Hook(_nothing)


@dataclass
class Binding:
    """What ties a live subnet to its supernet.

    Attributes:
        counts: kept units per axis.
        order: identity of the supernet's unit order when the subnet was made.
        parameters: name to leaf and cut, for every shared parameter.
        gathers: the leaves that are copies.
        statistics: private buffers, with the version that each had when the subnet was made.
    """

    counts: Counts
    order: int
    parameters: dict[str, tuple[nn.Parameter, Cut]] = field(default_factory=dict)
    gathers: dict[str, Gathered] = field(default_factory=dict)
    statistics: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    full: bool = False

    @property
    def calibrated(self) -> bool:
        """Whether the norm statistics were trained or recalibrated since the subnet was made."""
        if self.full or not self.statistics:
            return True
        return any(buffer._version != version for buffer, version in self.statistics.values())


def binding(subnet: nn.Module) -> Binding | None:
    """Return what ties a subnet to its supernet; None for a stand-alone module."""
    found = subnet.__dict__.get("_nestling")
    return found if isinstance(found, Binding) else None


def is_calibrated(subnet: nn.Module) -> bool:
    """Return whether a module's norm statistics are its own, not mere slices of the full net's."""
    tie = binding(subnet)
    return tie is None or tie.calibrated


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
    _spend_layout_warning()
    full = all(counts.get(name, axis.size) == axis.size for name, axis in space.axes.items())
    tie = Binding(dict(counts), order, full=full)
    memo: dict[int, Any] = {id(t): t for t in _loose_tensors(model)}
    for name, parameter in model.named_parameters():
        cut = Cut.of(space.layouts[name], counts)
        leaf = _leaf(parameter, cut)
        memo[id(parameter)] = leaf
        tie.parameters[name] = (leaf, cut)
        _bind(tie, name, parameter, gradients[name])
    for name, buffer in model.named_buffers():
        own = Cut.of(space.layouts[name], counts).take(buffer)
        if full or (name not in private and own.shape == buffer.shape):
            own = buffer
        elif name in private:
            own = own.clone()
        memo[id(buffer)] = own
        if name in private:
            tie.statistics[name] = (own, own._version)
    subnet = copy.deepcopy(model, memo)
    set_attributes(subnet, space.attributes, counts)
    _attach(subnet, tie)
    return subnet


def set_attributes(module: nn.Module, attributes: Iterable[Attribute], counts: Counts) -> None:
    """Set the size attributes of a module and its submodules to what a spec leaves."""
    for attribute in attributes:
        owner = module.get_submodule(attribute.module)
        value = extents.count(attribute.extent, counts)
        if attribute.index is None:
            if getattr(owner, attribute.name) != value:
                setattr(owner, attribute.name, value)
        else:
            values = list(getattr(owner, attribute.name))
            if values[attribute.index] != value:
                values[attribute.index] = value
                setattr(owner, attribute.name, type(getattr(owner, attribute.name))(values))


def pack(subnet: nn.Module) -> nn.Module:
    """Return a detached, contiguous copy of a subnet: an ordinary module of the user's class.

    It runs at the full speed of a net of that shape, shares nothing with the supernet, and can be
    moved, trained, exported or saved on its own. `net.absorb(spec, packed)` takes it back.

    Example:
        >>> small = nestling.pack(net.subnet(net.space.spec(fraction=0.25)))
    """
    memo: dict[int, Any] = {}
    tie = binding(subnet)
    if tie is not None:
        for gather in tie.gathers.values():
            gather.refresh()
    for parameter in subnet.parameters():
        copied = parameter.detach().clone(memory_format=torch.preserve_format)
        memo[id(parameter)] = nn.Parameter(copied, requires_grad=parameter.requires_grad)
    for buffer in subnet.buffers():
        memo[id(buffer)] = buffer.detach().clone(memory_format=torch.preserve_format)
    state = {key: value for key, value in subnet.__dict__.items() if key not in _OWN}
    twin = subnet.__class__.__new__(subnet.__class__)
    memo[id(subnet)] = twin
    twin.__dict__.update(copy.deepcopy(state, memo))
    for module in twin.modules():
        _drop_own_hooks(module)
    return twin


def rebind(subnet: nn.Module, model: nn.Module, gradients: Mapping[str, SharedGradient]) -> None:
    """Point a live subnet at the model's parameters again, after these were moved or replaced."""
    tie = binding(subnet)
    if tie is None:
        return
    shared = dict(model.named_parameters())
    fresh: dict[int, nn.Parameter] = {}
    for name, (old, cut) in list(tie.parameters.items()):
        leaf = _leaf(shared[name], cut)
        leaf.requires_grad_(old.requires_grad)
        fresh[id(old)] = leaf
        tie.parameters[name] = (leaf, cut)
        _bind(tie, name, shared[name], gradients[name])
    for module in subnet.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in fresh:
                module._parameters[key] = fresh[id(parameter)]


def refuse(subnet: nn.Module, message: str) -> None:
    """Make every later forward run of a subnet fail with a `SpecError`."""

    def stop() -> None:
        raise SpecError(message)

    subnet.register_forward_pre_hook(Hook(stop), prepend=True)


def refuse_create_graph() -> None:
    """Raise if a backward run asked for a graph of itself: slices of gradients cannot hold one.

    Raises:
        ModelError: `backward(create_graph=True)` through a subnet.
    """
    if torch.is_grad_enabled():
        raise ModelError(
            "create_graph=True does not work on a live subnet, whose gradients are slices of the "
            "shared ones; use nestling.pack(subnet) for second derivatives"
        )


@functools.cache
def _spend_layout_warning() -> None:
    """Autograd warns once a process that strided gradients may be slow; here they are meant so.

    The warning is triggered on a tiny tensor with warnings caught, so that exactly this one does
    not reach the user.
    """
    whole = torch.zeros(2, 2)
    leaf = nn.Parameter(whole[:, :1])
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        leaf.grad = torch.zeros(2, 2)[:, :1]
        leaf.sum().backward()


def _leaf(shared: nn.Parameter, cut: Cut) -> nn.Parameter:
    # A view of detach(), never of .data: the version counter must stay the shared parameter's.
    part = cut.take(shared.detach())
    return nn.Parameter(part, requires_grad=shared.requires_grad)


def _bind(tie: Binding, name: str, shared: nn.Parameter, gradient: SharedGradient) -> None:
    leaf, cut = tie.parameters[name]
    if cut.gathered:
        tie.gathers[name] = Gathered(shared, leaf, cut)
    if not leaf.requires_grad:
        return
    if cut.gathered:
        leaf.register_post_accumulate_grad_hook(ScatterGradient(gradient, cut))
    else:
        leaf.register_hook(BindGradient(gradient, leaf, cut))


def _attach(subnet: nn.Module, tie: Binding) -> None:
    subnet.__dict__["_nestling"] = tie
    reference = weakref.ref(subnet)
    subnet.__dict__["_apply"] = functools.partial(_stand_alone, reference)
    subnet.__dict__["__deepcopy__"] = functools.partial(_deepcopy, reference)
    if tie.gathers:
        owners: dict[str, list[str]] = {"": list(tie.gathers)}
        for name in tie.gathers:
            owners.setdefault(name.rpartition(".")[0], []).append(name)
        for path, names in owners.items():
            refresh = _Refresh(tie, tuple(dict.fromkeys(names)))
            subnet.get_submodule(path).register_forward_pre_hook(Hook(refresh), prepend=True)
    if tie.statistics and not tie.full:
        _warn_once(subnet, tie)


class _Refresh:
    """Fills the named gathered leaves again where the shared parameters have changed."""

    __slots__ = ("names", "tie")

    def __init__(self, tie: Binding, names: tuple[str, ...]) -> None:
        self.tie = tie
        self.names = names

    def __call__(self) -> None:
        for name in self.names:
            self.tie.gathers[name].refresh()


def _warn_once(subnet: nn.Module, tie: Binding) -> None:
    reference = weakref.ref(subnet)

    def look() -> None:
        handle.remove()
        module = reference()
        if module is not None and not module.training and not tie.calibrated:
            warnings.warn(
                "this subnet is evaluated with norm statistics that are slices of the full net's; "
                "its accuracy will be poor: call net.recalibrate(subnet, batches) first",
                UncalibratedWarning,
                stacklevel=3,
            )

    handle = subnet.register_forward_pre_hook(Hook(look))


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
    return pack(_alive(subnet))._apply(change)


def _deepcopy(subnet: weakref.ref[nn.Module], memo: dict[int, Any]) -> nn.Module:
    module = _alive(subnet)
    memo[id(module)] = pack(module)
    return cast(nn.Module, memo[id(module)])


def _alive(subnet: weakref.ref[nn.Module]) -> nn.Module:
    module = subnet()
    if module is None:
        raise ReferenceError("the subnet has been deleted")
    return module


def _drop_own_hooks(module: nn.Module) -> None:
    hooks = module._forward_pre_hooks
    for key in [key for key, hook in hooks.items() if isinstance(hook, Hook)]:
        del hooks[key]
        module._forward_pre_hooks_with_kwargs.pop(key, None)


def _loose_tensors(model: nn.Module) -> list[Tensor]:
    """Return the tensors that modules hold as plain attributes: constants, shared by all."""
    return [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor)
    ]


def _nothing() -> None:
    return None


def parameter_count(module: nn.Module) -> int:
    """Return the number of parameters of a module, each counted once."""
    return sum(math.prod(parameter.shape) for parameter in module.parameters())
