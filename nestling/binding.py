"""Bindings: what ties a live subnet to its supernet, and what is known of a module by that.

A live subnet is a plain module whose instance holds one entry more, its `Binding`. Whoever needs to
know whether a module is live, under which order of units it was made or whether its norm statistics
are its own, asks here.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nestling.errors import UncalibratedWarning
from nestling.extent import Counts
from nestling.tether import GatherTether, Tether

__all__ = [
    "Binding",
    "Hook",
    "alive",
    "binding",
    "expect_calibration",
    "is_calibrated",
    "is_statistic",
    "keeps_statistics",
    "order_of",
    "own_of",
]

TIE = "_nestling"  # where a live subnet holds its binding
ORDER = "nestling_order"  # where a packed copy remembers the order of its units
OWN = "nestling_own"  # where one remembers which of its parameters were no slices

_INSIDE = ("torch", "nestling")


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
        """Act on a module, unseen by the compiler."""
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
    found = subnet.__dict__.get(TIE)
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
    found = tie.order if tie is not None else module.__dict__.get(ORDER)
    return found if isinstance(found, int) else None


def own_of(module: nn.Module) -> frozenset[str]:
    """Return names of the parameters that are a subnet's or packed copy's own, not slices."""
    tie = binding(module)
    return frozenset(module.__dict__.get(OWN, ()) if tie is None else tie.own)


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


def alive(subnet: weakref.ref[nn.Module]) -> nn.Module:
    """Return what a reference points at.

    Raises:
        ReferenceError: the subnet has been deleted.
    """
    module = subnet()
    if module is None:
        raise ReferenceError("the subnet has been deleted")
    return module


def _frames_to_the_user() -> int:
    """Return how many frames up from the caller the first one outside of torch and nestling is."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _INSIDE:
        level, frame = level + 1, frame.f_back
    return level


def _nothing(module: nn.Module) -> None:
    return None
