"""The loaded model: one file, every size, one budget per call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nestling import modelfile
from nestling.batch import shapes, size
from nestling.entry import Entry
from nestling.errors import BudgetError, DataError, ModelError, NestlingError, did_you_mean
from nestling.menu import Menu, backend
from nestling.runtime.choice import Ladder, choose_within

COSTS = ("fraction", "latency_ms", "macs", "params", "bytes")


def load(path: str | Path, model: nn.Module | None = None, *, packed: bool = False) -> LoadedModel:
    """Load a model file.

    Args:
        path: a `.nest` file.
        model: an instance of your own class, which is copied and not changed; not needed for the
            builders of `nestling.models`.
        packed: hold every entry as a copy of its own, see `LoadedModel`.

    Raises:
        FileError: the file is missing, damaged, of another version, or does not fit the model.

    Example:
        >>> model = nestling.load("model.nest")
        >>> logits = model(images, latency_ms=8)
    """
    menu = Menu.load(path, model)
    with modelfile.guarded(Path(path)):
        return LoadedModel(menu, packed=packed)


class LoadedModel:
    """All subnets of a menu, ready to run; each call chooses one by a budget.

    Subnets are plain modules of views of one copy of the weights. Choosing one is a look-up;
    nothing is switched, copied or reloaded.

    Args:
        menu: with its weights, as `fit`, `make_menu` or `load` give it.
        packed: hold every entry as a contiguous copy instead of as views. A small net then runs at
            full speed at batch 1 too; it costs the memory of all entries together, and the copies
            do not follow when `menu.net` is moved or trained. Latencies of views (all that
            `make_menu` and `nestling profile` measure) are not used for it: call `measured()`.
    """

    def __init__(self, menu: Menu, *, packed: bool = False) -> None:
        self.menu = menu
        self.packed = packed
        self._modules = {entry.name: menu.module(entry.name, packed=packed) for entry in menu}
        whole = max(1, menu.net.space.macs(menu.net.space.full))
        prices: dict[str, dict[str, float]] = {
            "fraction": {entry.name: entry.macs / whole for entry in menu},
            "macs": {entry.name: entry.macs for entry in menu},
            "params": {entry.name: entry.params for entry in menu},
            "bytes": {entry.name: entry.bytes for entry in menu},
        }
        self._ladders = {cost: Ladder.of(cost, menu.entries, of) for cost, of in prices.items()}
        self._timed: dict[tuple[int, int], Ladder] = {}
        self._full = menu.full

    def choose(
        self,
        *,
        fraction: float | None = None,
        latency_ms: float | None = None,
        macs: float | None = None,
        params: float | None = None,
        bytes: float | None = None,
        batch: int = 1,
        **unknown: Any,
    ) -> Entry:
        """Return the most accurate entry within every budget that is given; the full net for none.

        An entry that the menu does not offer (it is slower here and no more accurate than another)
        is chosen only where no other one fits a budget, and never for `latency_ms`.

        Args:
            fraction: share of the full net's MACs, where 1.0 is the full net.
            latency_ms: median milliseconds of one call on this device, as profiled.
            macs: multiply-accumulates for one example.
            params: number of parameters.
            bytes: of the subnet's weights as a net of its own.
            batch: examples in the call, for `latency_ms`.
            **unknown: refused, with the name that may be meant.

        Raises:
            ModelError: an unknown budget.
            BudgetError: no entry is that cheap (the message names the closest), a fraction is above
                1, or no latency was measured on this device with this batch and number of threads.
        """
        if unknown:
            raise ModelError(_no_budget(next(iter(unknown))))
        if fraction is not None:
            _check_share(fraction)
        budgets = zip(COSTS, (fraction, latency_ms, macs, params, bytes), strict=True)
        limits = [
            (self._timed_ladder(batch) if cost == "latency_ms" else self._ladders[cost], budget)
            for cost, budget in budgets
            if budget is not None
        ]
        if not limits:
            return self._full
        if len(limits) == 1:
            ladder, budget = limits[0]
            return ladder.choose(budget)
        return choose_within(limits)

    def subnet(self, name: str) -> nn.Module:
        """Return the plain module of an entry, in evaluation mode.

        Raises:
            SpecError: there is no such entry.
        """
        return self._modules[self.menu[name].name]

    def __call__(
        self,
        *args: Any,
        fraction: float | None = None,
        latency_ms: float | None = None,
        macs: float | None = None,
        params: float | None = None,
        bytes: float | None = None,
        subnet: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the best subnet within a budget, without gradients.

        Args:
            *args: the model's own inputs.
            fraction: as for `choose`, and so are the other budgets.
            latency_ms: for a call with this many examples.
            macs: for one example.
            params: number of parameters.
            bytes: of the weights.
            subnet: the name of an entry, instead of a budget.
            **kwargs: the model's own keyword inputs.

        Raises:
            BudgetError: no subnet meets the budget.
            ModelError: the inputs do not fit the model.
            DataError: the inputs hold NaN or infinity.
        """
        budgets = (fraction, latency_ms, macs, params, bytes)
        if subnet is None:
            batch = size((args, kwargs)) if latency_ms is not None else 1
            entry = self.choose(
                fraction=fraction,
                latency_ms=latency_ms,
                macs=macs,
                params=params,
                bytes=bytes,
                batch=batch,
            )
            module = self._modules[entry.name]
        elif any(budget is not None for budget in budgets):
            raise BudgetError("a call takes a budget or subnet=, not both; leave one out")
        else:
            module = self.subnet(subnet)
        try:
            with torch.no_grad():
                outputs = module(*args, **kwargs)
        except NestlingError:
            raise
        except Exception as error:
            raise ModelError(
                f"the model takes inputs like {self.menu.net.signature}, and fails on "
                f"{shapes((args, kwargs))}: {error}{self._meant(kwargs)}"
            ) from error
        _check_finite(outputs, args, kwargs)
        return outputs

    def measured(self, batch: int = 1, **options: Any) -> LoadedModel:
        """Return the model with latencies measured on this device; see `Menu.measured`."""
        menu = self.menu.measured(batch, packed=self.packed, **options)
        return LoadedModel(menu, packed=self.packed)

    def __repr__(self) -> str:
        names = ", ".join(entry.name for entry in self.menu)
        return f"LoadedModel of {type(self.menu.net.model).__name__}: {names}"

    def _meant(self, kwargs: Mapping[str, Any]) -> str:
        """Return a suggestion where a keyword that the model does not know resembles a budget."""
        known = dict(self.menu.net.signature.kwargs)
        unknown = [name for name in kwargs if name not in known]
        near = (did_you_mean(name, [*COSTS, "subnet"]) for name in unknown)
        return next(filter(None, near), "")

    def _timed_ladder(self, batch: int) -> Ladder:
        place = (batch, torch.get_num_threads())
        ladder = self._timed.get(place)
        if ladder is None:
            if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
                raise BudgetError(f"batch= is a whole number of at least 1, but it is {batch!r}")
            table = self.menu.latencies(batch, backend(self.packed))
            entries = [entry for entry in self.menu if entry.name in table]
            if not entries:
                raise BudgetError(
                    "the profile of this device names none of the menu's subnets; run "
                    "`nestling profile FILE` again"
                )
            offered = [entry for entry in entries if entry.offered] or entries
            prices = {entry.name: table[entry.name].median for entry in offered}
            ladder = Ladder.of("latency_ms", offered, prices)
            self._timed[place] = ladder
        return ladder


