"""A clock for the parts of a step: what selection, saliency and gathering take of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

EVERY = 20  # steps of which one is timed: on a GPU, timing waits for the device
UNTIMED = 2  # the first steps, in which memory is found


class Clock:
    """Times the parts of some steps, on a GPU too.

    Args:
        device: that computes.

    Attributes:
        every: steps of which one is timed.
        seconds: that parts took in the timed steps, by name.
        whole: seconds of the timed steps.
        timed: how many these are.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.every = EVERY
        self.seconds: dict[str, float] = {}
        self.whole = 0.0
        self.timed = 0
        self._steps = 0
        self._running = False
        self._start = 0.0

    def start(self) -> None:
        """Begin a step."""
        self._running = self._steps >= UNTIMED and (self._steps - UNTIMED) % self.every == 0
        self._steps += 1
        if self._running:
            self._start = self._now()

    def stop(self) -> None:
        """End the step."""
        if self._running:
            self.whole += self._now() - self._start
            self.timed += 1
            self._running = False

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time of a block to a part, where this step is timed."""
        if not self._running:
            yield
            return
        start = self._now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - start

    def forget(self) -> None:
        """Begin anew."""
        self.seconds, self.whole, self.timed = {}, 0.0, 0

    def shares(self) -> dict[str, float]:
        """Return what share of the timed steps each part took; nothing if none was timed."""
        return {name: spent / self.whole for name, spent in self.seconds.items() if self.whole}

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
