import itertools
import math
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from simulated import ladder

from nestling import governor
from nestling.errors import BudgetError, ModelError
from nestling.governor import Forecast, Reading, begin, policy, step

FORECAST = ladder(4, 2.0)  # e0 1 ms, e1 2, e2 4, e3 8 for one example


def priced():
    names = FORECAST.names
    macs = {name: 100.0 * 2**place for place, name in enumerate(names)}
    times = {
        batch: {name: FORECAST.times[place][batch] for place, name in enumerate(names)}
        for batch in FORECAST.batches
    }
    scores = dict(zip(names, FORECAST.scores, strict=True))
    joules = {name: 0.01 * 2**place for place, name in enumerate(names)}
    costs = {"macs": macs, "fraction": {n: m / 800 for n, m in macs.items()}}
    return Forecast.of(scores, times, costs=costs, joules=joules)


def chosen(policy, readings=1, **seen):
    state = begin(policy)
    for number in range(readings):
        state, choice = step(state, Reading(0.1 * number, **seen))
    return choice


def test_all_policies_are_found_by_name():
    assert governor.names() == ["energy", "fixed", "latency", "schedule", "throughput"]
    assert governor.options(governor.find("latency")) == ["ms", "percentile"]
    with pytest.raises(ModelError, match="unknown objective 'latancy'; did you mean 'latency'"):
        policy("latancy", FORECAST, {})
    with pytest.raises(ModelError, match="no option 'milliseconds'"):
        policy("latency", FORECAST, {"milliseconds": 3})


# -- latency


def test_latency_begins_with_the_best_that_fits_at_rest():
    assert chosen(policy("latency", FORECAST, {"ms": 100}), queue=1).entry == "e3"
    # Twice a slow call of e3 must be within the limit.
    assert chosen(policy("latency", FORECAST, {"ms": 17}), queue=1).entry == "e2"


def test_latency_keeps_up_with_calls_that_can_be_waited_for_twice():
    made = policy("latency", FORECAST, {"ms": 20})
    alone = FORECAST.times[2]  # of e2: 4 ms for one, 2.4 more for each further one
    most = max(batch for batch in range(1, 33) if 2 * alone[batch] + 1.0 <= 20)
    assert most == 3
    speed = most / alone[most]
    assert made.judge(2, 1.0, 1.0, speed / 1.11, 1.0)[0]
    assert not made.judge(2, 1.0, 1.0, speed / 1.09, 1.0)[0]
    assert not made.judge(2, 2.5, 3.0, 0.0, 1.0)[0]  # two calls of one example take 23 ms


@settings(max_examples=200)
@given(
    queue=st.integers(1, 80),
    waited=st.floats(0, 30),
    rate=st.floats(0, 2),
    rung=st.integers(0, 3),
    usual=st.floats(0.5, 2),
    excess=st.floats(0, 10),
)
def test_what_runs_lets_the_fastest_answer_the_rest_in_time(
    queue, waited, rate, rung, usual, excess
):
    """An independent count: one call of the rung, then calls of the fastest, one after another."""
    limit = 30.0
    made = policy("latency", FORECAST, {"ms": limit})
    batch = made.relief(rung, usual, excess, 1.0, queue, waited, rate)
    assert 0 <= batch <= queue
    if not batch:
        return
    new = rate * FORECAST.times[rung][batch] * usual
    coming = math.ceil(new) if new > 0.5 else 0
    now = FORECAST.times[rung][batch] * usual + excess
    assert waited + now <= limit
    at_once = FORECAST.batch_within(0, limit / 2)

    def end(place, count):
        """When the fastest has run the call with a place of so many, in calls of its own."""
        ran = place // at_once
        last = min(count - ran * at_once, at_once)
        return now + ran * FORECAST.times[0][at_once] + FORECAST.times[0][last]

    left = queue - batch
    for place in range(left):  # those that wait go first
        assert waited * (left - place) / queue + end(place, left) <= limit * 1.05
    if coming:
        assert end(left + coming - 1, left + coming) <= limit * 1.05


@pytest.mark.parametrize("seen", [{"queue": 40}, {"queue": 1, "waited_ms": 90.0}])
def test_latency_goes_down_at_once(seen):
    state = begin(policy("latency", FORECAST, {"ms": 100}))
    state, before = step(state, Reading(0.0, queue=1))
    state, after = step(state, Reading(0.01, **seen))
    assert before.entry == "e3"
    assert after.rung < 3
    assert after.cause == "relief"
    assert "e3 would keep those waiting too long" in after.reason
    assert f"{seen['queue']} waiting" in after.reason
    _, again = step(state, Reading(0.02, queue=1))
    assert (again.entry, again.cause) == ("e3", "back")
    assert again.reason.startswith("p99 <= 100 ms: e3 again, since the queue is shorter")


