"""The gathered net: a plain module of the executed units, filled from the shared weights.

There is one for a tuple of counts at a time. It holds the weights, norm statistics and optimiser
state of the chosen units, and an optimiser of the same kind as the run's steps on it, at the small
shape. When other units are chosen, those that leave are written back and those that enter are
filled in; the rest stays where it is. The shared tensors of a unit that is not executed are never
touched; those of one that is are behind until it is written back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nestling import extent as extents
from nestling.errors import ModelError
from nestling.execution.clock import Clock
from nestling.execution.gathering import Changed, Chosen, Entries, Slots, Window
from nestling.extent import Extent
from nestling.packing import pack
from nestling.supernet import Supernet
from nestling.weights import tensors_of

_LISTS = ("params", "param_names", "names")  # what a group holds besides settings


class GatheredNet:
    """A module of the executed counts, and the ways to fill it, step and write it back.

    Args:
        net: that owns the shared weights.
        counts: executed units by axis name, in the order in which units are given; each is one
            that its axis allows.

    Attributes:
        module: a plain module of that shape, in training mode.
        units: that it holds, one axis after the other; None before it is filled.
    """

    def __init__(self, net: Supernet, counts: Mapping[str, int]) -> None:
        self.net = net
        self.counts = dict(counts)
        self.units: Tensor | None = None
        self.module = pack(net.subnet(counts)).train()
        self._own = dict(self.module.named_parameters())
        self._shared = tensors_of(net.model)
        self._windows: dict[str, Window] = {}
        self._rows: dict[str, Tensor] = {}
        self._optimizer: torch.optim.Optimizer | None = None
        self._full: torch.optim.Optimizer | None = None
        # Of every window whose state is held: the small tensors by key, and their blocks.
        self._state: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
        slots = _slots(net, counts)
        known: dict[Extent, Entries] = {}
        for name, small in tensors_of(self.module).items():
            self._bind(name, small, slots, known)
        self._places = self._where()

    def _bind(self, name: str, small: Tensor, slots: Slots, known: dict[Extent, Entries]) -> None:
        """Let a tensor of the module be the shared one, or a window's where units are chosen."""
        shared = self._shared[name]
        layout = self.net.space.layouts[name].extents
        if any(axis in slots for extent in layout for axis in extents.axes_of(extent)):
            for extent in layout:
                if extent not in known:
                    known[extent] = Entries.of(extent, slots).to(shared.device)
            window = Window(shared, [known[extent] for extent in layout])
            self._windows[name] = window
            self._rows[name] = window.over(shared)
            small.data = window.own
        else:
            small.data = shared.detach()

    def _where(self) -> list[int]:
        return [tensor.data_ptr() for tensor in self._shared.values()]

    def stands(self) -> bool:
        """Return whether the shared weights are still where they were when this was made."""
        return self._places == self._where()

    # -- which units it holds -----------------------------------------------------------------

    def hold(self, units: Tensor) -> None:
        """Let the module hold these units, and write back those that leave.

        Args:
            units: that are executed, in the order of the axes of `counts`. A unit that stays keeps
                its slot.
        """
        before, self.units = self.units, units
        new = Chosen(units)
        with torch.no_grad():
            if before is None:
                self._state = {}
                for name, window in self._windows.items():
                    window.take([(self._rows[name], window.flat)], window.index(new))
                return
            changed = Changed(before != units)
            if bool(changed.slots.any()):
                old = Chosen(before)
                for name, window in self._windows.items():
                    window.exchange(self._pairs(name), old, new, changed)

    def write_back(self) -> None:
        """Bring the shared tensors up to date with the units that are held."""
        if self.units is None:
            return
        chosen = Chosen(self.units)
        with torch.no_grad():
            for name, window in self._windows.items():
                window.put(self._pairs(name), window.index(chosen))

    def _pairs(self, name: str) -> list[tuple[Tensor, Tensor]]:
        """Return the blocks of a shared tensor and of its state, with those of the small ones."""
        window = self._windows[name]
        pairs = [(self._rows[name], window.flat)]
        if name in self._state and self._full is not None:
            state = self._full.state[self._shared[name]]
            pairs += [
                (window.over(state[key]), flat) for key, (_, flat) in self._state[name].items()
            ]
        return pairs

    # -- a step -------------------------------------------------------------------------------

    def step(self, optimizer: torch.optim.Optimizer, clock: Clock) -> None:
        """Step at the small shape, after a backward run.

        Args:
            optimizer: of the run: its settings are used, and the state of the units is its.
            clock: that is told what gathering takes.

        Raises:
            ModelError: the optimiser is of another kind, or a gradient is not finite. Nothing has
                changed then.
        """
        own = self._own_optimizer(optimizer)
        live = [
            (name, parameter)
            for group in own.param_groups
            for name, parameter in zip(group["names"], group["params"], strict=True)
            if parameter.grad is not None
        ]
        check_finite([(name, p.grad) for name, p in live if p.grad is not None])
        for group, small in zip(optimizer.param_groups, own.param_groups, strict=True):
            small.update({key: value for key, value in group.items() if key not in _LISTS})
        with torch.no_grad():
            with clock.part("gathering"):
                self._take_state(optimizer, own, live)
            own.step()
        own.zero_grad(set_to_none=True)

    def _take_state(
        self,
        optimizer: torch.optim.Optimizer,
        own: torch.optim.Optimizer,
        live: Sequence[tuple[str, nn.Parameter]],
    ) -> None:
        """Fill in the state of parameters that step for the first time since the units came."""
        missing = [(name, p) for name, p in live if name not in self._state]
        if not missing or self.units is None:
            return
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        chosen = Chosen(self.units)
        for name, parameter in missing:
            shared = self._shared[name]
            full = _full_state(optimizer, shared, groups[id(shared)])
            held = self._state[name] = {}
            for key, state in full.items():
                window = self._windows.get(name)
                if window is None or state.dim() == 0:  # all is kept; or it is a count of steps
                    own.state[parameter][key] = state
                    continue
                small, flat = held[key] = window.another(state)
                window.take([(window.over(state), flat)], window.index(chosen))
                own.state[parameter][key] = small

    def _own_optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Return an optimiser of the same kind for the module's parameters."""
        if self._optimizer is not None and self._full is optimizer:
            return self._optimizer
        check_optimizer(optimizer)
        names = {id(tensor): name for name, tensor in self._shared.items()}
        groups: list[dict[str, Any]] = []
        for group in optimizer.param_groups:
            own = [names[id(p)] for p in group["params"] if names.get(id(p)) in self._own]
            made = {key: value for key, value in group.items() if key not in _LISTS}
            groups.append(made | {"params": [self._own[name] for name in own], "names": own})
        kind: Any = type(optimizer)
        self._full, self._state = optimizer, {}
        made_now: torch.optim.Optimizer = kind(groups)
        self._optimizer = made_now
        return made_now


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Check that an optimiser's state can be gathered: it is SGD or AdamW itself.

    Raises:
        ModelError: it is not.
    """
    if type(optimizer) not in (torch.optim.SGD, torch.optim.AdamW):
        raise ModelError(
            f"channel execution gathers the optimiser's state, which it knows of SGD and AdamW, "
            f"but optimizer= makes {type(optimizer).__name__}; take "
            "optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3) or the like"
        )


def check_finite(gradients: Sequence[tuple[str, Tensor]]) -> None:
    """Check that all gradients are finite, in one look at the device.

    Raises:
        ModelError: one is not.
    """
    if not gradients:
        return
    # A sum is as finite as its terms, and far cheaper to look at than these one by one.
    sums = torch.stack([gradient.sum().float() for _, gradient in gradients])
    if not bool(torch.isfinite(sums).all()):
        name = gradients[int(torch.isfinite(sums).logical_not().nonzero()[0])][0]
        raise ModelError(
            f"the gradients of a step must be finite, but that of {name!r} has overflowed; lower "
            "the learning rate (optimizer=), or scale loss= down. The weights are as they were "
            "before this step"
        )


def _slots(net: Supernet, counts: Mapping[str, int]) -> Slots:
    """Return where each axis that is not executed whole begins in the list of chosen units."""
    found, start = {}, 0
    for name, count in counts.items():
        if count < net.space.axes[name].size:
            found[name] = (start, count)
        start += count
    return found


def _full_state(
    optimizer: torch.optim.Optimizer, parameter: Tensor, group: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return a parameter's state, laid out as the parameter is; made of zeros where missing."""
    state = optimizer.state[parameter]
    if isinstance(optimizer, torch.optim.SGD):
        keys = ["momentum_buffer"] if group["momentum"] else []
    else:
        keys = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else [])]
        if "step" not in state:
            on_device = group.get("fused") or group.get("capturable")
            device = parameter.device if on_device else torch.device("cpu")
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
    for key in keys:
        if state.get(key) is None:
            state[key] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        if state[key].stride() != parameter.stride():  # as a checkpoint gives it back
            state[key] = torch.empty_like(parameter).copy_(state[key])
    found: dict[str, Tensor] = {key: state[key] for key in keys}
    return found | ({"step": state["step"]} if "step" in state else {})
