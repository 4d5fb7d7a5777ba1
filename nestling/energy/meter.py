"""Meters: counters of joules that only rise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass
class Meter:
    """Joules that a device has used since some time in the past.

    Attributes:
        name: what is read, such as "rapl: package-0, dram".
        counters: each returns a whole number.
        unit: joules in one count.
        wraps: the count after which each counter starts again from 0; 0 for never.

    Example:
        >>> counts = iter([1_000_000, 3_000_000])
        >>> meter = Meter("made up", [lambda: next(counts)], 1e-6, [0])
        >>> meter.joules(), meter.joules()
        (0.0, 2.0)
    """

    name: str
    counters: Sequence[Callable[[], int]]
    unit: float
    wraps: Sequence[int]
    _last: list[int] = field(default_factory=list, repr=False)
    _total: int = field(default=0, repr=False)

    def joules(self) -> float:
        """Return the joules since the first reading; a counter may have wrapped once in between."""
        now = [read() for read in self.counters]
        for count, last, wrap in zip(now, self._last, self.wraps, strict=False):
            step = count - last
            self._total += step + wrap if step < 0 else step
        self._last = now
        return self._total * self.unit
