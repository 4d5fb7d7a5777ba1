"""Settings of a channel execution, checked, and the counts that they ask for."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from nestling.errors import ModelError, SpecError, did_you_mean
from nestling.execution.saliency import KINDS
from nestling.spec import Axis, Space
from nestling.units import loose_axes

Keep: TypeAlias = float | Mapping[str, float]

SCOPES = ("axis", "net")
EXPLORATION = 0.1  # of the bandit; its rewards are about 1, so 1 would play idle units very often
FALL = 0.5  # of the steps before the final choice, in which the share falls from `start` to `keep`


@dataclass(frozen=True)
class Settings:
    """How units are chosen; see `docs/channel-execution.md`.

    Attributes:
        keep: share of the units of an axis that is executed, or one by axis name or pattern.
        saliency: what rewards a unit: "fisher", "taylor", "scale" or "random".
        scope: whether counts follow from each "axis" alone, or from the means of the whole "net".
        exploration: factor of the bandit's exploration term.
        discount: what a step leaves of the weight of earlier rewards.
        start: share executed at the beginning; None is `keep`.
        tune: share of the steps, at the end, in which the final choice alone is executed.
        every: steps for which a choice is kept.
    """

    keep: Keep = 0.5
    saliency: str = "fisher"
    scope: str = "axis"
    exploration: float = EXPLORATION
    discount: float = 1.0
    start: float | None = None
    tune: float = 0.25
    every: int = 1

    def __post_init__(self) -> None:
        self._check_shares()
        for name, value, known in (
            ("saliency", self.saliency, KINDS),
            ("scope", self.scope, SCOPES),
        ):
            if value not in known:
                raise ModelError(
                    f"{name}= is one of {', '.join(known)}, not {value!r}"
                    f"{did_you_mean(str(value), known)}"
                )
        if not _is_number(self.exploration) or not 0 <= self.exploration < math.inf:
            raise ModelError(f"exploration= is a number of at least 0, not {self.exploration!r}")
        if not _is_number(self.discount) or not 0 < self.discount <= 1:
            raise ModelError(f"discount= is above 0 and at most 1, but it is {self.discount!r}")
        if not _is_number(self.tune) or not 0 <= self.tune < 1:
            raise ModelError(
                f"tune= is a share of the steps of at least 0 and below 1, but it is {self.tune!r}"
            )
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ModelError(f"every= is a whole number of steps from 1 on, not {self.every!r}")

    def _check_shares(self) -> None:
        shares = list(self.keep.values()) if isinstance(self.keep, Mapping) else [self.keep]
        if not shares:
            raise ModelError("keep= names at least one axis, but it is empty; try keep=0.5")
        for share in shares:
            if not _is_number(share) or not 0 < share <= 1:
                raise ModelError(
                    f"keep= is a share of the units above 0 and at most 1, but it is {share!r}; "
                    "0.5 executes half of the units of each axis"
                )
        most = max(shares)
        if self.start is not None and not (_is_number(self.start) and most <= self.start <= 1):
            raise ModelError(
                f"start= is the share executed at the beginning, from keep= ({most:g}) to 1, but "
                f"it is {self.start!r}"
            )

    def axes(self, space: Space) -> list[Axis]:
        """Return the axes whose units the bandit looks at: all whose order is free.

        Raises:
            ModelError: none of them can be executed in part.
            SpecError: a pattern of `keep` that matches none.
        """
        found = loose_axes(space)
        if isinstance(self.keep, Mapping):
            for pattern in self.keep:
                if not any(fnmatch.fnmatchcase(axis.name, str(pattern)) for axis in found):
                    near = did_you_mean(str(pattern), [axis.name for axis in found])
                    raise SpecError(f"keep= names no axis with {pattern!r}{near}")
        if not found:
            raise ModelError(
                "channel execution needs an axis of which any part can be executed, but this "
                f"net has only {', '.join(map(repr, space.axes))}; freeze= less, or train it "
                'with method="uniform"'
            )
        return found

    def counts(self, axes: list[Axis], done: float = 1.0) -> dict[str, int]:
        """Return how many units of each axis are executed, in steps that it allows.

        Args:
            axes: as `axes` returns them.
            done: share of the steps before the final choice.

        Raises:
            SpecError: a share is less than the least count of an axis.
        """
        return {axis.name: self._count(axis, done) for axis in axes}

    def _count(self, axis: Axis, done: float) -> int:
        share = self._share(axis)
        if share is None:
            return axis.size
        if round(share * axis.size) < axis.counts[0]:
            raise SpecError(
                f"keep={share:g} is {share * axis.size:g} of the {axis.size} {axis.kind} of axis "
                f"{axis.name!r}, but its counts go in steps of {axis.counts[0]}; keep at least "
                f"{axis.counts[0] / axis.size:.2g} of it, or make the supernet with a smaller step="
            )
        first = share if self.start is None else self.start
        now = share + (first - share) * max(0.0, 1 - done / FALL)
        return axis.nearest(now * axis.size)

    def _share(self, axis: Axis) -> float | None:
        """Return the share of an axis; None where it is executed whole."""
        if not isinstance(self.keep, Mapping):
            return self.keep
        named = self.keep.get(axis.name)
        if named is not None:
            return named
        matching = [v for p, v in self.keep.items() if fnmatch.fnmatchcase(axis.name, str(p))]
        return matching[0] if matching else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
