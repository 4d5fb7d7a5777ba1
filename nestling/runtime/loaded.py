"""The loaded model: one file, every size, one budget per call."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nestling import backends, modelfile
from nestling.backends import AUTO, Call
from nestling.backends.shelf import Ready, Shelf
from nestling.batch import shapes, size
from nestling.costs.latency import Latency
from nestling.entry import Entry
from nestling.errors import BudgetError, DataError, ModelError, NestlingError, did_you_mean
from nestling.menu import Menu
from nestling.profiling import profiled
from nestling.runtime import primitives
from nestling.runtime.choice import Ladder, choose_within
from nestling.runtime.plan import EAGER, Tables, plan, tables_for

COSTS = ("fraction", "latency_ms", "macs", "params", "bytes")


def load(
    path: str | Path,
    model: nn.Module | None = None,
    *,
    packed: bool = False,
    backend: str = AUTO,
    memory_cap: float | None = None,
    only: Sequence[str] | None = None,
) -> LoadedModel:
    """Load a model file, with what it takes to run every entry.

    Where it is not set, `ONEDNN_PRIMITIVE_CACHE_CAPACITY` is set for the process: see
    docs/serving.md.

    Args:
        path: a `.nest` file.
        model: an instance of your own class, which is copied and not changed; not needed for the
            builders of `nestling.models`.
        packed: the same as backend="packed".
        backend: what runs the entries: "auto" for the fastest one by the profile beside the file,
            or the name of one; see `LoadedModel`.
        memory_cap: bytes that backends may add to the shared weights.
        only: names of the entries to load, all by default. Of a file of integers
            (`menu.save(path, integers=True)`) only the bits that these have are read.

    Raises:
        FileError: the file is missing, damaged, of another version, or does not fit the model.
        SpecError: the file has no entry of a name in `only`, or none is named.
        ModelError: an unknown backend, or one that is not installed.

    Example:
        >>> model = nestling.load("model.nest")
        >>> logits = model(images, latency_ms=8)
    """
    backends.check(backend)
    primitives.keep_more()  # before anything runs
    menu = Menu.load(path, model, only=only)
    with modelfile.guarded(Path(path)):
        loaded = LoadedModel(menu, packed=packed, backend=backend, memory_cap=memory_cap)
    loaded.prepare()
    if loaded.left_out:
        (name, entry), why = next(iter(loaded.left_out.items()))
        more = f", and {len(loaded.left_out) - 1} more" if len(loaded.left_out) > 1 else ""
        warnings.warn(
            f"not all runs on its backend, but on views: {entry!r} on {name}{more}: {why}",
            UserWarning,
            stacklevel=2,
        )
    return loaded


class LoadedModel:
    """All subnets of a menu, ready to run; each call chooses one by a budget.

    Subnets are plain modules of views of one copy of the weights. Choosing one is a look-up;
    nothing is switched, copied or reloaded.

    Args:
        menu: with its weights, as `fit`, `make_menu` or `load` give it.
        packed: the same as backend="packed".
        backend: what runs the entries. "eager" runs the views themselves. "packed" holds every
            entry as a contiguous copy: a small net then runs at full speed at batch 1 too.
            The others, see `nestling.backends`, hold copies in forms of their own. "auto" takes for
            every entry, and every batch size and number of threads that the profile has figures
            for, the fastest one of these. What copies costs the memory of all entries together, and
            does not follow when `menu.net` is moved or trained. Latencies of one backend are never
            used for another.
        memory_cap: bytes that backends may add to the shared weights; beyond it, what was used last
            is kept, and the rest is made again when it is called. Views cost nothing.

    Raises:
        ModelError: an unknown backend, or one that is not installed.
        BudgetError: a memory cap that is no number of bytes.
    """

    def __init__(
        self,
        menu: Menu,
        *,
        packed: bool = False,
        backend: str = AUTO,
        memory_cap: float | None = None,
    ) -> None:
        self.menu = menu
        self.backend = backends.check(_named(packed, backend))
        self.packed = self.backend == "packed"
        copied = self.packed and memory_cap is None
        self._modules = {entry.name: menu.module(entry.name, packed=copied) for entry in menu}
        others = any(key.backend != EAGER for key in menu.profile.tables)
        self._views_only = copied or self.backend == EAGER or (self.backend == AUTO and not others)
        self._shelf = Shelf(menu.net, self._modules.__getitem__, memory_cap)
        self._cap = memory_cap
        self._plans: dict[tuple[int, int], dict[str, str]] = {}
        whole = max(1, menu.net.space.macs(menu.net.space.full))
        prices: dict[str, dict[str, float]] = {
            "fraction": {entry.name: entry.macs / whole for entry in menu},
            "macs": {entry.name: entry.macs for entry in menu},
            "params": {entry.name: entry.params for entry in menu},
            "bytes": {entry.name: entry.bytes for entry in menu},
        }
        self._ladders = {cost: Ladder.of(cost, menu.entries, of) for cost, of in prices.items()}
        self._timed: dict[tuple[int, int, int], Ladder] = {}
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
        timed = latency_ms is not None or not self._views_only
        batch = _examples(args, kwargs) if timed else 1
        if subnet is None:
            entry = self.choose(
                fraction=fraction,
                latency_ms=latency_ms,
                macs=macs,
                params=params,
                bytes=bytes,
                batch=batch,
            )
            name = entry.name
        elif any(budget is not None for budget in budgets):
            raise BudgetError("a call takes a budget or subnet=, not both; leave one out")
        else:
            name = self.menu[subnet].name
        try:
            module = self._modules[name] if self._views_only else self._runner(name, batch)
            if isinstance(module, nn.Module):
                with torch.no_grad():
                    outputs = module(*args, **kwargs)
            else:
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

    def prepare(self, *batches: int) -> list[Ready]:
        """Make every entry ready to run, so that no call has to; `load` has done so.

        Args:
            *batches: numbers of examples in the calls to come; without one, those of the profile
                for "auto", and 1 for another backend. Only "compiled" needs to know them all: it
                runs calls with other numbers of examples on views.

        Returns:
            What is ready now, with its memory and the time to make it. What cannot run on its
            backend runs on views, and `left_out` says why.
        """
        threads = torch.get_num_threads()
        first = sorted(self.menu, key=lambda entry: not entry.offered)
        for batch in batches or self._known_batches(threads):
            chosen = self._plan(batch, threads)
            for entry in first:
                room = self._shelf.bytes + entry.bytes <= self._shelf.cap
                if chosen[entry.name] != EAGER and room and not self._views_only:
                    self._shelf.prepare(entry.name, chosen[entry.name], batch, threads)
        return self._shelf.ready

    @property
    def ready(self) -> list[Ready]:
        """What backends hold ready now, with its memory and the time that it took to make."""
        return self._shelf.ready

    @property
    def left_out(self) -> dict[tuple[str, str], str]:
        """Why an entry cannot run on a backend, by (backend, entry); it runs on views."""
        return dict(self._shelf.left_out)

    def backend_of(self, name: str, batch: int = 1) -> str:
        """Return what runs an entry with so many examples in a call, and the present threads.

        Raises:
            SpecError: there is no such entry.
        """
        threads = torch.get_num_threads()
        chosen = self._plan(batch, threads)[self.menu[name].name]
        return chosen if self._shelf.runs(name, chosen, batch, threads) else EAGER

    def latencies(self, batch: int = 1) -> Mapping[str, Latency]:
        """Return the latency of every entry on the backend that would run it.

        Raises:
            BudgetError: none was measured in this way.
        """
        tables = self._tables(batch)
        own = EAGER if self.backend == AUTO else self.backend
        if not tables if self.backend == AUTO else own not in tables:
            return self.menu.latencies(batch, own)  # says what is missing
        runs = {entry.name: self.backend_of(entry.name, batch) for entry in self.menu}
        return {
            name: tables[backend][name]
            for name, backend in runs.items()
            if name in tables.get(backend, {})
        }

    def measured(
        self, batch: int = 1, *, backends: Sequence[str] | None = None, **options: Any
    ) -> LoadedModel:
        """Return the model with latencies measured on this device; see `profiling.profiled`.

        Args:
            batch: examples in a call.
            backends: that are measured; by default the model's own, and views for "auto".
            **options: as `profiled` takes them.
        """
        own = EAGER if self.backend == AUTO else self.backend
        menu = profiled(self.menu, batch, backends=backends or (own,), **options)
        return LoadedModel(menu, backend=self.backend, memory_cap=self._cap)

    def __repr__(self) -> str:
        names = ", ".join(entry.name for entry in self.menu)
        return f"LoadedModel of {type(self.menu.net.model).__name__}: {names}"

    def _meant(self, kwargs: Mapping[str, Any]) -> str:
        """Return a suggestion where a keyword that the model does not know resembles a budget."""
        known = dict(self.menu.net.signature.kwargs)
        unknown = [name for name in kwargs if name not in known]
        near = (did_you_mean(name, [*COSTS, "subnet"]) for name in unknown)
        return next(filter(None, near), "")

    def _plan(self, batch: int, threads: int) -> dict[str, str]:
        """Return the backend of every entry, for so many examples and threads."""
        found = self._plans.get((batch, threads))
        if found is None:
            names = [entry.name for entry in self.menu]
            tables = self._tables(batch) or self._nearest_tables(batch, threads)
            found = plan(names, tables, self.backend)
            self._plans[batch, threads] = found
        return found

    def _tables(self, batch: int) -> Tables:
        key = functools.partial(self.menu.key, batch)
        return tables_for(self.menu.profile, key, self.backend)

    def _nearest_tables(self, batch: int, threads: int) -> Tables:
        """Return what was measured at the nearest batch, of what runs batches of any size."""
        known = self._known_batches(threads) if self.backend == AUTO else []
        near = min(known, key=lambda other: abs(other - batch), default=None)
        tables = {} if near is None else self._tables(near)
        return {name: each for name, each in tables.items() if backends.find(name).bound != "batch"}

    def _known_batches(self, threads: int) -> list[int]:
        """Return the batches that were measured here, on the model's own backend if it has one."""
        keys = self.menu.profile.tables
        here = (key for key in keys if key == self.menu.key(key.batch, key.backend))
        own = (key for key in here if self.backend in (AUTO, key.backend))
        found = sorted({key.batch for key in own if key.threads == threads})
        return found if found or self.backend == AUTO else [1]

    def _runner(self, name: str, batch: int) -> Call:
        """Return what runs an entry, for a call with so many examples."""
        threads = torch.get_num_threads()
        chosen = self._plan(batch, threads)[name]
        if chosen == EAGER:
            return self._modules[name]
        return self._shelf.find(name, chosen, batch, threads) or self._modules[name]

    def _timed_ladder(self, batch: int) -> Ladder:
        place = (batch, torch.get_num_threads(), self._shelf.changes)
        ladder = self._timed.get(place)
        if ladder is None:
            if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
                raise BudgetError(f"batch= is a whole number of at least 1, but it is {batch!r}")
            table = self.latencies(batch)
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


def _named(packed: bool, backend: str) -> str:
    """Return the backend that `packed=` and `backend=` ask for together.

    Raises:
        ModelError: they ask for different ones.
    """
    if packed and backend not in (AUTO, "packed"):
        raise ModelError(
            f"packed=True is the same as backend='packed', but backend= is {backend!r}; leave one "
            "out"
        )
    return "packed" if packed else backend


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
    if _is_float(outputs) and math.isfinite(outputs.sum()):
        return  # a single op was enough: NaN and infinity go through a sum
    floats = [leaf for leaf in tree_leaves(outputs) if _is_float(leaf)]
    if floats and all(bool(torch.isfinite(leaf).all()) for leaf in floats):
        return
    for leaf in tree_leaves((args, kwargs)):
        if _is_float(leaf) and not bool(torch.isfinite(leaf).all()):
            raise DataError(
                "inputs must be finite numbers, but they hold NaN or infinity; clean them"
            )


def _examples(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Return the number of examples in a call, without a look at the rest where one tells."""
    first = args[0] if args else None
    if isinstance(first, Tensor) and first.dim():
        return int(first.shape[0])
    return size((args, kwargs))


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
