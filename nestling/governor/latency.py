"""Latency: nearly all requests are answered within a time, counted from their arrival.

A rung could go on for good when

- a request that just misses a batch can wait for it and then run, one of the calls being as slow as
  the slow ones of late: that bounds the batch;
- it runs more examples a second than arrive, with `ROOM` to spare.

It may run now, with what waits, when even then, if this call is a slow one,

- the next request is done in time;
- the fastest could answer the rest of the queue in time afterwards, and all that come meanwhile.

So a better net runs as long as a faster one can still make up for it. Where none may run, batches
are as large as the profile itself allows by the first rule: what waits is late already, and small
batches would only make the queue longer.

Sources: Crankshaw et al., Clipper: A Low-Latency Online Prediction Serving System (NSDI 2017),
section 4.3, for the first rule; choosing by the slack of those that wait is that of Khare et al.,
SuperServe (NSDI 2025), which looks at the next request alone.
"""

from __future__ import annotations

import math
from bisect import bisect_right

from nestling.errors import BudgetError
from nestling.governor.checks import positive
from nestling.governor.forecast import Forecast
from nestling.governor.records import Policy, Relief

ROOM = 1.1  # times the arrivals that a rung must be able to run
HOLDS = 10  # limits for which a better entry must fit
FEW = 0.5  # arrivals during a call below which none are expected
PLANNED = 0.95  # of the limit; what calls take themselves is not all that requests wait for


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

    def judge(rung: int, usual: float, excess: float, rate: float, _: float) -> tuple[bool, int]:
        most = bisect_right(times[rung], (limit - excess) / (2 * usual)) - 1
        if most < 1:
            return False, plain[rung]
        return rate * ROOM <= speeds[rung][most] / usual, max(most, plain[rung])

    hold = min(max(HOLDS * limit / 1000, 0.1), 10.0)
    return Policy(
        goal,
        forecast,
        judge,
        _relief(forecast, PLANNED * limit, plain[0]),
        hold=hold,
        limit_ms=limit,
        percentile=share,
        gap=HOLDS * hold,
    )


def _relief(forecast: Forecast, planned: float, most_at_once: int) -> Relief:
    """Return what tells how many examples a rung may run now.

    Args:
        forecast: of the menu.
        planned: milliseconds from a request's arrival to its answer.
        most_at_once: examples that the fastest runs at a time.
    """
    times, fastest = forecast.times, forecast.times[0]

    def drained(count: float) -> float:
        """Return the milliseconds in which the fastest runs so many, as profiled."""
        whole, rest = divmod(math.ceil(count), most_at_once)
        return whole * fastest[most_at_once] + fastest[rest]

    def relief(
        rung: int,
        usual: float,
        excess: float,
        fast: float,
        queue: int,
        waited: float,
        rate: float,
    ) -> int:
        alone, time = times[rung], planned - excess
        most = bisect_right(alone, (time - waited) / usual) - 1
        if most < 1:
            return 0
        batch = queue if queue < most else most
        took = alone[batch] * usual
        left = queue - batch
        if left and waited * left / queue + took + fast * drained(left) > time:
            return 0
        new = rate * took
        if new > FEW and took + fast * drained(left + new) > time:
            return 0
        return batch

    return relief
