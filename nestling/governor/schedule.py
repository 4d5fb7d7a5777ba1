"""Schedule: another policy at another time of the day.

The time of day is read once, when the policy is made; from then on only the engine's own clock
counts, so that nobody who sets the wall clock changes what runs.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

from nestling import governor
from nestling.errors import BudgetError
from nestling.governor.forecast import Forecast
from nestling.governor.records import Policy

DAY = 86400.0  # seconds


def schedule(
    forecast: Forecast, *, at: Mapping[str, Mapping[str, Any]], start: float | None = None
) -> Policy:
    """Return the policy that follows others, each from a time of the day on.

    Args:
        forecast: of the menu.
        at: time of day as HH:MM -> a policy's name under "objective", and its options.
        start: seconds since midnight when the engine starts; those of now if None.

    Raises:
        BudgetError: a time is none, or nothing meets a policy.
        ModelError: an unknown policy or option.

    Example:
        >>> forecast = Forecast.of({"full": 0.9, "half": 0.8}, {1: {"full": 8.0, "half": 4.0}})
        >>> day, night = {"objective": "fixed"}, {"objective": "fixed", "subnet": "half"}
        >>> found = schedule(forecast, at={"07:00": day, "22:30": night}, start=0)
        >>> found.moment(0.0).goal, found.moment(8 * 3600.0).goal
        ('always half', 'always full')
    """
    if not isinstance(at, Mapping) or not at:
        raise BudgetError(
            "a schedule has at least one time of day, such as "
            "at={'08:00': {'objective': 'latency', 'ms': 20}}"
        )
    begins = _now() if start is None else _start(start)
    made = ((_seconds(when), _made(forecast, when, what)) for when, what in at.items())
    parts = sorted(made, key=lambda part: part[0])
    times = [seconds for seconds, _ in parts]
    if len(set(times)) < len(times):
        raise BudgetError(f"each time of a schedule is there once, but it has {', '.join(at)}")
    policies = [each for _, each in parts]

    def moment(passed: float) -> Policy:
        return policies[bisect_right(times, (begins + passed) % DAY) - 1]  # -1: since yesterday

    goal = "; ".join(f"from {when} {policy.goal}" for when, (_, policy) in zip(
        sorted(at, key=_seconds), parts, strict=True))  # fmt: skip
    hold = max(policy.hold for policy in policies)
    return Policy(goal, forecast, policies[0].judge, hold=hold, gap=DAY, moment=moment)


def _made(forecast: Forecast, when: str, what: Any) -> Policy:
    if not isinstance(what, Mapping) or not isinstance(what.get("objective"), str):
        raise BudgetError(
            f"at {when} a schedule needs an objective, such as {{'objective': 'latency', 'ms': "
            f"20}}, but it has {what!r:.80}"
        )
    if what["objective"] == "schedule":
        raise BudgetError(f"at {when} a schedule has a schedule; write all times into one")
    rest = {name: value for name, value in what.items() if name != "objective"}
    return governor.policy(what["objective"], forecast, rest)


def _seconds(when: Any) -> float:
    """Return the seconds since midnight of a time of day.

    Raises:
        BudgetError: it is none.
    """
    found = re.fullmatch(r"(\d{1,2}):(\d\d)", when) if isinstance(when, str) else None
    if found is None or int(found[1]) > 23 or int(found[2]) > 59:
        raise BudgetError(f"a time of day is written as HH:MM, such as 08:30, not {when!r:.40}")
    return 3600.0 * int(found[1]) + 60.0 * int(found[2])


def _start(start: Any) -> float:
    number = isinstance(start, int | float) and not isinstance(start, bool)
    if not number or not 0 <= start < DAY:
        raise BudgetError(f"start= is seconds since midnight, from 0 to {DAY:g}, not {start!r:.40}")
    return float(start)


def _now() -> float:
    here = time.localtime()
    return 3600.0 * here.tm_hour + 60.0 * here.tm_min + here.tm_sec
