"""Throughput: the best entry that keeps up with what arrives, or with a given rate."""

from __future__ import annotations

from nestling.errors import BudgetError
from nestling.governor.checks import positive
from nestling.governor.forecast import Forecast
from nestling.governor.records import Policy

ROOM = 1.1  # times the arrivals that a rung must be able to run
BACKLOG = 1000.0  # milliseconds within which a queue must be run


def throughput(forecast: Forecast, *, per_second: float | None = None) -> Policy:
    """Return the policy that keeps up, with batches as large as were measured.

    Args:
        forecast: of the menu.
        per_second: examples that must be possible in a second, whatever arrives now.

    Raises:
        BudgetError: no entry is that fast (the message names the fastest).
    """
    least = 0.0 if per_second is None else positive("per_second", per_second)
    goal = f"at least {least:g} a second" if least else "as many as arrive"
    if forecast.capacity(0) < least:
        raise BudgetError(
            f"no entry runs {least:g} examples a second: the fastest here is "
            f"{forecast.names[0]!r} with {forecast.capacity(0):.4g}; ask for less, or measure "
            "larger batches with `nestling profile`"
        )
    largest = forecast.largest
    speeds = tuple(row[-1] for row in forecast.speeds)

    def judge(
        rung: int, usual: float, excess: float, rate: float, spent: float
    ) -> tuple[bool, int]:
        return speeds[rung] / usual >= max(least / 1000, ROOM * rate), largest

    def relief(
        rung: int,
        usual: float,
        excess: float,
        fast: float,
        queue: int,
        waited: float,
        rate: float,
    ) -> int:
        return largest if queue <= max(speeds[rung] / usual * BACKLOG, largest) else 0

    return Policy(goal, forecast, judge, relief)
