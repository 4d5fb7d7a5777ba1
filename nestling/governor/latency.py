"""Latency: nearly all requests are answered within a time, counted from their arrival.

A rung fits when, with calls as slow as the slow ones of late,

- a request that just misses a batch can wait for it and then run: twice a call's time is within the
  limit, which bounds the batch;
- the next request and the whole queue are done within the limit;
- it runs more examples a second than arrive, with `ROOM` to spare.

Where nothing fits, batches are as large as the profile itself allows by the first rule: what waits
is late already, and small batches would only make the queue longer.

Source for the first rule: Crankshaw et al., Clipper: A Low-Latency Online Prediction Serving System
(NSDI 2017), section 4.3.
"""

from __future__ import annotations

from bisect import bisect_right

from nestling.errors import BudgetError
from nestling.governor.checks import positive
from nestling.governor.forecast import Forecast
from nestling.governor.records import Policy

ROOM = 1.1  # times the arrivals that a rung must be able to run
HOLDS = 10  # limits for which a better entry must fit


def latency(forecast: Forecast, *, ms: float, percentile: float = 99.0) -> Policy:
    """Return the policy that answers a share of all requests within a time, as well as it can.

    Args:
        forecast: of the menu.
        ms: milliseconds from a request's arrival to its answer.
        percentile: of the requests that shall be within it, from 50 to below 100.

    Raises:
        BudgetError: not even the fastest entry is that fast (the message names it), or an option is
            no sensible number.
    """
    limit = positive("ms", ms)
    share = positive("percentile", percentile)
    if not 50 <= share < 100:
        raise BudgetError(f"percentile= is at least 50 and below 100, but it is {percentile!r}")
    goal = f"p{share:g} <= {limit:g} ms"
    if forecast.times[0][1] > limit:
        raise BudgetError(
            f"no entry meets {goal}: the fastest here is {forecast.names[0]!r}, which takes "
            f"{forecast.times[0][1]:.3g} ms for one example; allow more, or train a smaller one"
        )
    times, speeds = forecast.times, forecast.speeds
    plain = [max(forecast.batch_within(rung, limit / 2), 1) for rung in range(len(times))]

    def judge(
        rung: int, usual: float, slow: float, queue: int, waited: float, rate: float, _: float
    ) -> tuple[bool, int]:
        alone = times[rung]
        most = bisect_right(alone, limit / (usual + slow)) - 1
        if most < 1:
            return False, plain[rung]
        batch = queue if queue < most else most
        speed = speeds[rung][most] / usual
        fits = (
            waited + alone[batch] * slow <= limit
            and queue <= speed * limit
            and rate * ROOM <= speed
        )
        return fits, most if fits else max(most, plain[rung])

    hold = min(max(HOLDS * limit / 1000, 0.1), 10.0)
    return Policy(goal, forecast, judge, hold, limit, share, gap=HOLDS * hold)
