import itertools
import statistics

import pytest

from nestling import ModelError
from nestling.engine.arrivals import arrivals, shapes


def first(count, shape, rate=50.0, seed=0):
    return list(itertools.islice(arrivals(shape, rate, seed), count))


@pytest.mark.parametrize("shape", shapes())
def test_times_ascend_and_repeat_under_a_seed(shape):
    times = first(500, shape)
    assert times == sorted(times)
    assert times == first(500, shape)
    assert times[0] > 0
    assert (times == first(500, shape, seed=1)) == (shape == "even")


@pytest.mark.parametrize(
    ("shape", "squared"), [("even", 0), ("poisson", 1), ("bursty4", 4), ("bursty8", 8)]
)
def test_gaps_have_their_mean_and_spread(shape, squared):
    times = [0.0, *first(40_000, shape)]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    mean = statistics.fmean(gaps)
    assert mean == pytest.approx(1 / 50, rel=0.05)
    assert statistics.pvariance(gaps) / mean**2 == pytest.approx(squared, rel=0.1, abs=1e-9)


def test_a_step_is_three_times_the_load():
    times = first(20_000, "step")
    high = sum(10 / 3 <= time % 10 < 20 / 3 for time in times)
    assert high / (len(times) - high) == pytest.approx(3 / 2, rel=0.05)


def test_a_trace_has_waves_and_spikes():
    times = first(60_000, "trace")
    seconds = [0] * (int(times[-1]) + 1)
    for time in times:
        seconds[int(time)] += 1
    usual = statistics.median(seconds[:-1])
    assert max(seconds) > 2.5 * usual
    assert min(seconds[:-1]) < 0.7 * usual
    assert len(times) / times[-1] == pytest.approx(50, rel=0.4)


def test_bad_loads_are_refused():
    with pytest.raises(ModelError, match=r"unknown shape 'poison'; did you mean 'poisson'"):
        arrivals("poison", 1)
    for rate in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ModelError, match="more than 0 requests"):
            arrivals("even", rate)