def test_what_may_run_is_told_by_slow_calls_and_comes_back_with_room_to_spare():
    made = policy("latency", FORECAST, {"ms": 100})  # a slow call of e3 takes 8 + 2 ms
    rest, _ = step(begin(made), Reading(0.0, queue=1))
    helped, _ = step(rest, Reading(0.01, queue=1, waited_ms=90.0))
    assert (rest.rung, helped.rung) == (3, 1)
    for waited, stays, returns in ((84.5, True, False), (83.0, True, True), (85.5, False, False)):
        seen = Reading(0.02, queue=1, waited_ms=waited)
        assert (step(rest, seen)[1].cause == "stay") is stays
        assert (step(helped, seen)[1].cause == "back") is returns


def test_what_comes_meanwhile_is_foreseen_by_the_rate_of_late():
    """A surge leaves the rate over a hold as it is: the steady entry stays, and does not run."""
    times = {1: {"fast": 30.0, "best": 50.0}, 32: {"fast": 300.0, "best": 400.0}}
    forecast = Forecast.of({"fast": 0.5, "best": 0.9}, times)
    state = begin(policy("latency", forecast, {"ms": 1000}))
    for number in range(600):
        state, _ = step(state, Reading(0.1 * number, 1, 0.0, 4))
    _, calm = step(state, Reading(60.0, 32, 0.0, 4))
    after, surging = step(state, Reading(60.0, 32, 0.0, 200))
    assert (calm.entry, surging.entry, surging.cause) == ("best", "fast", "relief")
    assert forecast.names[after.steady] == "best"


def test_why_it_is_another_entry_for_good_is_told_where_a_faster_one_ran_already():
    state = begin(policy("latency", FORECAST, {"ms": 100}))
    state, _ = step(state, Reading(0.0, queue=1))
    state, helped = step(state, Reading(0.01, queue=1, waited_ms=87.0))
    state, choice = step(state, Reading(0.1, 1, 0.0, 25))  # 250 a second; e3 runs 192, e2 400
    assert (helped.entry, choice.before, choice.entry, choice.cause) == ("e2", "e2", "e2", "down")
    assert ": e2 fits, and better ones no longer do (" in choice.reason


def test_a_rate_that_is_too_high_for_good_is_another_matter_than_a_queue():
    state = begin(policy("latency", FORECAST, {"ms": 100}))
    causes = []
    for number in range(300):  # 600 a second, one at a time: e3 runs 160
        state, choice = step(state, Reading(0.01 * number, 1, 0.0, 6))
        causes.append(choice.cause)
    assert "down" in causes
    assert {"relief", "back"}.isdisjoint(causes)
    assert choice.rung == state.steady < 3
    judge = state.policy.judge
    assert judge(state.steady, 1.0, state.excess, 0.6, 1.0)[0]
    assert not judge(state.steady + 1, 1.0, state.excess, 0.6, 1.0)[0]


def test_one_slow_call_teaches_nothing_and_two_do():
    state = begin(policy("latency", FORECAST, {"ms": 100}))
    for number, took in enumerate((8.0, 30.0, 8.0, 30.0, 30.0)):
        before = state.factors
        state, _ = step(state, Reading(0.1 * number, 1, 0.0, 1, 3, 1, took))
        assert (state.factors == before) == (number < 4)
    assert state.factors[3] > 1.1


def test_of_two_slow_calls_in_a_row_the_milder_one_teaches():
    for pair in ((1.25, 9.0), (9.0, 1.25)):
        state = begin(policy("latency", FORECAST, {"ms": 400}))
        for number, slowness in enumerate(pair):
            took = slowness * FORECAST.times[3][1]
            state, _ = step(state, Reading(0.1 * number, 1, 0.0, 1, 3, 1, took))
        assert state.factors[3] == pytest.approx(1.05)  # a fifth of the way


def test_entries_that_take_turns_are_each_corrected():
    """As where every burst begins with one call of the steady entry, and a faster one follows."""
    state = begin(policy("latency", FORECAST, {"ms": 100}))
    for number in range(160):
        rung, slowness = ((3, 1.5), (0, 1.0))[number % 2]
        took = slowness * FORECAST.times[rung][1]
        state, _ = step(state, Reading(0.1 * number, 1, 0.0, 1, rung, 1, took))
    assert state.pace * state.factors[3] == pytest.approx(1.5, rel=0.02)
    assert state.pace * state.factors[0] == pytest.approx(1.0, rel=0.02)


