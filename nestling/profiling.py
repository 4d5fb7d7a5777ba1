"""Profiling: a menu measured on this device, on several backends within one run.

All entries on all backends are timed round by round in shuffled order, so that what slows the
machine down hits them alike and the fastest one is the fastest. Where there are several backends,
each sample follows calls of its own for some milliseconds: the threads of the one before may not
sleep yet.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nestling import backends as known
from nestling.backends.shelf import Shelf
from nestling.backends.subject import Call
from nestling.costs import latency
from nestling.costs.latency import Latency
from nestling.energy import NOT_HERE, Meter, joules_of
from nestling.errors import ModelError
from nestling.menu import LATENCY_SECONDS, Menu
from nestling.timing import check_batch, prepared, waiting
from nestling.upkeep import Upkeep

PICKS = 200  # of an entry, to time the switching


def profiled(
    menu: Menu,
    batch: int = 1,
    *,
    backends: Sequence[str] = ("eager",),
    seconds: float = LATENCY_SECONDS,
    precision: float = 0.03,
    sustained: float = 0,
    meter: Meter | None = None,
    say: Callable[[str], None] | None = None,
) -> Menu:
    """Return the menu with latencies, memory and energy measured on this device, by backend.

    Args:
        menu: with its weights.
        batch: examples in a call.
        backends: what runs the entries, see `nestling.backends.names()`.
        seconds: longest time for one entry on one backend.
        precision: half width of the 95 % interval, relative to the median.
        sustained: minutes to go on measuring, so that the processor is as warm as in service. The
            figures are those of the second half, and the drift since the beginning is noted.
        meter: of the device's energy; see `nestling.energy.find_meter`.
        say: is told which backend runs no entry, and why; it is left out.

    Raises:
        ModelError: an unknown backend, or one that is not installed; or inputs cannot be made up,
            or the model fails on those that were; or no entry runs on any of the backends.
        SpecError: the units were reordered or the weights changed since the menu was made.

    Example:
        >>> menu = profiled(menu, 32, backends=("eager", "onnxruntime"))
        >>> nestling.LoadedModel(menu).backend_of("full", batch=32)
        'onnxruntime'
    """
    check_batch(batch)
    menu.check_current()
    names = list(dict.fromkeys(map(_checked, backends)))
    bench = _Bench.of(menu, batch, names)
    profile = menu.profile
    for name in names:
        if not bench.entries(name):
            profile = profile.without_table(menu.key(batch, name))  # of an earlier time
            if say is not None:
                say(f"left out: {bench.failure(name)}")
    names = [name for name in names if bench.entries(name)]
    drifts: Mapping[str, float] = {}
    settle = latency.SETTLE_SECONDS if len(names) > 1 else 0.0  # one's threads slow no other down
    conditions: dict[str, Any] = {"settle": settle, "synchronize": waiting(bench.device)}
    if sustained:
        found, drifts = latency.sustained(bench.calls, seconds=60 * sustained, **conditions)
    else:
        spent = seconds * len(bench.calls)
        found = latency.measure(bench.calls, precision=precision, seconds=spent, **conditions)
    tables: dict[str, dict[str, Latency]] = {}
    upkeeps: dict[str, Upkeep] = {}
    for name in names:
        entries = [entry.name for entry in bench.entries(name)]
        tables[name] = {entry: found[f"{name}/{entry}"] for entry in entries}
        upkeeps[name] = bench.upkeep(name, meter)
        if drifts:
            drift = statistics.median(drifts[f"{name}/{entry}"] for entry in entries)
            upkeeps[name] = replace(upkeeps[name], minutes=float(sustained), drift=drift)
    return replace(menu, profile=profile).with_tables(batch, tables, upkeeps)


def _checked(name: str) -> str:
    if name == known.AUTO:
        raise ModelError(
            "auto is the fastest backend by what was measured, so it cannot be measured itself; "
            f"name some of {', '.join(known.names())}"
        )
    return known.check(name)


@dataclass(frozen=True)
class _Bench:
    """Entries on backends, ready to be timed.

    Attributes:
        menu: that is measured.
        batch: examples in a call.
        shelf: what holds the entries ready.
        calls: by `BACKEND/ENTRY`.
    """

    menu: Menu
    batch: int
    shelf: Shelf
    calls: Mapping[str, Callable[[], object]]

    @classmethod
    def of(cls, menu: Menu, batch: int, names: Sequence[str]) -> _Bench:
        """Make every entry ready on every backend; the smallest first, it fails soonest.

        Raises:
            ModelError: inputs cannot be made up, or the model fails on those that were; or no entry
                runs on any backend.
        """
        modules = {entry.name: menu.module(entry.name) for entry in menu}
        shelf = Shelf(menu.net, modules.__getitem__)
        device = next(menu.net.parameters()).device
        args, kwargs = menu.net.signature.example(batch, device)
        prepared(modules[menu.full.name], args, kwargs)  # what is wrong with the model shows here
        calls: dict[str, Callable[[], object]] = {}
        for name in names:
            for entry in reversed(menu.entries):
                ready = shelf.prepare(entry.name, name, batch, torch.get_num_threads())
                if ready is not None:
                    calls[f"{name}/{entry.name}"] = _call(ready.run, args, kwargs)
        made = cls(menu, batch, shelf, calls)
        if not calls:
            raise ModelError("; ".join(map(made.failure, names)))
        return made

    @property
    def device(self) -> torch.device:
        """Where the menu's weights are."""
        return next(self.menu.net.parameters()).device

    def entries(self, backend: str) -> list[Any]:
        """Return the entries that run on a backend."""
        return [entry for entry in self.menu if f"{backend}/{entry.name}" in self.calls]

    def failure(self, backend: str) -> str:
        """Return why no entry runs on a backend."""
        why = self.shelf.left_out[backend, self.menu.full.name]
        return f"no entry runs on the backend {backend}: {why}"

    def upkeep(self, backend: str, meter: Meter | None) -> Upkeep:
        """Measure what a backend costs beside time."""
        held = [each for each in self.shelf.ready if each.place.backend == backend]
        joules = {}
        if meter is not None:
            for entry in self.entries(backend):
                call = self.calls[f"{backend}/{entry.name}"]
                used = joules_of(call, meter, synchronize=waiting(self.device))
                joules[entry.name] = used / self.batch
        return Upkeep(
            bytes=sum(each.bytes for each in held),
            ready_seconds=statistics.mean(each.seconds for each in held),
            switch_us=self._switch(backend),
            energy=NOT_HERE if meter is None else meter.name,
            joules=joules,
            left_out={
                entry: why for (name, entry), why in self.shelf.left_out.items() if name == backend
            },
        )

    def _switch(self, backend: str) -> float:
        """Return the median microseconds to pick an entry that is held ready."""
        names = [entry.name for entry in self.entries(backend)]
        threads = torch.get_num_threads()
        taken = []
        for number in range(PICKS):
            start = time.perf_counter_ns()
            self.shelf.find(names[number % len(names)], backend, self.batch, threads)
            taken.append((time.perf_counter_ns() - start) / 1000)
        return statistics.median(taken)


def _call(run: Call, args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return run(*args, **kwargs)

    return call
