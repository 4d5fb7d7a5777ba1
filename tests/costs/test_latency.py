import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.costs.latency import (
    MIN_SAMPLES,
    SAMPLE_SECONDS,
    _rank,
    measure,
    order_interval,
    paired_ratio,
    sustained,
)


class Machine:
    """A fake machine: its clock moves only when one of its calls runs."""

    def __init__(self):
        self.now = 0.0
        self.log = []

    def clock(self):
        return self.now

    def call(self, name, seconds):
        def run():
            self.log.append(name)
            self.now += seconds(self) if callable(seconds) else seconds

        return run


def test_steady_calls_need_the_least_samples():
    machine = Machine()
    calls = {"slow": machine.call("slow", 0.02), "fast": machine.call("fast", 0.005)}
    found = measure(calls, clock=machine.clock)
    assert list(found) == ["slow", "fast"]
    for name, expected in (("slow", 20.0), ("fast", 5.0)):
        assert found[name].median == pytest.approx(expected)
        assert found[name].low == pytest.approx(expected)
        assert found[name].high == pytest.approx(expected)
        assert found[name].runs == MIN_SAMPLES


def test_no_calls():
    assert measure({}) == {}


def test_rounds_are_shuffled_and_repeat():
    logs = []
    for _ in range(2):
        machine = Machine()
        measure({n: machine.call(n, 0.06) for n in "abc"}, clock=machine.clock)
        logs.append(machine.log[-3 * MIN_SAMPLES :])
    rounds = [logs[0][start : start + 3] for start in range(0, len(logs[0]), 3)]
    assert logs[0] == logs[1]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len({tuple(each) for each in rounds}) > 2


def test_warm_up_is_not_counted():
    machine = Machine()
    cold = machine.call("cold", lambda m: 5.0 if m.log.count("cold") <= 3 else 0.01)
    found = measure({"cold": cold}, clock=machine.clock)
    assert found["cold"].high == pytest.approx(10.0)
    assert len(machine.log) - found["cold"].runs > 3


def test_noise_gets_more_samples_until_settled():
    machine, random_ = Machine(), random.Random(1)
    noisy = machine.call("noisy", lambda m: 0.01 * random_.lognormvariate(0, 0.2))
    steady = machine.call("steady", 0.01)
    found = measure({"noisy": noisy, "steady": steady}, clock=machine.clock, seconds=100)
    latency = found["noisy"]
    assert latency.runs > 5 * MIN_SAMPLES
    assert latency.high - latency.median <= 0.03 * latency.median
    assert latency.median - latency.low <= 0.03 * latency.median
    assert latency.median == pytest.approx(10, rel=0.06)
    # The settled call went on as well: both figures come from the same stretch of time.
    assert found["steady"].runs == latency.runs


def test_the_time_is_a_limit_for_each_share():
    machine, random_ = Machine(), random.Random(1)
    wild = machine.call("wild", lambda m: random_.choice([0.01, 0.03]))
    heavy = machine.call("heavy", lambda m: random_.choice([0.1, 0.3]))
    found = measure({"wild": wild, "heavy": heavy}, clock=machine.clock, seconds=8)
    assert found["heavy"].runs * 0.2 == pytest.approx(4, rel=0.4)
    assert found["wild"].runs * 0.02 == pytest.approx(4, rel=0.2)


def test_at_least_eleven_samples_whatever_they_take():
    machine, random_ = Machine(), random.Random(1)
    slow = machine.call("slow", lambda m: random_.choice([10.0, 30.0]))
    assert measure({"slow": slow}, clock=machine.clock, seconds=1)["slow"].runs == 11


def test_drift_hits_all_alike():
    machine = Machine()
    calls = {n: machine.call(n, lambda m: 0.01 * (1 + 0.1 * m.now)) for n in "abcd"}
    found = measure(calls, clock=machine.clock, seconds=10, precision=0.001)
    medians = [latency.median for latency in found.values()]
    assert max(medians) / min(medians) < 1.02


@pytest.mark.parametrize("seconds", [1e-7, 3e-6, 1e-4])
def test_short_calls_are_timed_in_loops(seconds):
    machine = Machine()
    found = measure({"short": machine.call("short", seconds)}, clock=machine.clock)["short"]
    assert found.median == pytest.approx(seconds * 1000, rel=1e-3)
    loops = (len(machine.log)) / found.runs
    assert loops * seconds >= SAMPLE_SECONDS or loops >= 4096


def test_the_device_is_waited_for():
    machine = Machine()
    queue = []

    def launch():
        machine.now += 0.0001
        queue.append(0.01)

    def wait():
        machine.now += sum(queue)
        queue.clear()

    found = measure({"gpu": launch}, clock=machine.clock, synchronize=wait)
    assert found["gpu"].median == pytest.approx(10.1)


def test_errors_of_a_call_pass_through():
    def broken():
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        measure({"broken": broken})


@pytest.mark.parametrize("limits", [{"precision": 0}, {"seconds": -1}, {"seconds": math.nan}])
def test_limits_are_checked(limits):
    with pytest.raises(ValueError, match="must be a positive number"):
        measure({}, **limits)
    with pytest.raises(ValueError, match="must be a positive number"):
        paired_ratio(lambda: None, lambda: None, **limits)


def test_a_clock_that_stands_still():
    with pytest.raises(ValueError, match="the clock must advance"):
        measure({"a": lambda: None}, clock=lambda: 1.0)


# ---------------------------------------------------------------------------- ratio