def test_latency_knows_what_it_cannot_meet():
    with pytest.raises(
        BudgetError, match=r"no entry meets p99 <= 0.5 ms: the fastest.*'e0'.* 1 ms"
    ):
        policy("latency", FORECAST, {"ms": 0.5})
    for bad in (0, -1, float("nan"), float("inf"), "20", True, None):
        with pytest.raises(BudgetError, match="ms= is a finite number above 0"):
            policy("latency", FORECAST, {"ms": bad})
    for bad in (100, 30):
        with pytest.raises(BudgetError, match="percentile= is at least 50"):
            policy("latency", FORECAST, {"ms": 9, "percentile": bad})


def test_overload_runs_the_fastest_and_says_so():
    choice = chosen(policy("latency", FORECAST, {"ms": 20}), readings=3, queue=900, waited_ms=400.0)
    assert (choice.entry, choice.cause) == ("e0", "overload")
    assert "not even e0, the fastest, fits" in choice.reason


@pytest.mark.parametrize("slowness", [1.0, 8.0])
def test_overload_runs_batches_as_large_as_the_profile_allows(slowness):
    """Small ones, which slow calls would ask for, would only make the queue longer."""
    state = begin(policy("latency", FORECAST, {"ms": 20}))
    for number in range(60):
        took = slowness * FORECAST.times[0][1]
        state, choice = step(state, Reading(0.1 * number, 900, 400.0, 9, 0, 1, took))
    assert choice.cause == "overload"
    assert state.pace * state.factors[0] == pytest.approx(slowness, rel=0.1)
    assert choice.batch == FORECAST.batch_within(0, 10)


def test_the_correction_is_by_entry_first_and_for_the_machine_later():
    state = begin(policy("latency", FORECAST, {"ms": 100}))
    for number in range(60):
        took = 1.5 * FORECAST.times[3][1]
        state, _ = step(state, Reading(0.1 * number, 1, 0.0, 1, 3, 1, took))
        if number == 10:
            assert state.pace == 1
            assert state.factors[3] > 1.2
            assert state.factors[:3] == (1, 1, 1)
    assert state.pace * state.factors[3] == pytest.approx(1.5, rel=0.01)


def test_the_excess_is_a_percentile_and_no_mean():
    state = begin(policy("latency", FORECAST, {"ms": 400, "percentile": 90}))
    for number in range(3000):
        slow = 2.5 if number % 7 == 0 else 1.0  # one in seven: more than one in ten
        took = slow * FORECAST.times[state.rung][1]
        state, _ = step(state, Reading(0.1 * number, 1, 0.0, 1, state.rung, 1, took))
    usual = state.pace * state.factors[state.rung] * FORECAST.times[state.rung][1]
    assert usual + state.excess == pytest.approx(2.5 * FORECAST.times[state.rung][1], rel=0.2)


def test_a_call_slower_than_the_slow_ones_makes_it_no_more_cautious():
    state = begin(policy("latency", FORECAST, {"ms": 100}))
    ran = Reading(0.1, 1, rung=3, batch=1, answered=5, late=1)
    slow = FORECAST.times[3][1] + state.excess
    assert step(state, ran._replace(took_ms=1.01 * slow))[0].caution == 1
    assert step(state, ran._replace(took_ms=0.99 * slow))[0].caution == pytest.approx(1.02)


def test_late_answers_make_it_cautious_and_good_ones_ease_it():
    state = begin(policy("latency", FORECAST, {"ms": 100}))
    for number in range(3):
        state, _ = step(state, Reading(0.1 * number, 1, answered=5, late=1, rung=3))
    wary = state.caution
    assert wary == pytest.approx(1.06)
    for number in range(3, 100):
        state, _ = step(state, Reading(0.1 * number, 1, answered=5, rung=3))
    assert 1 < state.caution < wary


@pytest.mark.parametrize(("percentile", "good"), [(99.0, 199), (90.0, 19)])
def test_caution_rests_where_half_as_many_are_late_as_may_be(percentile, good):
    made = policy("latency", FORECAST, {"ms": 100, "percentile": percentile})
    state = begin(made)._replace(caution=1.3)
    for number in range(40):
        state, _ = step(state, Reading(0.2 * number, 1, answered=1, late=1, rung=3))
        state, _ = step(state, Reading(0.2 * number + 0.1, 1, answered=good, rung=3))
    assert state.steady > 0
    assert state.caution == pytest.approx(1.3, abs=0.05)