def _no_budget(name: str) -> str:
    """Return that a budget is unknown, and which may be meant."""
    cures = {"subnet": "; a subnet by its name is model.subnet(name)"}
    cure = cures.get(name) or did_you_mean(name, [*COSTS, "batch"])
    return f"a budget is {', '.join(f'{cost}=' for cost in COSTS)}, but got {name}={cure}"


def _check_share(fraction: Any) -> None:
    """Refuse a fraction above 1; what is no number at all is refused by the ladder.

    Raises:
        BudgetError: it is above 1, such as a percentage.
    """
    try:
        above = bool(fraction > 1)
    except (TypeError, ValueError, RuntimeError):
        return
    if above:
        percent = f"for {fraction:g} % write {fraction / 100:g}" if fraction <= 100 else ""
        raise BudgetError(
            f"fraction= is a share above 0 and at most 1, but it is {fraction:g}; "
            f"{percent or 'for the full net write 1'}"
        )


def _check_finite(outputs: Any, args: Any, kwargs: Any) -> None:
    """Refuse inputs that are not finite, where the outputs are not (a mask may be infinite).

    Looking at the outputs first is nearly free; outputs that are whole numbers tell nothing.
    """
    floats = [leaf for leaf in tree_leaves(outputs) if _is_float(leaf)]
    if floats and all(bool(torch.isfinite(leaf).all()) for leaf in floats):
        return
    for leaf in tree_leaves((args, kwargs)):
        if _is_float(leaf) and not bool(torch.isfinite(leaf).all()):
            raise DataError(
                "inputs must be finite numbers, but they hold NaN or infinity; clean them"
            )


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
