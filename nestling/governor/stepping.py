"""Stepping: what all policies have in common, as one pure function.

- A reading's numbers that are NaN, infinite or negative count as not seen, and a clock that jumps
  counts for a short while at most, whichever way it jumps.
- The profile is corrected by what is seen: a factor for each entry, which the first batches after a
  change teach about that entry alone and the later ones about the machine, hence about all; and the
  spread between a usual call and a slow one, which is tracked as a percentile, not as a mean.
- Where requests are late although the forecast said otherwise, it grows cautious.
- Down at once, as far as needed; up only when a better entry has fitted for long enough, with room
  to spare; and for longer each time that going up was a mistake.

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
SPREAD, SPREADS = 1.25, (1.05, 4.0)  # before anything was seen; bounds
WIDER = 0.08  # growth of the spread at a call slower than it
WARIER, WARIEST = 0.08, 2.0  # growth of the caution at a late request; its bound
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
            if judge(place, RISE, RISE * SPREAD, 1, 0.0, 0.0, 1.0)[0]
        ]
        rung = max(fitting, default=0)
    return State(
        policy, rung, None, 0.0, 0.0, 0.0, 1.0, factors, SPREAD, 1.0, 0, rung, 0.0, -math.inf, 1.0,
        0.0, 1.0,
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
    whole, rung, clock, time, rate, surge, pace, factors, spread, caution, ran = state[:11]
    now, queue, waited, arrived, _, batch, _, answered, _, _ = reading
    clock, gap = _passed(clock, now, whole.gap)
    rate = _rate(rate, arrived, gap, whole.hold, time)
    surge = _rate(surge, arrived, gap, CALM * whole.hold, time)
    time += gap
    policy = whole if whole.moment is None else whole.moment(time)
    spent = state.spent
    if batch >= 1:
        pace, factors, spread, spent = _learned(state, reading, policy)
    if answered >= 1:
        caution = _warned(caution, reading, policy.percentile, ran)
    queue = queue if 1 <= queue < LARGEST else 1
    waited = waited if 0 <= waited < LARGEST else 0.0
    seen = queue, waited, rate if rate > surge else surge, spent
    slow = pace * caution
    top, fits, batch, lasting = _fitting(policy, rung, (slow, factors, spread), seen)
    cause, rung, better, calm, raised, patience, until = _moved(state, time, top, fits, lasting)
    if cause == "up":
        own = slow * factors[rung]
        batch = policy.judge(rung, own, own * spread, *seen)[1]
    ran = ran + 1 if rung == state.rung else 0
    new = State(
        whole, rung, clock, time, rate, surge, pace, factors, spread, caution, ran, better, calm,
        raised, patience, until, spent,
    )  # fmt: skip
    names = whole.forecast.names
    choice = Choice(rung, names[rung], batch, names[state.rung], cause, policy, reading, new)
    return new, choice


def _fitting(
    policy: Policy,
    rung: int,
    slowness: tuple[float, tuple[float, ...], float],
    seen: tuple[int, float, float, float],
) -> tuple[int, bool, int, bool]:
    """Return the rung that fits now: the best above that fits with room to spare, else at most it.

    Args:
        policy: that judges.
        rung: of the step before.
        slowness: what all calls take over the profile, what each rung's do over that, and slow
            ones over usual ones.
        seen: the queue, how long its head has waited, the rate, and the energy factor.

    Returns:
        The rung; whether it fits (not even the fastest may); the examples it may run, of `rung`
        itself where that fits; and whether `rung` would not even fit with an empty queue.
    """
    judge, (slow, factors, spread) = policy.judge, slowness
    own = slow * factors[rung]
    fits, batch = judge(rung, own, own * spread, *seen)
    if fits:
        for above in range(len(factors) - 1, rung, -1):
            own = RISE * slow * factors[above]
            if judge(above, own, own * spread, *seen)[0]:
                return above, True, batch, False
        return rung, True, batch, False
    lasting = not judge(rung, own, own * spread, 1, 0.0, *seen[2:])[0]
    while not fits and rung:
        rung -= 1
        own = slow * factors[rung]
        fits, batch = judge(rung, own, own * spread, *seen)
    return rung, fits, batch, lasting


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
    return rate + (arrived - rate * milliseconds) / (window + milliseconds)


def _learned(
    state: State, reading: Reading, policy: Policy
) -> tuple[float, tuple[float, ...], float, float]:
    """Return the corrections after a batch: pace, factors by rung, spread, and energy."""
    pace, factors, spread, _, ran = state[6:11]
    spent = state.spent
    _, _, _, _, rung, batch, took, _, _, joules = reading
    forecast = policy.forecast
    if not (1 <= batch <= forecast.batches[-1] and 0 <= rung < len(factors)):
        return pace, factors, spread, spent
    if forecast.joules is not None and 0 < joules < LARGEST:
        share = min(max(joules / (batch * forecast.joules[rung]), 0.01), 100.0)
        spent += LEARNING * (share - spent)
    if not 0 < took < LARGEST:
        return pace, factors, spread, spent
    usual = pace * factors[rung]
    ratio = took / (forecast.times[rung][batch] * usual)
    rare = 1 - policy.percentile / 100
    if ratio > spread:
        spread *= 1 + WIDER * (1 - rare)
        spread = spread if spread < SPREADS[1] else SPREADS[1]
    else:
        spread *= 1 - WIDER * rare
        spread = spread if spread > SPREADS[0] else SPREADS[0]
    change = 1 + LEARNING * ((0.5 if ratio < 0.5 else 2.0 if ratio > 2 else ratio) - 1)
    if not FACTORS[0] < usual * change < FACTORS[1]:
        return pace, factors, spread, spent
    if ran < ALONE:
        return pace, (*factors[:rung], factors[rung] * change, *factors[rung + 1 :]), spread, spent
    return pace * change, factors, spread, spent


def _warned(caution: float, reading: Reading, percentile: float, ran: int) -> float:
    """Return the caution after requests were answered.

    It comes to rest where a quarter of the share that may be late is late. Where the fastest entry
    has been running for a while and is late, no caution would have helped.
    """
    answered, late = reading.answered, reading.late
    if not 0 < answered < LARGEST or not 0 <= late < LARGEST:
        return caution
    if late and (reading.rung > 0 or ran < ALONE):
        caution += WARIER * (late if late < MANY else MANY)
        return caution if caution < WARIEST else WARIEST
    if caution == 1.0 or late >= answered:
        return caution
    caution -= WARIER * (100 - percentile) / 400 * (answered - late)
    return caution if caution > 1.0 else 1.0


def _moved(
    state: State, time: float, top: int, fits: bool, lasting: bool
) -> tuple[str, int, int, float, float, float, float]:
    """Return the cause, the rung, and what is remembered on the way up.

    Args:
        state: of the step before.
        time: now.
        top: the rung that fits now: below that of the state, or the best of those above it.
        fits: whether it does; False where not even the fastest fits.
        lasting: whether the state's rung would not fit without a queue either.
    """
    rung, better, calm, raised, patience, until = state.rung, *state[11:16]
    hold = state.policy.hold
    if top < rung or not fits:
        if lasting and top < rung:
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
