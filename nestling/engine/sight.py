"""Sight: what an engine does just now, in numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

ANSWERS = 4096  # the last answers, which percentiles rest on


@dataclass(slots=True)
class Counts:
    """How many requests ended how, and how often the entry changed."""

    answered: int = 0
    failed: int = 0
    expired: int = 0
    cancelled: int = 0
    refused: int = 0
    switches: int = 0
    revived: int = 0

    def copy(self) -> Counts:
        """Return the numbers of now."""
        return replace(self)


class Answer(NamedTuple):
    """When a request was answered, in how many milliseconds, and by which rung."""

    time: float
    ms: float
    rung: int


@dataclass(frozen=True)
class Sight:
    """What an engine does at a moment.

    Attributes:
        entry: the subnet in use; empty before the first choice.
        queue: requests that wait.
        rate: arrivals a second, smoothed.
        p50_ms: half of the last answers took at most so long; None before the first.
        p95_ms: the same for 95 % of them.
        p99_ms: the same for 99 % of them.
        score: mean accuracy (as the menu has it) of the subnets that gave the last answers.
        counts: since the start.
        reason: why the subnet is in use, in words.
    """

    entry: str
    queue: int
    rate: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    score: float | None
    counts: Counts
    reason: str


def percentile(values: Iterable[float], share: float) -> float | None:
    """Return the smallest value that a share of all is at most; None of nothing.

    Args:
        values: in any order.
        share: 0 to 100.

    Example:
        >>> percentile([3.0, 1.0, 2.0, 4.0], 50)
        2.0
    """
    ordered: Sequence[float] = sorted(values)
    if not ordered:
        return None
    return ordered[max(0, -int(-len(ordered) * share // 100) - 1)]
