"""Stepping: what all policies have in common, as one pure function.

- A reading's numbers that are NaN, infinite or negative count as not seen, and a clock that jumps
  counts for a short while at most, whichever way it jumps.
- The profile is corrected by what is seen: a factor for each entry, which the first batches after a
  change teach about that entry alone and the later ones about the machine, hence about all; and the
  excess of a slow call over a usual one, in milliseconds, tracked as a percentile, not as a mean.
  What makes a call slow now and then (another program, Python's lock) takes as long from a short
  call as from a long one.
- Where requests are late although the forecast said otherwise, it grows cautious.
- Two questions are kept apart. Which entry could go on for good with what arrives? That is the
  steady one; it goes down as soon as it does not fit, and up only when a better one has fitted for
  long enough, with room to spare; and for longer each time that going up was a mistake. And may it
  run now, with what waits? Where not, the best of the faster ones that may runs until the queue is
  shorter. A burst thus costs accuracy while it lasts, and none afterwards.

The percentile is tracked by stochastic approximation: Robbins and Monro, A Stochastic Approximation
Method (Annals of Mathematical Statistics, 1951), on a scale of ratios.
"""

from __future__ import annotations

import math

from nestling.governor.records import Choice, Policy, Reading, State

RISE = 1.15  # a better entry must fit with calls that take so many times as long
LARGEST = 1e12  # of any number in a reading; what is above is no measurement
ARRIVALS = 30.0  # the rate is smoothed over at least so many
SELDOM = 1e-6  # arrivals a millisecond below which it is smoothed over the hold alone
LEARNING = 0.2  # share of a difference that one batch teaches
ALONE = 16  # batches after a change that teach about that entry alone
CALM = 0.2  # holds for which a better entry must fit before it is chosen
FACTORS = 0.2, 100.0  # bounds of the correction
EXCESS = 0.25  # of a call's time, before anything was seen
EXCESSES = 0.05, 3.0  # bounds, in times of the fastest entry's call and of the best one's
WIDER = 0.08  # growth of the excess at a call slower than it
WARIER, WARIEST = 0.02, 2.0  # growth of the caution at a late request; its bound
REST = 2.0  # times as many could be late where the caution comes to rest
MANY = 4  # late requests of one step that count
MISTAKE, PATIENCE = 4.0, 16.0  # holds after which going up was none; most patience


def begin(policy: Policy, rung: int | None = None) -> State:
    """Return the state before the first reading.

    Args:
        policy: to follow.
        rung: to begin with; the best one that fits at rest if None.
    """
    forecast = policy.forecast
    factors = (1.0,) * len(forecast.names)
    if rung is None:
        judge = (policy if policy.moment is None else policy.moment(0.0)).judge
        fitting = [
            place
            for place in range(forecast.top + 1)
            if judge(place, RISE, RISE * EXCESS * forecast.times[place][1], 0.0, 1.0)[0]
        ]
        rung = max(fitting, default=0)
    excess = EXCESS * forecast.times[rung][1]
    return State(
        policy, rung, rung, None, 0.0, 0.0, 0.0, 1.0, factors, excess, 1.0, 0, rung, 0.0, -math.inf,
        1.0, 0.0, 1.0, factors,
    )  # fmt: skip


def step(state: State, reading: Reading) -> tuple[State, Choice]:
    """Return the new state, and what runs next; the same for the same arguments.

    Args:
        state: of the step before, or `begin(policy)`.
        reading: what was seen since then.

    Example:
        >>> forecast = Forecast.of({"full": 0.9, "half": 0.8}, {1: {"full": 8.0, "half": 4.0}})
        >>> state = begin(policy("latency", forecast, {"ms": 20}))
        >>> state, choice = step(state, Reading(time=0.0, queue=1))
        >>> choice.entry
        'half'
    """
    whole, before, steady, clock, time, rate, surge, pace, factors, excess, caution, ran = state[
        :12
    ]
    now, queue, waited, arrived, _, batch, _, answered, _, _ = reading
    clock, gap = _passed(clock, now, whole.gap)
    rate = _rate(rate, arrived, gap, whole.hold, time)
    surge = _rate(surge, arrived, gap, CALM * whole.hold, time)
    time += gap
    policy = whole if whole.moment is None else whole.moment(time)
    spent, ratios = state.spent, state.ratios
    if batch >= 1:
        pace, factors, excess, spent, ratios = _learned(state, reading, policy)
    if answered >= 1:
        caution = _warned(state, reading, policy)
    queue = queue if 1 <= queue < LARGEST else 1
    waited = waited if 0 <= waited < LARGEST else 0.0
    slowness = pace * caution, factors, excess
    top, fits, batch = _fitting(policy, steady, slowness, rate, spent)
    cause, steady, better, calm, raised, patience, until = _moved(state, time, top, fits)
    rung = steady
    if policy.relief is not None:
        seen = queue, waited, rate if rate > surge else surge
        rung, cause, batch = _relieved(policy, (steady, before, cause), slowness, seen)
    elif cause == "up":
        own = slowness[0] * factors[steady]
        batch = policy.judge(steady, own, excess, rate, spent)[1]
    ran = ran + 1 if steady == state.steady else 0
    new = State(
        whole, rung, steady, clock, time, rate, surge, pace, factors, excess, caution, ran, better,
        calm, raised, patience, until, spent, ratios,
    )  # fmt: skip
    names = whole.forecast.names
    choice = Choice(rung, names[rung], batch, names[before], cause, policy, reading, new)
    return new, choice


