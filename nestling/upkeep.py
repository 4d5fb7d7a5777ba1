"""Upkeep: what a backend costs beside time: memory for the whole menu, switching, energy."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from nestling.energy import NOT_HERE


@dataclass(frozen=True)
class Upkeep:
    """What a backend was measured to cost under the conditions of a profile's table.

    Attributes:
        bytes: by which the process grew to hold the whole menu ready, beside the shared weights.
        ready_seconds: that it took to make one entry ready, on average.
        switch_us: median microseconds to pick an entry that is held ready.
        energy: what the joules were read from; "not available here" where nothing could be read.
        joules: for one example, by entry; empty where they cannot be measured.
        minutes: of a sustained measurement; 0 for a short one.
        drift: by how much the calls were slower at its end than at its beginning: 0.1 is 10 %; None
            for a short one.
        left_out: why an entry does not run on the backend, by entry.

    Raises:
        ValueError: figures that are not finite, or negative.
    """

    bytes: int = 0
    ready_seconds: float = 0.0
    switch_us: float = 0.0
    energy: str = NOT_HERE
    joules: Mapping[str, float] = field(default_factory=dict)
    minutes: float = 0.0
    drift: float | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("bytes", "ready_seconds", "switch_us", "minutes"):
            _check_number(name, getattr(self, name))
        for name, joules in self.joules.items():
            _check_number(f"joules of {name!r:.80}", joules)
        if self.drift is not None:
            _check_number("drift", self.drift, least=-1)
        texts = [self.energy, *self.left_out, *self.left_out.values()]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"energy and left_out hold text, not {self.left_out!r:.80}")

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Upkeep:
        """Return the upkeep that `to_json` wrote.

        Raises:
            ValueError: the value is not of that form.
        """
        known = set(cls.__dataclass_fields__)
        if not isinstance(value, dict) or set(value) != known:
            raise ValueError(f"an upkeep has {sorted(known)}, not {value!r:.80}")
        if not isinstance(value["joules"], dict) or not isinstance(value["left_out"], dict):
            raise ValueError("joules and left_out of an upkeep are mappings")
        return cls(**value)


def _check_number(name: str, value: Any, least: float = 0) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not least <= value <= sys.float_info.max:
        raise ValueError(f"{name} must be a finite number of at least {least}, not {value!r:.80}")
