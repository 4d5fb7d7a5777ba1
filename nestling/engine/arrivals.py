"""Arrivals: when requests come, for demonstrations and benchmarks; the same for the same seed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator

from nestling.errors import ModelError, did_you_mean

STEP = 10.0  # seconds of a cycle of "step", of which the middle third has three times the load
WAVE = 20.0  # seconds of a slow wave of "trace"
SPIKES = 0.08  # spikes a second of "trace"


def shapes() -> list[str]:
    """Return the names of all shapes of a load."""
    return sorted(_SHAPES)


def arrivals(shape: str, rate: float, seed: int = 0) -> Iterator[float]:
    """Yield the seconds at which requests come, without end, ascending from 0.

    Args:
        shape: "even" (evenly spaced), "poisson", "bursty4" and "bursty8" (gaps from a Gamma
            distribution with so many times the squared coefficient of variation), "step" (Poisson
            arrivals whose rate is three times as high for a while), or "trace" (what recorded loads
            look like: a slow wave, and spikes that fade).
        rate: mean arrivals a second; of "step" the one before the step.
        seed: of the random gaps.

    Raises:
        ModelError: an unknown shape, or a rate that is not above 0.

    Example:
        >>> times = arrivals("even", 10)
        >>> [next(times) for _ in range(3)]
        [0.1, 0.2, 0.30000000000000004]
    """
    if shape not in _SHAPES:
        near = did_you_mean(shape, _SHAPES)
        raise ModelError(f"unknown shape {shape!r:.40}{near}; the shapes are {', '.join(shapes())}")
    if not 0 < rate < math.inf:
        raise ModelError(f"a load has more than 0 requests a second, not {rate!r:.40}")
    return _SHAPES[shape](rate, random.Random(seed))


def _even(rate: float, _: random.Random) -> Iterator[float]:
    now = 0.0
    while True:
        now += 1 / rate
        yield now


def _gamma(squared: float) -> Callable[[float, random.Random], Iterator[float]]:
    """Return arrivals whose gaps have a squared coefficient of variation; 1 is Poisson's."""

    def made(rate: float, draw: random.Random) -> Iterator[float]:
        now = 0.0
        while True:
            now += draw.gammavariate(1 / squared, squared / rate)
            yield now

    return made


def _varying(rate: Callable[[float], float], most: float, draw: random.Random) -> Iterator[float]:
    """Yield Poisson arrivals of a rate that varies, by thinning (Lewis and Shedler, 1979)."""
    now = 0.0
    while True:
        now += draw.expovariate(most)
        if draw.random() * most < rate(now):
            yield now


def _step(rate: float, draw: random.Random) -> Iterator[float]:
    def now(time: float) -> float:
        return rate * (3 if STEP / 3 <= time % STEP < 2 * STEP / 3 else 1)

    return _varying(now, 3 * rate, draw)


def _trace(rate: float, draw: random.Random) -> Iterator[float]:
    spikes: list[tuple[float, float, float]] = []  # begin, height, seconds in which it fades
    until = 0.0

    def now(time: float) -> float:
        nonlocal until
        while until < time + 1:
            until += draw.expovariate(SPIKES)
            height = min(draw.paretovariate(1.5), 4.0)
            spikes.append((until, height, draw.uniform(0.5, 2.0)))
        del spikes[:-8]
        wave = 0.75 + 0.35 * math.sin(2 * math.pi * time / WAVE)
        high = sum(
            height * math.exp((begin - time) / fade)
            for begin, height, fade in spikes
            if begin <= time
        )
        return rate * min(wave + high, 6.0)

    return _varying(now, 6 * rate, draw)


_SHAPES: dict[str, Callable[[float, random.Random], Iterator[float]]] = {
    "even": _even,
    "poisson": _gamma(1.0),
    "bursty4": _gamma(4.0),
    "bursty8": _gamma(8.0),
    "step": _step,
    "trace": _trace,
}