def _fitting(
    policy: Policy,
    rung: int,
    slowness: tuple[float, tuple[float, ...], float],
    rate: float,
    spent: float,
) -> tuple[int, bool, int]:
    """Return the rung that fits what arrives: the best above with room to spare, else at most it.

    Args:
        policy: that judges.
        rung: the steady one of the step before.
        slowness: what all calls take over the profile, what each rung's do over that, and the
            milliseconds of slow ones over usual ones.
        rate: arrivals a millisecond.
        spent: the energy factor.

    Returns:
        The rung; whether it fits (not even the fastest may); and the examples it may run at a time,
        of `rung` itself where that fits.
    """
    judge, (slow, factors, excess) = policy.judge, slowness
    own = slow * factors[rung]
    fits, batch = judge(rung, own, excess, rate, spent)
    if fits:
        for above in range(len(factors) - 1, rung, -1):
            own = RISE * slow * factors[above]
            if judge(above, own, excess, rate, spent)[0]:
                return above, True, batch
        return rung, True, batch
    while not fits and rung:
        rung -= 1
        own = slow * factors[rung]
        fits, batch = judge(rung, own, excess, rate, spent)
    return rung, fits, batch


def _relieved(
    policy: Policy,
    chosen: tuple[int, int, str],
    slowness: tuple[float, tuple[float, ...], float],
    seen: tuple[int, float, float],
) -> tuple[int, str, int]:
    """Return the best rung up to the steady one that may run now, the cause, and how many examples.

    Better ones than what ran before need room to spare, or it would go to and fro; so does the
    fastest for what it has to answer afterwards, which is more than one call. Where none may, it is
    the least one, with as many examples as its judge says.

    Args:
        policy: with a relief.
        chosen: the rung that could go on for good, that of the step before, and why the former is
            what it is.
        slowness: as for `_fitting`.
        seen: the queue, how long its head has waited, and the rate.
    """
    (steady, before, cause), (slow, factors, excess) = chosen, slowness
    relief, least = policy.relief, policy.least
    assert relief is not None
    fast = slow * factors[least]
    for rung in range(steady, least - 1, -1):
        own = slow * factors[rung]
        batch = relief(rung, own if rung <= before else RISE * own, excess, RISE * fast, *seen)
        if batch:
            if rung < steady:
                return rung, "relief", batch
            back = before < rung and cause in ("stay", "wait")
            return rung, "back" if back else cause, batch
    return least, "overload", policy.judge(least, fast, excess, seen[2], 1.0)[1]


def _passed(clock: float | None, now: float, most: float) -> tuple[float | None, float]:
    """Return the clock's last time that made sense, and the seconds since the one before."""
    if not -LARGEST < now < LARGEST:
        return clock, 0.0
    if clock is None or now <= clock:
        return now, 0.0
    gap = now - clock
    return now, gap if gap < most else most


def _rate(rate: float, arrived: float, gap: float, hold: float, time: float) -> float:
    """Return the arrivals a millisecond, smoothed over a hold.

    In the beginning that is their mean, since nothing is known before. Those of one instant count
    for nothing.
    """
    if not 0 <= arrived < LARGEST or gap <= 0:
        return rate
    milliseconds, window = 1000 * gap, 1000 * hold
    if rate * window < ARRIVALS and rate > SELDOM:
        window = ARRIVALS / rate
    window = window if window < 1000 * time else 1000 * time
    rate += (arrived - rate * milliseconds) / (window + milliseconds)
    return rate if rate < LARGEST else LARGEST  # two instants can be next to the same