def test_the_fastest_that_is_late_for_long_makes_it_no_more_cautious():
    state = begin(policy("latency", FORECAST, {"ms": 100}), rung=0)
    cautions = []
    for number in range(30):  # far more than the fastest runs
        reading = Reading(0.01 * number, 40, 200.0, 100, 0, 32, 19.6, answered=32, late=1)
        state, choice = step(state, reading)
        cautions.append(state.caution)
    assert (choice.entry, state.steady) == ("e0", 0)
    assert 1 < cautions[0] < cautions[10] < 1.5
    assert cautions[-1] < cautions[-10] < 1.5


# -- the others


def test_fixed_by_name_and_by_budget():
    forecast = priced()
    assert chosen(policy("fixed", forecast, {}), queue=500).entry == "e3"
    assert chosen(policy("fixed", forecast, {"subnet": "e1"}), queue=500).entry == "e1"
    assert chosen(policy("fixed", forecast, {"fraction": 0.5})).entry == "e2"
    assert chosen(policy("fixed", forecast, {"macs": 250, "latency_ms": 1.5})).entry == "e0"
    with pytest.raises(BudgetError, match="fastest here is 'e0', which needs macs=100"):
        policy("fixed", forecast, {"macs": 10})
    with pytest.raises(BudgetError, match=r"no entry 'e9'.*e0, e1, e2, e3"):
        policy("fixed", forecast, {"subnet": "e9"})
    with pytest.raises(BudgetError, match="leave one out"):
        policy("fixed", forecast, {"subnet": "e1", "macs": 200})
    with pytest.raises(BudgetError, match="a budget is latency_ms= or subnet="):
        policy("fixed", FORECAST, {"params": 3})


def test_throughput_follows_the_rate():
    made = policy("throughput", FORECAST, {})
    assert chosen(made, queue=1).entry == "e3"
    slow = FORECAST.capacity(3)
    state = begin(made)
    for number in range(400):
        arrived = int(1.5 * slow * 0.1)
        state, choice = step(state, Reading(0.1 * number, 4, 0.0, arrived))
    assert choice.entry == "e2"
    assert choice.batch == FORECAST.largest
    assert chosen(policy("throughput", FORECAST, {"per_second": 3 * slow})).entry == "e1"
    with pytest.raises(BudgetError, match="fastest here is 'e0'"):
        policy("throughput", FORECAST, {"per_second": 1e6})


def test_throughput_takes_a_faster_one_while_a_second_is_too_short_for_the_queue():
    state, _ = step(begin(policy("throughput", FORECAST, {})), Reading(0.0, queue=1))
    most = int(FORECAST.capacity(3))
    _, calm = step(state, Reading(0.01, queue=most))
    _, helped = step(state, Reading(0.01, queue=most + 1))
    assert (calm.entry, calm.cause) == ("e3", "stay")
    assert (helped.entry, helped.cause, helped.batch) == ("e2", "relief", FORECAST.largest)


def test_a_policy_without_relief_runs_batches_of_the_entry_that_it_chooses():
    """A queue of any length changes nothing; going up, it runs as many as the better one may."""
    made = replace(policy("latency", FORECAST, {"ms": 100}), relief=None)
    state, found = begin(made, rung=0), {}
    for number in range(100):
        state, choice = step(state, Reading(0.1 * number, 5000, 500.0, 1))
        found.setdefault(choice.cause, choice)
    assert list(found) == ["wait", "up", "stay"]
    alike = found["up"], found["stay"]
    assert [(c.entry, c.batch) for c in alike] == [("e3", FORECAST.batch_within(3, 50))] * 2
    assert (found["wait"].entry, found["wait"].batch) == ("e0", FORECAST.largest)


def test_energy_holds_joules_and_watts():
    forecast = priced()
    assert chosen(policy("energy", forecast, {"joules": 0.05})).entry == "e2"
    state = begin(policy("energy", forecast, {"watts": 2.0}))
    for number in range(400):  # 60 a second: e1 takes 1.2 watts, e2 2.4
        state, choice = step(state, Reading(0.1 * number, 1, 0.0, 6))
    assert choice.entry == "e1"
    for number in range(400, 800):  # measured twice what was profiled
        reading = Reading(0.1 * number, 1, 0.0, 6, 1, 1, 2.0, joules=0.04 if state.rung else 0.02)
        state, choice = step(state, reading._replace(rung=state.rung))
    assert choice.entry == "e0"
    with pytest.raises(BudgetError, match=r"thriftiest here is 'e0' with 0.01 joules"):
        policy("energy", forecast, {"joules": 0.001})
    with pytest.raises(BudgetError, match=r"not available here.*none are made up"):
        policy("energy", FORECAST, {"watts": 3})
    with pytest.raises(BudgetError, match="needs a cap"):
        policy("energy", forecast, {})


