"""Costs: what the engine and the governor themselves take, in time and memory."""

from __future__ import annotations

import gc
import statistics
import time
from pathlib import Path
from typing import Any

import nestling
from nestling import governor
from nestling.engine import figures
from nestling.engine.sight import percentile
from nestling.governor import Reading, begin, step
from serving_parts.menus import Served

STEPS = 20_000
REPEATS = 7
IDLE = 2000
REQUESTS = 50_000
WARM_UP = 5000


def step_us(served: Served) -> float:
    """Return the microseconds of a governor's step: the fastest of some repeats' means.

    One reading in eight is of a long queue, where more entries are looked at. Other programs only
    ever add time, so that the fastest repeat is the nearest to the truth.
    """
    forecast = figures.forecast(served.model)
    limit = 5 * forecast.times[forecast.top][1]
    policy = governor.policy("latency", forecast, {"ms": limit})
    readings = [
        Reading(
            *(k / 100, 40 if k % 8 == 7 else 1 + k % 5, k % 7 * limit / 20, 1 + k % 3),
            *(k % 2, 1, limit / 9, 2, k % 97 == 0),
        )
        for k in range(STEPS)
    ]
    means = []
    for _ in range(REPEATS):
        state = begin(policy)
        start = time.perf_counter()
        for reading in readings:
            state, _choice = step(state, reading)
        means.append(1e6 * (time.perf_counter() - start) / STEPS)
    return min(means)


def overhead(served: Served, requests: int = IDLE) -> dict[str, float | None]:
    """Return what the engine adds to a call when it is idle: one request after the other.

    It is the time from the request to its answer, less the time in which the model ran.
    """
    model, inside = served.model, [0.0]

    def run(entry: str, args: Any, kwargs: Any) -> Any:
        start = time.perf_counter()
        outputs = model(*args, subnet=entry, **kwargs)
        inside[0] = time.perf_counter() - start
        return outputs

    added = []
    smallest = figures.forecast(model).names[0]
    with nestling.Engine(model, "fixed", subnet=smallest, run=run) as engine:
        for number in range(requests + requests // 10):
            start = time.perf_counter()
            engine(served.examples[number % len(served.examples)])
            added.append(1000 * (time.perf_counter() - start - inside[0]))
    added = added[requests // 10 :]
    return {"p50_ms": statistics.median(added), "p99_ms": percentile(added, 99)}


def memory_growth(served: Served, requests: int = REQUESTS) -> dict[str, float]:
    """Return by how many MiB the process grew over requests that switch all the time."""
    with nestling.Engine(served.model, "fixed", queue=256) as engine:
        names = engine.forecast.names

        def ask(count: int) -> None:
            waiting = []
            for number in range(count):
                name = names[number % len(names)]
                example = served.examples[number % len(served.examples)]
                waiting.append(engine.submit(example, subnet=name))
                if len(waiting) == 64:
                    for reply in waiting:
                        reply.result()
                    waiting.clear()
            for reply in waiting:
                reply.result()

        ask(min(WARM_UP, requests))
        gc.collect()
        before = _resident()
        start = time.perf_counter()
        ask(requests)
        seconds = time.perf_counter() - start
        gc.collect()
    return {"mib": _resident() - before, "requests": float(requests), "seconds": seconds}


def _resident() -> float:
    """Return the resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20
