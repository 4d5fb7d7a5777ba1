"""Tethers: what ties one subnet parameter to the supernet's, weights and gradients.

A `ViewTether` belongs to a parameter that is a slice of the shared one: before autograd
accumulates, it makes the gradient a slice of the shared gradient. A `GatherTether` belongs to a
parameter whose kept entries are not one range: it fills the copy again when the shared parameter
has changed, and adds its gradient to the shared one after accumulation.
"""

from __future__ import annotations

import functools
import threading
import warnings
import weakref
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from nestling.cut import Cut
from nestling.errors import ModelError
from nestling.skeleton import Hooks
from nestling.weights import parameter_like

_FILLING = threading.Lock()  # held while a gathered copy is compared and filled


class SharedGradient:
    """The gradient of one shared parameter, and the subnet parameters that hold slices of it.

    A generation is the time from one clearing of the gradient (to None, or by assigning another
    tensor) to the next. Slices of an older generation are let go of at the next backward run that
    reaches the parameter, so at most one old buffer is kept alive.
    """

    __slots__ = ("bound", "generation", "limit", "parameter", "users")

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self.bound: Tensor | None = None
        self.generation = 0
        self.users: list[weakref.ref[Tensor]] = []
        self.limit = 16

    def current(self) -> Tensor:
        """Return the shared gradient, made if it is missing; stale slices are let go of first."""
        gradient = self.parameter.grad
        if gradient is None or gradient is not self.bound:
            self.release()
            if gradient is None:
                gradient = torch.zeros_like(self.parameter)
                self.parameter.grad = gradient
            self.bound = gradient
        return gradient

    def join(self, leaf: weakref.ref[Tensor]) -> None:
        """Note that a subnet parameter holds a slice of the present gradient."""
        if len(self.users) >= self.limit:  # forget those that were deleted
            self.users = [user for user in self.users if user() is not None]
            self.limit = 2 * len(self.users) + 16
        self.users.append(leaf)

    def release(self) -> None:
        """Begin a new generation: take the slices of the old gradient from their holders."""
        old = self.bound
        for user in self.users:
            leaf = user()
            if leaf is not None and leaf.grad is not None and _is_part(leaf.grad, old):
                leaf.grad = None
        self.users = []
        self.bound = None
        self.generation += 1


class ViewTether:
    """Hook of a slice: before accumulation, make its gradient a slice of the shared one."""

    __slots__ = ("cut", "generation", "leaf", "shared")

    def __init__(self, shared: SharedGradient, leaf: nn.Parameter, cut: Cut) -> None:
        self.shared = shared
        self.leaf: weakref.ref[Tensor] = weakref.ref(leaf)
        self.cut = cut
        self.generation = -1

    def __call__(self, gradient: Tensor) -> None:
        """Bind the gradient of the parameter, unless it is bound already."""
        shared, leaf = self.shared, self.leaf()
        if leaf is None or not shared.parameter.requires_grad:
            return  # a frozen shared parameter takes no gradient; the subnet's is its own
        refuse_create_graph()
        whole = shared.current()
        own = leaf.grad
        if self.generation != shared.generation:
            self._check_attached(leaf)
            self.bind(leaf, whole)
            if own is not None:  # the user gave it one
                self.cut.view(whole).add_(own)
        elif own is None:  # the user cleared this parameter's alone
            leaf.grad = self.cut.view(whole).zero_()
        elif not _is_part(own, whole):  # the user replaced it
            leaf.grad = self.cut.view(whole).copy_(own)

    def bind(self, leaf: Tensor, whole: Tensor) -> None:
        """Make the gradient of the parameter a slice of the present shared one."""
        if self.generation != self.shared.generation:
            self.generation = self.shared.generation
            self.shared.join(self.leaf)
        leaf.grad = self.cut.view(whole)

    def clear(self, set_to_none: bool) -> None:
        """Zero this subnet's slice of the shared gradient, as `subnet.zero_grad()` says."""
        leaf = self.leaf()
        if leaf is None:
            return
        whole = self.shared.parameter.grad
        if whole is not None and leaf.grad is not None and _is_part(leaf.grad, whole):
            self.cut.zero(whole)
        if set_to_none:
            leaf.grad = None
            self.generation = -1
        elif leaf.grad is not None:
            leaf.grad.zero_()

    def move(self) -> None:
        """Point the parameter at the shared one again, after that was moved or converted."""
        leaf, shared = self.leaf(), self.shared.parameter
        if leaf is None:
            return
        # The only place for `.data`: both keep their version counter, which is one and the same.
        leaf.data = self.cut.view(shared.detach())
        if shared.grad is not None and leaf.requires_grad:
            self.bind(leaf, self.shared.current())

    def refresh(self, always: bool = False) -> None:
        """Point the parameter at the shared one again, if that was given other storage."""
        leaf = self.leaf()
        if leaf is not None and not self._attached(leaf):
            self.move()

    def _attached(self, leaf: Tensor) -> bool:
        shared = self.shared.parameter
        offset = (leaf.storage_offset() - shared.storage_offset()) * leaf.element_size()
        return not leaf.numel() or leaf.data_ptr() - shared.data_ptr() == offset

    def _check_attached(self, leaf: Tensor) -> None:
        if not self._attached(leaf):
            raise ModelError(
                "a subnet's weight is no longer a view of its supernet's: weights of the net or of "
                "a part of the subnet were replaced (by .to() or .data = ...); move them with "
                "net.to(...), call net.refresh(), or make the subnet again with net.subnet(spec)"
            )