def test_schedule_follows_the_time_of_the_day_and_no_other_clock():
    at = {"08:00": {"objective": "fixed"}, "22:30": {"objective": "fixed", "subnet": "e0"}}
    for start, first, last in ((22.49, "e3", "e0"), (7.99, "e0", "e3")):
        made = policy("schedule", FORECAST, {"at": at, "start": start * 3600})
        state = begin(made)
        seen = []
        for number in range(400):
            state, choice = step(state, Reading(1.0 * number, 1))
            seen.append(choice.entry)
        assert (seen[0], seen[-1]) == (first, last)
        assert sum(a != b for a, b in itertools.pairwise(seen)) == 1
    assert made.goal == "from 08:00 always e3; from 22:30 always e0"
    for bad in ({}, {"8": {"objective": "fixed"}}, {"25:00": {"objective": "fixed"}}, {"08:00": 3}):
        with pytest.raises(BudgetError):
            policy("schedule", FORECAST, {"at": bad})
    with pytest.raises(BudgetError, match="a schedule has a schedule"):
        policy("schedule", FORECAST, {"at": {"08:00": {"objective": "schedule"}}})


# -- the forecast


def test_between_measured_batches_the_forecast_is_a_straight_line():
    found = Forecast.of({"a": 1.0}, {1: {"a": 2.0}, 5: {"a": 10.0}, 7: {"a": 9.0}})
    assert found.times[0] == pytest.approx((0, 2, 4, 6, 8, 10, 10, 10))
    assert found.speeds[0][5] == pytest.approx(0.5)
    assert found.speeds[0][7] == pytest.approx(0.7)
    assert found.capacity(0) == pytest.approx(700)
    assert [found.batch_within(0, ms) for ms in (1, 2, 3.9, 10, 99)] == [0, 1, 1, 7, 7]


def test_below_a_fixed_batch_the_forecast_is_that_batch():
    times = {1: {"a": 2.0, "b": 3.0}, 3: {"a": 4.0, "b": 5.0}, 5: {"a": 8.0, "b": 9.0}}
    found = Forecast.of({"a": 0.5, "b": 1.0}, times, fixed={"a": {1, 5}})
    assert found.times[0] == pytest.approx((0, 2, 3, 4, 8, 8))  # 3 is not fixed
    assert found.times[1] == pytest.approx((0, 3, 4, 5, 7, 9))
    assert [found.batch_within(0, ms) for ms in (4, 7.9, 8)] == [3, 3, 5]


def test_what_is_no_faster_than_a_better_one_has_no_rung():
    scores = {"full": 0.9, "half": 0.8, "odd": 0.7, "tiny": 0.6}
    times = {
        1: {"full": 8, "half": 4, "odd": 5, "tiny": 1},
        4: {"full": 9, "half": 5, "odd": 5, "tiny": 2},
    }
    assert Forecast.of(scores, times).names == ("tiny", "half", "full")


def test_figures_that_are_missing_or_none_are_refused():
    with pytest.raises(BudgetError, match="with 1 example a call"):
        Forecast.of({"a": 1.0}, {2: {"a": 1.0}})
    with pytest.raises(BudgetError, match="positive numbers"):
        Forecast.of({"a": 1.0}, {1: {"a": 0.0}})
    with pytest.raises(BudgetError, match="measured at every batch"):
        Forecast.of({"a": 1.0}, {1: {"b": 1.0}})


def test_what_an_objective_needs_is_told():
    with pytest.raises(ModelError, match="the objective 'latency' needs ms="):
        policy("latency", FORECAST, {})
    with pytest.raises(ModelError, match="the objective 'schedule' needs at="):
        policy("schedule", FORECAST, {})
    day = {"objective": "fixed"}
    with pytest.raises(ModelError, match="'latency' needs ms="):
        policy("schedule", FORECAST, {"at": {"07:00": {"objective": "latency"}}})
    with pytest.raises(BudgetError, match="each time of a schedule is there once"):
        policy("schedule", FORECAST, {"at": {"7:00": day, "07:00": day}})
    for start in ("noon", -1, 86400, float("nan"), True):
        with pytest.raises(BudgetError, match="start= is seconds since midnight"):
            policy("schedule", FORECAST, {"at": {"07:00": day}, "start": start})
