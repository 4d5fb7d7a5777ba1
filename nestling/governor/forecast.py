"""Forecast: what each entry of a menu takes on this device, for every number of examples a call."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from nestling.errors import BudgetError


@dataclass(frozen=True)
class Forecast:
    """The entries worth choosing, fastest first; a place in this list is a rung.

    An entry that is no faster than a better one at any batch has no rung.

    Attributes:
        names: of the entries, by rung.
        scores: what makes one better than another: accuracies (0 to 1), or sizes.
        batches: examples a call that were measured, ascending, the first is 1.
        times: by rung, milliseconds of a call with 0, 1, 2 ... examples. Between two measured
            batches they lie on the straight line: a call costs something for itself and something
            for each example; or at the upper one, where batches are filled up to that. Beyond the
            largest measured batch there are none.
        speeds: by rung, the most examples a millisecond with at most 0, 1, 2 ... a call.
        costs: what else entries cost, by its name and by rung: macs, params, bytes, fraction.
        joules: by rung, measured energy of one example; None where the machine has no counter.
    """

    names: tuple[str, ...]
    scores: tuple[float, ...]
    batches: tuple[int, ...]
    times: tuple[tuple[float, ...], ...]
    speeds: tuple[tuple[float, ...], ...] = field(repr=False)
    costs: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    joules: tuple[float, ...] | None = None

    @classmethod
    def of(
        cls,
        scores: Mapping[str, float],
        milliseconds: Mapping[int, Mapping[str, float]],
        *,
        costs: Mapping[str, Mapping[str, float]] | None = None,
        joules: Mapping[str, float] | None = None,
        fixed: Mapping[str, Collection[int]] | None = None,
    ) -> Forecast:
        """Return the forecast of measured entries.

        Args:
            scores: name -> accuracy, or another score; larger is better.
            milliseconds: examples a call -> name -> median milliseconds. An entry counts that has
                been measured at every batch.
            costs: cost -> name -> value.
            joules: name -> measured joules an example.
            fixed: name -> batches to which fewer examples are filled up, so that they take as long.

        Raises:
            BudgetError: nothing was measured at batch 1, or a figure is no positive number.

        Example:
            >>> found = Forecast.of({"full": 0.9, "half": 0.8}, {1: {"full": 8.0, "half": 4.0},
            ...                                                  3: {"full": 20.0, "half": 8.0}})
            >>> found.names, found.times[0]
            (('half', 'full'), (0.0, 4.0, 6.0, 8.0))
        """
        batches = tuple(sorted(milliseconds))
        if not batches or batches[0] != 1:
            raise BudgetError(
                "the engine needs latencies measured on this device with 1 example a call; run "
                "`nestling profile FILE --batch 1 --batch 8 --batch 32`"
            )
        names = [name for name in scores if all(name in row for row in milliseconds.values())]
        rows = {name: [milliseconds[batch][name] for batch in batches] for name in names}
        for name, row in rows.items():
            if not all(0 < value < math.inf for value in row):
                raise BudgetError(
                    f"milliseconds are positive numbers, but those of {name!r} are {row}; measure "
                    "again with `nestling profile`"
                )
        kept = _worth_choosing(scores, rows)
        if not kept:
            raise BudgetError(
                "no entry of the menu was measured at every batch "
                f"({', '.join(map(str, batches))}); run `nestling profile` again"
            )
        times = tuple(_between(batches, rows[name], (fixed or {}).get(name, ())) for name in kept)
        prices = {
            cost: tuple(of[name] for name in kept)
            for cost, of in (costs or {}).items()
            if all(name in of for name in kept)
        }
        known = joules is not None and all(name in joules for name in kept)
        return cls(
            names=tuple(kept),
            scores=tuple(scores[name] for name in kept),
            batches=batches,
            times=times,
            speeds=tuple(map(_speeds, times)),
            costs=prices,
            joules=tuple(joules[name] for name in kept) if joules is not None and known else None,
        )

    @property
    def largest(self) -> int:
        """The largest number of examples that one call may have."""
        return self.batches[-1]

    @property
    def top(self) -> int:
        """The rung of the best entry."""
        return len(self.names) - 1

    def batch_within(self, rung: int, milliseconds: float) -> int:
        """Return how many examples a rung runs in a time; 0 if not even one."""
        return bisect_right(self.times[rung], milliseconds) - 1

    def capacity(self, rung: int) -> float:
        """Return the most examples a second that a rung runs."""
        return 1000 * self.speeds[rung][-1]

    def rung(self, name: str) -> int:
        """Return the place of an entry.

        Raises:
            BudgetError: it has none.
        """
        if name not in self.names:
            raise BudgetError(
                f"no entry {name!r} is on offer on this device; these are: {', '.join(self.names)}"
            )
        return self.names.index(name)


def _worth_choosing(scores: Mapping[str, float], rows: Mapping[str, Sequence[float]]) -> list[str]:
    """Return the names that no better one beats at every batch, fastest first."""
    ranked = sorted(rows, key=lambda name: (-scores[name], rows[name][-1]))
    kept: list[str] = []
    for name in ranked:
        faster = (
            any(a < b for a, b in zip(rows[name], rows[other], strict=True)) for other in kept
        )
        if all(faster):
            kept.append(name)
    return kept[::-1]


def _between(
    batches: Sequence[int], row: Sequence[float], fixed: Collection[int] = ()
) -> tuple[float, ...]:
    """Return the time of every batch up to the largest: rising, on straight lines between.

    Below a fixed one it is that one's.
    """
    rising = [max(row[: place + 1]) for place in range(len(row))]
    times = [0.0]
    for batch in range(1, batches[-1] + 1):
        above = bisect_left(batches, batch)
        if batches[above] == batch or batches[above] in fixed:
            times.append(rising[above])
            continue
        low, high = batches[above - 1], batches[above]
        share = (batch - low) / (high - low)
        times.append(rising[above - 1] + share * (rising[above] - rising[above - 1]))
    return tuple(times)


def _speeds(times: Sequence[float]) -> tuple[float, ...]:
    """Return the most examples a millisecond that batches up to each size reach."""
    best, found = 0.0, [0.0]
    for batch, time in enumerate(times[1:], 1):
        best = max(best, batch / time)
        found.append(best)
    return tuple(found)
