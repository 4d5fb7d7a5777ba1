"""Latency: measure calls in turn until each median is known well enough.

One run measures all calls round by round in shuffled order, so that a processor that heats up or a
neighbour that wakes hits all of them alike. The figure is the median, and its uncertainty a
distribution-free interval: the number of samples below the true median is binomial, whatever the
noise looks like.

Threads of some runtimes go on spinning after a call, and take the processor from whatever is called
next: those of OpenMP (torch) and of OpenVINO for about 7 ms, those of an ONNX Runtime session with
its usual options for 30 ms, which makes the next call up to twice as slow on two cores. Where calls
of several runtimes are timed in turn, `settle` lets each follow calls of its own, as in service.

Source: Conover, Practical Nonparametric Statistics (1999), section 3.2 (quantile intervals from
order statistics).
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

MIN_SAMPLES = 11
SAMPLE_SECONDS = 0.0002  # shorter calls are timed several at a time
SETTLE_SECONDS = 0.01  # threads of OpenMP and OpenVINO sleep after that time
MAX_LOOPS = 4096
_WARM_UP_CALLS = 3
_WARM_UP_SECONDS = 0.05

Call = Callable[[], object]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Latency:
    """How long a call takes, in milliseconds.

    Attributes:
        median: the median of the samples.
        low: lower end of the 95 % interval of the median.
        high: upper end of it.
        runs: samples that these figures rest on.
    """

    median: float
    low: float
    high: float
    runs: int


@dataclass(frozen=True)
class Ratio:
    """How many times as long one call takes as another one.

    Attributes:
        median: the median over pairs of runs.
        low: lower end of the 95 % interval of the median.
        high: upper end of it.
        runs: pairs that these figures rest on.
    """

    median: float
    low: float
    high: float
    runs: int


def measure(
    calls: Mapping[str, Call],
    *,
    precision: float = 0.03,
    seconds: float = 10.0,
    settle: float = 0.0,
    clock: Clock = time.perf_counter,
    synchronize: Callable[[], object] | None = None,
) -> dict[str, Latency]:
    """Measure the latency of several calls within one run.

    Every call is warmed up and then sampled once a round, in an order that is shuffled anew for
    each round (with a fixed seed). The run ends when the interval of each call's median is within
    `precision` of it, or the call's share of `seconds` is spent; each has at least 11 samples, even
    where these take longer. Calls that are settled go on being sampled until the others are, so
    that all figures come from the same stretch of time.

    Args:
        calls: name -> function of no arguments. What it raises passes through.
        precision: half the width of the interval, as a share of the median: 0.03 is 3 %.
        seconds: time for all calls together, without warm-up; each has an equal share.
        settle: seconds for which a call is repeated, once at least, before each sample of it; 0 for
            no time. It counts as time spent.
        clock: a function that returns seconds.
        synchronize: waits for a device to finish, such as `torch.cuda.synchronize`; called before
            the clock is read.

    Returns:
        Name -> latency in milliseconds, in the order of `calls`. Where the interval is wider than
        the precision asked for, the time was not enough for this noise.

    Raises:
        ValueError: a precision or a time that is not positive, a settle below 0, or a clock that
            stands still.

    Example:
        >>> found = measure({"sum": lambda: sum(range(100))}, seconds=0.05)
        >>> found["sum"].low <= found["sum"].median <= found["sum"].high
        True
    """
    _check_limits(precision, seconds, settle)
    timers = {name: _Timer(call, clock, synchronize, settle) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    shuffle = random.Random(0).shuffle
    check_at = MIN_SAMPLES
    while going := [
        name
        for name, timer in timers.items()
        if len(samples[name]) < MIN_SAMPLES or timer.spent < seconds / len(timers)
    ]:
        shuffle(going)
        for name in going:
            samples[name].append(timers[name].sample())
        if len(samples[going[0]]) >= check_at:
            if all(_is_settled(samples[name], precision) for name in going):
                break
            check_at = _next_check(check_at)
    return {
        name: Latency(statistics.median(taken), *order_interval(taken), runs=len(taken))
        for name, taken in samples.items()
    }


def sustained(
    calls: Mapping[str, Call],
    *,
    seconds: float,
    settle: float = 0.0,
    clock: Clock = time.perf_counter,
    synchronize: Callable[[], object] | None = None,
) -> tuple[dict[str, Latency], dict[str, float]]:
    """Measure the latency of calls that go on for minutes, as in service.

    A processor that has worked for long is warmer and may be slower. The calls are sampled round by
    round, in an order that is shuffled anew, until the time is over.

    Args:
        calls: name -> function of no arguments.
        seconds: from the first sample to the last.
        settle: seconds for which a call is repeated, once at least, before each sample of it; 0 for
            no time.
        clock: a function that returns seconds.
        synchronize: waits for a device to finish; called before the clock is read.

    Returns:
        Name -> latency in the second half of the time; and name -> drift: by what share the median
        of the last quarter is above that of the first.

    Raises:
        ValueError: a time that is not positive, a settle below 0, or a clock that stands still.

    Example:
        >>> found, drift = sustained({"sum": lambda: sum(range(100))}, seconds=0.05)
        >>> found["sum"].runs >= 11
        True
    """
    _check_limits(1, seconds, settle)
    timers = {name: _Timer(call, clock, synchronize, settle) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    shuffle = random.Random(0).shuffle
    order, start, rounds = list(calls), clock(), 0
    while rounds < 2 * MIN_SAMPLES or clock() - start < seconds:
        shuffle(order)
        for name in order:
            samples[name].append(timers[name].sample())
        rounds += 1
    found, drifts = {}, {}
    for name, taken in samples.items():
        late = taken[len(taken) // 2 :]
        found[name] = Latency(statistics.median(late), *order_interval(late), runs=len(late))
        quarter = len(taken) // 4
        first, last = taken[:quarter], taken[-quarter:]
        drifts[name] = statistics.median(last) / statistics.median(first) - 1
    return found, drifts


def paired_ratio(
    a: Call,
    b: Call,
    *,
    precision: float = 0.02,
    seconds: float = 10.0,
    settle: float = 0.0,
    clock: Clock = time.perf_counter,
    synchronize: Callable[[], object] | None = None,
) -> Ratio:
    """Measure how many times as long `a` takes as `b`, for benchmarks.

    The two are timed side by side (A B, B A, A B ...) and each pair gives a ratio: what slows the
    machine down for longer than a pair cancels out, and so does being first.

    Args:
        a: the call in question.
        b: the call it is compared with.
        precision: half the width of the interval, as a share of the median ratio.
        seconds: time for both together, without warm-up.
        settle: seconds for which a call is repeated, once at least, before each sample of it; 0 for
            no time. It counts as time spent.
        clock: a function that returns seconds.
        synchronize: waits for a device to finish; called before the clock is read.

    Returns:
        The median ratio of time(a) to time(b) and its 95 % interval, from at least 11 pairs.

    Raises:
        ValueError: a precision or a time that is not positive, a settle below 0, or a clock that
            stands still.

    Example:
        >>> found = paired_ratio(lambda: sum(range(2000)), lambda: sum(range(1000)), seconds=0.05)
        >>> found.runs >= 11
        True
    """
    _check_limits(precision, seconds, settle)
    timer_a, timer_b = (_Timer(call, clock, synchronize, settle) for call in (a, b))
    ratios: list[float] = []
    check_at = MIN_SAMPLES
    while len(ratios) < MIN_SAMPLES or timer_a.spent + timer_b.spent < seconds:
        if len(ratios) % 2 == 0:
            time_a = timer_a.sample()
            time_b = timer_b.sample()
        else:
            time_b = timer_b.sample()
            time_a = timer_a.sample()
        ratios.append(time_a / time_b)
        if len(ratios) >= check_at:
            if _is_settled(ratios, precision):
                break
            check_at = _next_check(check_at)
    return Ratio(statistics.median(ratios), *order_interval(ratios), runs=len(ratios))


def order_interval(samples: Sequence[float]) -> tuple[float, float]:
    """Return a 95 % interval of the median that assumes nothing about the noise.

    The ends are two of the samples themselves: the k-th smallest and the k-th largest, with the
    largest k for which both miss the true median with a probability of at most 5 % together
    (the number of samples below it is binomial with p = 1/2). Fewer than six samples cannot give
    95 %; then the ends are the smallest and the largest.

    Args:
        samples: independent measurements, at least one.

    Raises:
        ValueError: no samples.

    Example:
        >>> order_interval([5, 1, 4, 2, 3, 6, 9, 8, 7, 10, 11])
        (2, 10)
    """
    if not samples:
        raise ValueError("an interval needs at least one sample, and there is none")
    ordered = sorted(samples)
    rank = _rank(len(ordered))
    return ordered[rank - 1], ordered[len(ordered) - rank]


@lru_cache(maxsize=1024)
def _rank(count: int) -> int:
    """Return the largest k >= 1 with P(Binomial(count, 1/2) < k) <= 0.025, or 1."""
    if count > 1000:  # the normal limit, rounded down; the exact sum would need 1000-digit integers
        return math.floor(count / 2 - 1.96 * math.sqrt(count) / 2)
    rank, below, term = 0, 0, 1
    while 40 * (below + term) <= 2**count:
        below += term
        term = term * (count - rank) // (rank + 1)
        rank += 1
    return max(rank, 1)


class _Timer:
    """Samples one warmed-up call: milliseconds a call, several calls a sample if they are short."""

    def __init__(
        self,
        call: Call,
        clock: Clock,
        synchronize: Callable[[], object] | None,
        settle: float = 0.0,
    ) -> None:
        self._call = call
        self._settle = settle
        self._clock = clock
        self._synchronize = synchronize
        self._loops = 1
        self._warm_up()
        self.spent = 0.0  # seconds

    def sample(self) -> float:
        settled = 0.0
        while settled < self._settle:
            settled += self._run()
        elapsed = self._run()
        self.spent += settled + elapsed
        return elapsed / self._loops * 1000

    def _run(self) -> float:
        call, loops = self._call, range(self._loops)
        if self._synchronize is not None:
            self._synchronize()
        start = self._clock()
        for _ in loops:
            call()
        if self._synchronize is not None:
            self._synchronize()
        return self._clock() - start

    def _warm_up(self) -> None:
        """Call a few times, then double the calls of a sample until it lasts long enough."""
        total, calls = 0.0, 0
        while calls < _WARM_UP_CALLS or (total < _WARM_UP_SECONDS and calls < 10):
            total += self._run()
            calls += 1
        while (elapsed := self._run()) < SAMPLE_SECONDS and self._loops < MAX_LOOPS:
            self._loops *= 2
        if elapsed <= 0:
            raise ValueError(
                f"the clock must advance, and {self._loops} calls took {elapsed} seconds; "
                "pass a finer clock"
            )


def _is_settled(samples: Sequence[float], precision: float) -> bool:
    low, high = order_interval(samples)
    median = statistics.median(samples)
    return max(high - median, median - low) <= precision * median


def _next_check(count: int) -> int:
    # Looking after every sample would stop at the first lucky streak and understate the noise.
    return math.ceil(1.5 * count)


def _check_limits(precision: float, seconds: float, settle: float) -> None:
    if not 0 <= settle < math.inf:
        raise ValueError(f"settle must be a number of at least 0, not {settle}")
    for name, value in (("precision", precision), ("seconds", seconds)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive number, not {value}")
