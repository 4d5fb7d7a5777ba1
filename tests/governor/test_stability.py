"""Under a constant load the governor settles, however far off the profile's figures are."""

import math

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from simulated import evenly, ladder, poisson, serve

from nestling.governor import Reading, begin, policy, step

NUMBERS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([math.nan, math.inf, -math.inf, -1.0, 0.0, 1e300, -1e300, 5e-324]),
)
WHOLE = st.one_of(st.integers(-(10**20), 10**20), st.sampled_from([0, 1, -1, 2**63]))


@settings(max_examples=25)
@given(
    share=st.floats(0.05, 0.95),
    room=st.floats(2.2, 40.0),
    count=st.integers(2, 6),
    growth=st.floats(1.2, 3.0),
    slowness=st.lists(st.floats(0.7, 2.5), min_size=6, max_size=6),
)
def test_at_most_one_change_after_settling(share, room, count, growth, slowness):
    """Arrivals evenly spaced; every entry off its profile by a factor of its own."""
    forecast = ladder(count, growth)
    limit = room * forecast.times[0][1]
    rate = share * 1000 * forecast.speeds[0][max(forecast.batch_within(0, limit / 2), 1)]
    hold = policy("latency", forecast, {"ms": limit}).hold
    seconds = min(60 * hold, 3000 / rate)
    found = serve(
        forecast,
        evenly(rate, seconds),
        took=lambda rung, batch, now: slowness[rung] * forecast.times[rung][batch],
        deadline=limit,
        ms=limit,
    )
    settled = [choice for when, choice in found.changes if when > seconds / 2]
    assert len(settled) <= 1, [choice.reason for choice in settled]


def test_a_slow_machine_is_noticed_and_its_recovery_too():
    forecast = ladder(4, 2.0)

    def took(rung, batch, now):
        return forecast.times[rung][batch] * (3.0 if 5 <= now < 10 else 1.0)

    found = serve(forecast, evenly(40, 25), took=took, deadline=60, ms=60)
    before = [rung for since, _, rung in found.answers if 3 < since < 5]
    slow = [rung for since, _, rung in found.answers if 7 < since < 10]
    after = [rung for since, _, rung in found.answers if since > 20]
    assert max(slow) < min(before) == max(before)
    assert min(after) == max(after) == max(before)
    assert found.late(60) < 0.02


def test_a_heavy_load_from_the_start_is_noticed_at_once():
    """Long before the hold is over, over which rates are smoothed."""
    forecast = ladder(4, 2.0, 8.0)
    hold = policy("latency", forecast, {"ms": 600}).hold
    found = serve(
        forecast, poisson(0.7 * forecast.capacity(0), 0.7 * hold, seed=3), deadline=600, ms=600
    )
    assert found.late(600) <= 0.01
    rate = found.changes[-1][1].state.surge
    assert 1000 * rate == pytest.approx(0.7 * forecast.capacity(0), rel=0.3)


def test_a_backlog_as_old_as_the_deadline_makes_no_others_late():
    """After a stall every request would be answered just too late, for as long as it is full."""
    forecast = ladder(4, 2.0)
    rate = 0.97 * forecast.capacity(0)

    def took(rung, batch, now):
        return forecast.times[rung][batch] + (150 if 2 < now < 2.05 else 0)

    found = serve(forecast, evenly(rate, 6), took=took, deadline=60, ms=60)
    late = [ms > 60 for since, ms, _ in found.answers if since > 2.3]
    assert sum(late) <= 0.02 * len(late)
    assert len(late) > 0.95 * rate * 3.7


def test_down_at_once_and_up_slowly():
    forecast = ladder(4, 2.0)
    arrivals = sorted([*evenly(40, 20), *(10 + k / 2000 for k in range(60))])
    found = serve(forecast, arrivals, deadline=40, ms=40)
    after = [(when, choice.cause) for when, choice in found.changes if when >= 10]
    faster = [when for when, cause in after if cause in ("down", "relief")]
    up = [when for when, cause in after if cause == "up"]
    assert faster[0] < 10.03
    assert up[0] > faster[0] + 0.05
    assert len(up) <= 4
    assert len(after) <= 10
    assert found.late(40) <= 0.02  # some of the 60, which come faster than the fastest runs


