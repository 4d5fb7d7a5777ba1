"""Stopwatch: the time that a training spends, by part."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch


class Stopwatch:
    """Counts time to parts of a work that follow one another.

    On a CPU this is the processor time of this process, which other programs lengthen little. On a
    GPU the process does not wait for its work, and where it does it spins: there it is wall-clock
    time, taken when the GPU has done what it was given.

    Args:
        device: that computes.

    Attributes:
        seconds: by part.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._since = self._now()

    def spent(self, name: str) -> None:
        """Count the time since the last count to a part."""
        before, self._since = self._since, self._now()
        self._add(name, self._since - before)

    @contextmanager
    def apart(self, name: str) -> Iterator[None]:
        """Count the time of a block to a part, and not to the one around it."""
        start = self._now()
        try:
            yield
        finally:
            taken = self._now() - start
            self._add(name, taken)
            self._since += taken

    def _add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def _now(self) -> float:
        if self.device.type != "cuda":
            return time.process_time()
        with suppress(RuntimeError):  # a GPU that has failed: the error that ended the part tells
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