def _learned(
    state: State, reading: Reading, policy: Policy
) -> tuple[float, tuple[float, ...], float, float, tuple[float, ...]]:
    """Return the corrections after a batch: pace, factors by rung, excess, energy, last ratios.

    What a call takes for once teaches nothing: of two ratios of a rung in a row, the milder one
    does. Those of others are passed over, or rungs that take turns would never be corrected.
    """
    pace, factors, excess, _, ran = state[7:12]
    steady, spent, ratios = state.steady, state.spent, state.ratios
    _, _, _, _, rung, batch, took, _, _, joules = reading
    forecast = policy.forecast
    if not (1 <= batch <= forecast.batches[-1] and 0 <= rung < len(factors)):
        return pace, factors, excess, spent, ratios
    if forecast.joules is not None and 0 < joules < LARGEST:
        share = min(max(joules / (batch * forecast.joules[rung]), 0.01), 100.0)
        spent += LEARNING * (share - spent)
    if not 0 < took < LARGEST:
        return pace, factors, excess, spent, ratios
    usual = pace * factors[rung]
    expected = forecast.times[rung][batch] * usual
    ratio = took / expected
    rare = 1 - policy.percentile / 100
    if took - expected > excess:
        excess *= 1 + WIDER * (1 - rare)
        most = EXCESSES[1] * forecast.times[-1][1]
        excess = excess if excess < most else most
    else:
        excess *= 1 - WIDER * rare
        least = EXCESSES[0] * forecast.times[0][1]
        excess = excess if excess > least else least
    common = _median(ratio, ratios[rung])
    ratios = (*ratios[:rung], ratio, *ratios[rung + 1 :])
    change = 1 + LEARNING * ((0.5 if common < 0.5 else 2.0 if common > 2 else common) - 1)
    if not FACTORS[0] < usual * change < FACTORS[1]:
        return pace, factors, excess, spent, ratios
    if ran < ALONE or rung != steady:
        factors = (*factors[:rung], factors[rung] * change, *factors[rung + 1 :])
        return pace, factors, excess, spent, ratios
    return pace * change, factors, excess, spent, ratios


def _median(ratio: float, last: float) -> float:
    """Return the median of two ratios and 1: what two calls in a row of a rung agree on."""
    if (ratio > 1) != (last > 1):
        return 1.0
    return min(ratio, last) if ratio > 1 else max(ratio, last)


def _warned(state: State, reading: Reading, policy: Policy) -> float:
    """Return the caution after requests were answered.

    It comes to rest where half of the share that may be late is late. Where the fastest entry has
    been the steady one for a while and is late, no caution would have helped; nor where the call
    took longer than even the slow ones do, for that is planned with already.
    """
    caution, answered, late = state.caution, reading.answered, reading.late
    if not 0 < answered < LARGEST or not 0 <= late < LARGEST:
        return caution
    rung, batch, forecast = reading.rung, reading.batch, policy.forecast
    if (
        late
        and 1 <= batch <= forecast.largest
        and 0 <= rung <= forecast.top
        and reading.took_ms > state.usual_ms(rung, batch) + state.excess
    ):
        return caution
    if late and (state.steady > policy.least or state.ran < ALONE):
        caution += WARIER * (late if late < MANY else MANY)
        return caution if caution < WARIEST else WARIEST
    if caution == 1.0 or late >= answered:
        return caution
    caution -= WARIER * (100 - policy.percentile) / (100 * REST) * (answered - late)
    return caution if caution > 1.0 else 1.0


def _moved(
    state: State, time: float, top: int, fits: bool
) -> tuple[str, int, int, float, float, float, float]:
    """Return the cause, the steady rung, and what is remembered on the way up.

    Args:
        state: of the step before.
        time: now.
        top: the rung that fits what arrives: below that of the state, or the best of those above.
        fits: whether it does; False where not even the fastest fits.
    """
    rung, better, calm, raised, patience, until = state.steady, *state[12:17]
    hold = state.policy.hold
    if top < rung or not fits:
        if top < rung:
            if time - raised < MISTAKE * hold * patience:
                patience = min(2 * patience, PATIENCE)
            until = time + hold * patience
        return ("down" if fits else "overload"), top, top, time, raised, patience, until
    cause = "stay" if state.clock is not None else "start"
    if top == rung:
        return cause, rung, rung, time, raised, patience, until
    if better <= rung:
        return "wait", rung, top, time, raised, patience, until
    better = min(top, better)
    if time - calm < CALM * hold or time < until:
        return "wait", rung, better, calm, raised, patience, until
    if time - raised > 2 * MISTAKE * hold * patience:
        patience = max(patience / 2, 1.0)
    return "up", better, better, time, time, patience, until