def test_a_burst_costs_accuracy_while_it_lasts_and_none_afterwards():
    """The rate over a while is low: the steady entry stays, and a faster one helps out."""
    forecast = ladder(4, 2.0, first=0.5)
    arrivals = sorted([*evenly(40, 20), *(10.001 + k / 4000 for k in range(24))])
    found = serve(forecast, arrivals, deadline=60, ms=60)
    faster = [since for since, _, rung in found.answers if rung < forecast.top and since > 1]
    assert faster
    assert 9.9 < min(faster) <= max(faster) < 10.1
    causes = {choice.cause for when, choice in found.changes if when > 1}
    assert causes == {"relief", "back"}
    assert found.late(60) == 0


@pytest.mark.parametrize("cv2", [1.0, 4.0, 8.0])
def test_few_are_late_where_the_smallest_keeps_up(cv2):
    forecast = ladder(5, 1.7, 2.0)
    rate = 0.4 * forecast.capacity(0)
    found = serve(forecast, poisson(rate, 20, seed=1, cv2=cv2), deadline=60, ms=60)
    assert found.late(60) <= 0.01
    assert found.score > 0.5  # that of the smallest


@settings(max_examples=25)
@given(
    readings=st.lists(
        st.builds(
            Reading,
            time=NUMBERS,
            queue=WHOLE,
            waited_ms=NUMBERS,
            arrived=WHOLE,
            rung=WHOLE,
            batch=WHOLE,
            took_ms=NUMBERS,
            answered=WHOLE,
            late=WHOLE,
            joules=NUMBERS,
        ),
        max_size=20,
    )
)
def test_wild_readings_change_no_state_for_the_worse(readings):
    """No number of the state is ever NaN or infinite, and sound readings bring it back."""
    forecast = ladder(4, 2.0)
    state = begin(policy("latency", forecast, {"ms": 100}))
    for reading in readings:
        state, choice = step(state, reading)
        assert 0 <= choice.rung <= forecast.top
        assert 1 <= choice.batch <= forecast.largest
        assert math.isfinite(state.time)
        assert state.clock is None or math.isfinite(state.clock)
        assert 0 <= state.rate < math.inf
        assert 1 <= state.caution <= 2.0
        assert 0.05 * forecast.times[0][1] <= state.excess <= 3 * forecast.times[-1][1]
        assert all(0 < state.pace * factor < 1000 for factor in state.factors)
        assert choice.reason
    now = state.clock or 0.0
    if abs(now) > 1e9:  # the clock itself cannot tell milliseconds there
        return
    for _ in range(2000):
        now += 0.02
        before = state.rung
        took = forecast.times[before][1]
        state, choice = step(state, Reading(now, 1, 0.0, 1, before, 1, took, 1, 0))
    assert choice.entry == "e3"


@pytest.mark.parametrize("gap", [5e-324, 1e-12])
def test_arrivals_of_next_to_one_instant_leave_a_rate_that_is_a_number(gap):
    state = begin(policy("latency", ladder(4, 2.0), {"ms": 100}))
    for time in (0.0, gap, *(0.05 * k for k in range(1, 200))):
        state, choice = step(state, Reading(time, 1, 0.0, 1))
        assert math.isfinite(state.rate)
        assert math.isfinite(state.surge)
    assert state.rate == pytest.approx(1 / 50, rel=0.2)
    assert choice.entry == "e3"


def test_a_clock_that_jumps_changes_nothing():
    forecast = ladder(4, 2.0)
    for jump in (-1e6, 1e6, 3600.0, -3600.0):
        state = begin(policy("latency", forecast, {"ms": 40}))
        offset = 0.0
        for number in range(2000):
            if number == 1000:
                offset, before = jump, state
            took = forecast.times[state.rung][1]
            now = 0.025 * number + offset
            state, _ = step(state, Reading(now, 1, 0.0, 1, state.rung, 1, took, 1, 0))
            if number == 1000:
                assert state.rung == before.rung
                assert state.time - before.time <= 10 * state.policy.hold
        assert state.rung == before.rung
        assert state.rate == pytest.approx(before.rate, rel=0.2)


def test_the_same_readings_give_the_same_choices():
    forecast = ladder()
    readings = [Reading(k / 50, 1 + k % 7, k % 5, 1, 0, 1, 1.0, 1, 0) for k in range(200)]

    def run():
        state, choices = begin(policy("latency", forecast, {"ms": 30})), []
        for reading in readings:
            state, choice = step(state, reading)
            choices.append(choice.reason)
        return choices

    assert run() == run()
