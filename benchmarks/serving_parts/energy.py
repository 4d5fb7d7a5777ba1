"""Energy: what the processor's own counter says, where there is one; never an estimate."""

from __future__ import annotations

from pathlib import Path

COUNTERS = Path("/sys/class/powercap")
MISSING = "not available here"


class Meter:
    """Joules of the processor packages, from the kernel's RAPL counters.

    Args:
        folder: where the counters are.

    Attributes:
        told: where the figures come from, or that there are none.
    """

    def __init__(self, folder: Path = COUNTERS) -> None:
        self._counters = [
            place for place in sorted(folder.glob("intel-rapl:?")) if _read(place) is not None
        ]
        self._before: list[int | None] = []
        self.told = "processor packages (RAPL)" if self._counters else MISSING

    def start(self) -> None:
        """Begin to count."""
        self._before = [_read(place) for place in self._counters]

    def joules(self) -> float | None:
        """Return the joules since the start; None where they cannot be measured."""
        total = 0
        for place, before in zip(self._counters, self._before, strict=True):
            now = _read(place)
            if now is None or before is None:
                return None
            if now < before:  # it begins again at 0
                now += _read(place, "max_energy_range_uj") or 0
            total += now - before
        return total / 1e6 if self._counters else None


def _read(place: Path, name: str = "energy_uj") -> int | None:
    try:
        return int((place / name).read_text())
    except (OSError, ValueError):
        return None