def test_ratio_alternates_and_cancels_drift():
    machine = Machine()
    speed = lambda m: 1 + 0.5 * math.sin(m.now / 3)  # noqa: E731
    a = machine.call("a", lambda m: 0.03 * speed(m))
    b = machine.call("b", lambda m: 0.02 * speed(m))
    found = paired_ratio(a, b, clock=machine.clock)
    assert found.median == pytest.approx(1.5, rel=0.02)
    assert found.low <= found.median <= found.high
    order = "".join(machine.log[-2 * found.runs :])
    assert order == ("abba" * found.runs)[: 2 * found.runs]


def test_ratio_stops_at_its_time():
    machine, random_ = Machine(), random.Random(2)
    a = machine.call("a", lambda m: random_.uniform(0, 0.04))
    found = paired_ratio(a, machine.call("b", 0.02), clock=machine.clock, seconds=4)
    assert found.runs * 0.04 == pytest.approx(4, rel=0.1)


def test_ratio_of_a_short_and_a_long_call():
    machine = Machine()
    found = paired_ratio(machine.call("a", 1e-6), machine.call("b", 1e-2), clock=machine.clock)
    assert found.median == pytest.approx(1e-4, rel=1e-3)


# ---------------------------------------------------------------------------- settling


@pytest.mark.parametrize("settle", [0.0, 0.01])
def test_a_sample_follows_calls_of_its_own(settle):
    """Call `a` is twice as slow within 7 ms of call `b`, whose threads spin for so long."""
    machine, ended = Machine(), {"b": -1.0}

    def slowed(machine):
        return 0.002 * (2 if machine.now - ended["b"] < 0.007 else 1)

    def spinning(machine):
        ended["b"] = machine.now + 0.001
        return 0.001

    a, b = machine.call("a", slowed), machine.call("b", spinning)
    options = {"settle": settle, "clock": machine.clock}
    slow = 1 if settle else 2
    assert paired_ratio(a, b, **options).high == pytest.approx(2 * slow)
    for found in (
        measure({"a": a, "b": b}, **options),
        sustained({"a": a, "b": b}, seconds=0.5, **options)[0],
    ):
        assert found["a"].high == pytest.approx(2 * slow)
        assert found["b"].high == pytest.approx(1)


def test_settling_counts_as_time_spent():
    machine, random_ = Machine(), random.Random(3)
    wild = machine.call("wild", lambda m: random_.uniform(0.001, 0.003))
    found = measure({"wild": wild}, seconds=2, settle=0.01, precision=1e-6, clock=machine.clock)
    assert found["wild"].runs == pytest.approx(2 / 0.013, rel=0.2)
    assert machine.now == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("settle", [-1.0, math.nan, math.inf])
def test_bad_settle(settle):
    with pytest.raises(ValueError, match="settle must be a number of at least 0"):
        paired_ratio(int, int, settle=settle)


# ---------------------------------------------------------------------------- interval


@pytest.mark.parametrize("count", [*range(6, 60), 200, 999, 1000])
def test_rank_is_the_largest_with_95_percent(count):
    def miss(rank):  # an independent count: both ends together
        return 2 * sum(math.comb(count, below) for below in range(rank)) / 2**count

    assert miss(_rank(count)) <= 0.05 < miss(_rank(count) + 1)


def test_rank_goes_on_smoothly_where_the_normal_limit_takes_over():
    assert 0 <= _rank(1002) - _rank(1000) <= 2
    assert _rank(100_000) == pytest.approx(50_000 - 0.98 * math.sqrt(100_000), abs=1)


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=50))
def test_interval_holds_the_median_and_ignores_the_order(samples):
    low, high = order_interval(samples)
    middle = sorted(samples)[len(samples) // 2]
    assert min(samples) <= low <= middle <= high <= max(samples)
    assert order_interval(samples[::-1]) == (low, high)


def test_interval_of_few_samples():
    assert order_interval([3.0]) == (3.0, 3.0)
    assert order_interval([3, 1, 2, 5, 4]) == (1, 5)
    with pytest.raises(ValueError, match="at least one sample"):
        order_interval([])


def test_interval_covers_the_true_median_19_times_of_20():
    random_ = random.Random(0)
    hits = 0
    for _ in range(2000):
        low, high = order_interval([random_.expovariate(1) for _ in range(25)])
        hits += low <= math.log(2) <= high
    assert 0.94 <= hits / 2000 <= 0.985  # 0.957 by the binomial


def test_a_sustained_run_goes_by_its_second_half_and_tells_the_drift():
    machine = Machine()
    warm = machine.call("warm", lambda m: 0.010 if m.now < 5 else 0.012)
    found, drift = sustained({"warm": warm}, seconds=10, clock=machine.clock)
    assert found["warm"].median == pytest.approx(12)
    assert drift["warm"] == pytest.approx(0.2)
    assert machine.now == pytest.approx(10, abs=0.2)
    with pytest.raises(ValueError, match="seconds must be a positive number"):
        sustained({"warm": warm}, seconds=0, clock=machine.clock)


def test_a_sustained_run_samples_all_calls_alike():
    machine = Machine()
    calls = {name: machine.call(name, 0.01) for name in "abc"}
    found, drift = sustained(calls, seconds=0.1, clock=machine.clock)
    assert len({each.runs for each in found.values()}) == 1
    assert found["a"].runs >= MIN_SAMPLES
    assert all(abs(each) < 1e-9 for each in drift.values())