class GatherTether:
    """A copy of scattered entries: filled again when the shared ones changed, gradient added back.

    Args:
        source: the shared parameter or buffer.
        leaf: the subnet's copy.
        cut: the kept entries.
        shared: the shared gradient; None for a buffer.
    """

    __slots__ = ("cut", "leaf", "leaf_version", "place", "shared", "source", "version")

    def __init__(
        self, source: Tensor, leaf: Tensor, cut: Cut, shared: SharedGradient | None = None
    ) -> None:
        self.source = source
        self.leaf: weakref.ref[Tensor] = weakref.ref(leaf)
        self.cut = cut
        self.shared = shared
        self.settle(leaf)

    def refresh(self, always: bool = False) -> None:
        """Fill the copy again if the shared tensor has changed since.

        Args:
            always: fill it also where no change was counted: writes through `.data` are not.

        Raises:
            ModelError: the copy itself was written, which would reach no other subnet.
        """
        leaf = self.leaf()
        if leaf is None or not (always or self._changed(leaf)):
            return
        with _FILLING:  # another thread may just have filled it, or be about to
            if self._changed(leaf):
                self._fill(leaf)
            elif always:
                # Through .data, so that the write is not counted: mostly the values are the same,
                # and a graph that is still to run backward must not be refused for it.
                with torch.inference_mode(False), torch.no_grad():
                    leaf.data.copy_(self.cut.take(self.source))

    def _changed(self, leaf: Tensor) -> bool:
        return (
            self.version != self.source._version
            or self.leaf_version != leaf._version
            or self.place != self.source.data_ptr()
        )

    def _fill(self, leaf: Tensor) -> None:
        if leaf._version != self.leaf_version:
            raise ModelError(
                "a gathered weight of a live subnet was written in place, but it is a copy that "
                "its supernet does not see: give optimisers net.parameters(), or tune "
                "nestling.pack(subnet) and take it back with net.absorb(spec, packed)"
            )
        # Not in inference mode: it hides the write from a graph that still needs the old values.
        with torch.inference_mode(False), torch.no_grad():
            leaf.copy_(self.cut.take(self.source))
        self.settle(leaf)

    def settle(self, leaf: Tensor) -> None:
        """Note that the copy equals the shared tensor now."""
        self.version, self.leaf_version = self.source._version, leaf._version
        self.place = self.source.data_ptr()

    def __call__(self, leaf: Tensor) -> None:
        """Move the gradient into the shared one (the hook after accumulation)."""
        shared = self.shared
        if leaf.grad is None or shared is None or not shared.parameter.requires_grad:
            return
        part, leaf.grad = leaf.grad, None
        refuse_create_graph()
        if self.version != self.source._version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an "
                "inplace operation: a gathered weight's shared values changed between forward and "
                "backward; step the optimizer after all backward runs"
            )
        self.cut.add(shared.current(), part)

    def clear(self, set_to_none: bool) -> None:
        """Zero this subnet's entries of the shared gradient, as `subnet.zero_grad()` says."""
        leaf = self.leaf()
        if leaf is not None:
            leaf.grad = None
        if self.shared is not None and self.shared.parameter.grad is not None:
            self.cut.zero(self.shared.parameter.grad)

    def move(self) -> None:
        """Copy the shared values again, after they were moved or converted."""
        leaf = self.leaf()
        if leaf is not None:
            leaf.data = self.cut.take(self.source.detach())
            self.settle(leaf)


Tether: TypeAlias = ViewTether | GatherTether


def tether(shared: SharedGradient, cut: Cut) -> tuple[nn.Parameter, Tether]:
    """Return a new subnet parameter for a cut of the shared one, tied to it."""
    spend_layout_warning()
    watch_fused_steps()
    parameter = shared.parameter
    # A view of detach(), never of .data: the version counter must stay the shared parameter's.
    part = cut.take(parameter.detach())
    elastic = part.is_floating_point() or part.is_complex()
    leaf = parameter_like(part, parameter, requires_grad=elastic)
    tie: Tether
    if cut.gathered:
        tie = GatherTether(parameter, leaf, cut, shared)
        if elastic:
            leaf.register_post_accumulate_grad_hook(tie)  # type: ignore[no-untyped-call]
    else:
        tie = ViewTether(shared, leaf, cut)
        if elastic:
            # What leaf.register_hook(tie) does, with a third of its memory.
            leaf._backward_hooks = Hooks({-1: tie})
    # Hooks stay when a parameter is frozen, so that it can be thawed later.
    leaf.requires_grad_(parameter.requires_grad)
    return leaf, tie


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
def spend_layout_warning() -> None:
    """Autograd warns once a process that strided gradients may be slow; here they are meant so.

    The warning is triggered on a tiny tensor with warnings caught, so that exactly this one does
    not reach the user.
    """
    with warnings.catch_warnings(), torch.inference_mode(False), torch.enable_grad():
        warnings.simplefilter("ignore")
        leaf = nn.Parameter(torch.zeros(2, 2, device="cpu")[:, :1])
        leaf.grad = torch.zeros(2, 2, device="cpu")[:, :1]
        leaf.sum().backward()  # type: ignore[no-untyped-call]


@functools.cache
def watch_fused_steps() -> None:
    """Let fused optimisers count as writes: their kernels leave the version counters alone.

    Without it a gathered weight would not notice the step, and a step between forward and backward
    would go unnoticed for all weights. Only parameters that a fused optimiser has just written are
    touched.
    """
    register_optimizer_step_post_hook(_count_fused_step)


def _count_fused_step(optimizer: torch.optim.Optimizer, *given: Any) -> None:
    for group in optimizer.param_groups:
        if group.get("fused"):
            written = [parameter for parameter in group["params"] if parameter.grad is not None]
            torch.autograd.graph.increment_version(written)


def _is_part(gradient: Tensor, whole: Tensor | None) -> bool:
    return gradient is whole or (whole is not None and gradient._base is whole)
