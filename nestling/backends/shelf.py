"""The shelf: the entries of a menu that are held ready to run, within a cap on their memory.

Runtimes copy weights: a menu costs as many copies as it has entries. Where that is too much,
what was used last stays and the rest is made again when it is called.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from nestling import backends
from nestling.backends.subject import Call, Conversions, Subject
from nestling.costs.memory import resident_bytes
from nestling.errors import BudgetError, ModelError, NestlingError, brief
from nestling.exporters.certificate import distance, tolerance_of
from nestling.supernet import Supernet
from nestling.weights import tensors_of


@dataclass(frozen=True)
class Place:
    """What a prepared entry is made for; `batch` and `threads` are 0 where they do not matter."""

    entry: str
    backend: str
    batch: int = 0
    threads: int = 0


@dataclass
class Ready:
    """An entry that is ready to run.

    Attributes:
        place: entry and backend, with batch and threads where it is bound to these.
        run: takes the model's inputs.
        bytes: by which the process grew when it was made, and no less than the weights where it
            has copies of these.
        seconds: that it took to make, beyond the conversion.
        used: larger for what was used later.
    """

    place: Place
    run: Call = field(repr=False)
    bytes: int = 0
    seconds: float = 0.0
    used: int = field(default=0, repr=False)


class Shelf:
    """The prepared entries of a menu.

    Args:
        net: whose weights they are.
        module: returns the subnet of an entry, as views.
        cap: bytes that all entries together may add; None for no limit.

    Attributes:
        left_out: why an entry cannot run on a backend, by (backend, entry).
        changes: how often something was made ready, let go of or left out.

    Raises:
        BudgetError: the cap is no number of bytes.
    """

    def __init__(
        self, net: Supernet, module: Callable[[str], nn.Module], cap: float | None = None
    ) -> None:
        if cap is not None and not _is_size(cap):
            raise BudgetError(
                f"memory_cap= is a number of bytes, such as 2**30, or None, but it is {cap!r:.80}"
            )
        self.net = net
        self.cap = math.inf if cap is None else cap
        self.left_out: dict[tuple[str, str], str] = {}
        self.changes = 0
        self._module = module
        self._ready: dict[Place, Ready] = {}
        self._conversions = Conversions()
        self._lock = threading.Lock()
        self._clock = itertools.count(1)
        self._process = os.getpid()
        self._lost: list[Ready] = []  # of the process that this one was forked from

    @property
    def ready(self) -> list[Ready]:
        """What is held ready now, in the order in which it was made."""
        return list(self._ready.values())

    @property
    def bytes(self) -> int:
        """What all that is ready adds to the memory of the process."""
        return sum(each.bytes for each in self.ready)

    def find(self, entry: str, backend: str, batch: int, threads: int) -> Call | None:
        """Return what runs an entry; made now where that is quick, None where it is not there.

        Compiled code takes seconds to make, so that only `prepare` makes it.
        """
        if os.getpid() != self._process:
            self._start_anew()
        place = _place(entry, backend, batch, threads)
        found = self._ready.get(place)
        if found is None:
            if (backend, entry) in self.left_out or place.batch:
                return None
            found = self.prepare(entry, backend, batch, threads)
            if found is None:
                return None
        found.used = next(self._clock)
        return found.run

    def runs(self, entry: str, backend: str, batch: int, threads: int) -> bool:
        """Return whether a call of an entry would run on a backend."""
        place = _place(entry, backend, batch, threads)
        return place in self._ready or not (place.batch or (backend, entry) in self.left_out)

    def prepare(self, entry: str, backend: str, batch: int, threads: int) -> Ready | None:
        """Make an entry ready, and let go of others where the cap asks for it.

        Returns:
            It; None where it cannot run, which `left_out` explains, or is larger than the cap.
        """
        place = _place(entry, backend, batch, threads)
        with self._lock:
            if place in self._ready:
                return self._ready[place]
            if (backend, entry) in self.left_out:
                return None
            self.changes += 1
            subject = Subject(
                entry, self._module(entry), self.net, batch, threads, self._conversions
            )
            try:
                made = _made(subject, place)
            except NestlingError as error:
                self.left_out[backend, entry] = str(error)
                return None
            except Exception as error:  # noqa: BLE001  (a runtime's own; the others still run)
                self.left_out[backend, entry] = f"{backend} fails on {entry!r}: {brief(error)}"
                return None
            if made.bytes > self.cap:
                self.left_out[backend, entry] = (
                    f"{entry!r} on {backend} takes {made.bytes} bytes, and the cap is {self.cap:g}"
                )
                return None
            self._let_go(made.bytes)
            made.used = next(self._clock)
            self._ready[place] = made
            return made

    def _let_go(self, coming: int) -> None:
        """Drop what was not used for longest, until so many bytes more are under the cap."""
        while self._ready and self.bytes + coming > self.cap:
            oldest = min(self._ready.values(), key=lambda each: each.used)
            del self._ready[oldest.place]

    def _start_anew(self) -> None:
        """Forget what a fork has inherited: the threads of its runtimes are not there any more."""
        self._lost += self._ready.values()  # their ends would wait for those threads
        self._ready = {}
        self._lock = threading.Lock()
        self._process = os.getpid()


def _made(subject: Subject, place: Place) -> Ready:
    backend = backends.find(place.backend)
    if backend.missing:
        raise ModelError(backend.missing)
    backend.convert(subject)
    args, kwargs = subject.example()
    if not backend.copies:
        return Ready(place, backend.prepare(subject))
    foreign = bool(backend.bound)  # a packed copy grows by its tensors, which are counted
    before = resident_bytes() if foreign else None
    start = time.perf_counter()
    with torch.no_grad():
        run = backend.prepare(subject)
        found = run(*args, **kwargs)  # a runtime makes its work space at the first call
    seconds = time.perf_counter() - start
    after = resident_bytes() if foreign else None
    if foreign:
        _check_same(subject, found, args, kwargs)
    grown = 0 if before is None or after is None else after - before
    return Ready(place, run, max(grown, _weights(subject.module)), seconds)


def _check_same(subject: Subject, found: Any, args: Any, kwargs: Any) -> None:
    """Check that a backend computes what the subnet computes, on made-up inputs.

    Raises:
        ModelError: it does not.
    """
    with torch.no_grad():
        wanted = subject.module(*args, **kwargs)
    apart, allowed = distance(wanted, found)[1], tolerance_of(subject.module)
    if not apart <= allowed:
        raise ModelError(
            f"what runs an entry computes what its subnet computes, within {allowed:g} of the "
            f"largest output, but for {subject.name!r} it differs by {apart:.3g}; use another "
            "backend"
        )


@functools.lru_cache(maxsize=4096)  # every call asks
def _place(entry: str, backend: str, batch: int, threads: int) -> Place:
    bound = backends.find(backend).bound
    return Place(entry, backend, batch if bound == "batch" else 0, threads if bound else 0)


def _weights(module: nn.Module) -> int:
    return sum(each.numel() * each.element_size() for each in tensors_of(module).values())


def _is_size(cap: object) -> bool:
    number = isinstance(cap, int | float) and not isinstance(cap, bool)
    return number and cap >= 0  # type: ignore[operator]
