"""Energy: a cap on the joules of an example, or on the watts that all of them take together.

Only measured energy counts. The part of a machine's power that it takes at rest is none of a
request's, so that watts are those above rest, as profiles have them.
"""

from __future__ import annotations

from nestling.errors import BudgetError
from nestling.governor.checks import positive
from nestling.governor.forecast import Forecast
from nestling.governor.records import Policy


def energy(
    forecast: Forecast, *, joules: float | None = None, watts: float | None = None
) -> Policy:
    """Return the policy that keeps the energy of each example, or the power, under a cap.

    Args:
        forecast: of the menu, with measured joules.
        joules: most for one example.
        watts: most for all examples that arrive in a second.

    Raises:
        BudgetError: no cap is given, energy was not measured on this machine, or not even the entry
            that takes least is within the cap.
    """
    if joules is None and watts is None:
        raise BudgetError("the objective 'energy' needs a cap; give joules= or watts=")
    most = positive("joules", joules) if joules is not None else float("inf")
    power = positive("watts", watts) if watts is not None else float("inf")
    spends = forecast.joules
    if spends is None:
        raise BudgetError(
            "energy is not available here: the profile of this device has no measured joules, and "
            "none are made up; choose another objective, or profile on a machine with an energy "
            "counter (RAPL, NVML)"
        )
    thriftiest = min(range(len(spends)), key=lambda rung: spends[rung])
    caps = {"joules an example": joules, "watts": watts}
    goal = " and ".join(f"{cap:g} {unit}" for unit, cap in caps.items() if cap is not None)
    if spends[thriftiest] > most:
        raise BudgetError(
            f"no entry meets {goal}: the thriftiest here is {forecast.names[thriftiest]!r} with "
            f"{spends[thriftiest]:.3g} joules, and the fastest is {forecast.names[0]!r}; allow more"
        )
    largest = forecast.largest
    speeds = tuple(row[-1] for row in forecast.speeds)

    def judge(
        rung: int, usual: float, excess: float, rate: float, spent: float
    ) -> tuple[bool, int]:
        each = spends[rung] * spent
        flow = min(1000 * rate, 1000 * speeds[rung] / usual)
        return each <= most and each * flow <= power, largest

    return Policy(goal, forecast, judge)
