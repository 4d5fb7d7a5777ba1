"""Trials: one policy under one scenario, in real time, and what came of it."""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import nestling
from nestling.energy import NOT_HERE, find_meter
from nestling.engine import Reply
from nestling.engine.arrivals import arrivals
from nestling.engine.sending import send
from nestling.engine.sight import percentile
from serving_parts import rivals
from serving_parts.menus import Served
from serving_parts.scenarios import Scenario

QUEUE = 4096
BIN = 0.25  # seconds of a point of the picture
END = 60.0  # seconds to wait for the last answers


@dataclass(frozen=True)
class Sent:
    """One request and what became of it.

    Attributes:
        number: of the request.
        due: seconds at which it was due.
        ms: from then to its answer; None if it was not answered.
        entry: that answered it; empty if none.
        right: whether the answer was the picture's class.
    """

    number: int
    due: float
    ms: float | None
    entry: str
    right: bool


def run(
    scenario: Scenario, policy: str, served: Served, seconds: float, seed: int
) -> dict[str, Any]:
    """Run a policy under a scenario and return the result, as JSON values."""
    model = served.model
    forecast = nestling.engine.figures.forecast(model)
    rate, limit = scenario.rate(forecast), scenario.objective(forecast)
    with tempfile.TemporaryDirectory() as folder:
        runs = {"run": rivals.reloading(model, Path(folder))} if policy == rivals.RELOAD else {}
        objective = rivals.made(policy, limit, scenario.percentile, seed)
        meter = find_meter(next(model.menu.net.parameters()).device)
        with nestling.Engine(model, objective, queue=QUEUE, deadline_ms=limit, **runs) as engine:
            replies: list[tuple[int, float, Reply | None]] = []
            times = itertools.takewhile(
                lambda due: due <= seconds, arrivals(scenario.shape, rate, seed)
            )
            before = 0.0 if meter is None else meter.joules()
            start = time.monotonic()
            send(engine, times, served.examples, sent=lambda *each: replies.append(each))
            sent = [_ended(served, *each) for each in replies]
            spent = time.monotonic() - start
            joules = None if meter is None else meter.joules() - before
            counts = engine.sight().counts
    found = figures(sent, limit, served.accuracy)
    return {
        "scenario": {**asdict(scenario), "rate": rate, "seconds": seconds, "seed": seed},
        "policy": policy,
        "objective_ms": limit,
        **found,
        "switches_per_s": counts.switches / spent,
        "joules": joules,
        "energy": NOT_HERE if meter is None else meter.name,
        "counts": asdict(counts),
        "timeline": timeline(sent, limit, seconds, list(forecast.names)),
    }


def _ended(served: Served, number: int, due: float, reply: Reply | None) -> Sent:
    """Wait for a reply and return what became of it."""
    if reply is None or reply.exception(END) is not None:
        return Sent(number, due, None, "", False)
    label = int(served.labels[number % len(served.examples)])
    answer: torch.Tensor = reply.result()
    return Sent(number, due, reply.ms, reply.entry, int(answer.argmax()) == label)


def figures(sent: list[Sent], limit: float, accuracy: dict[str, float]) -> dict[str, Any]:
    """Return the figures of requests against an objective.

    Args:
        sent: all requests.
        limit: the objective in milliseconds.
        accuracy: of each subnet on the test pictures, 0 to 1.
    """
    answered = [each for each in sent if each.ms is not None]
    took = [each.ms for each in answered if each.ms is not None]
    late = len(sent) - sum(ms <= limit for ms in took)
    return {
        "queries": len(sent),
        "late": late,
        "attained": 1 - late / len(sent) if sent else None,
        "mean_accuracy": _mean([accuracy[each.entry] for each in answered]),
        "right": _mean([float(each.right) for each in answered]),
        "p50_answered_ms": percentile(took, 50),
        "p99_answered_ms": percentile(took, 99),
        "p99_ms": _percentile_of_all(took, len(sent)),
        "answered": len(answered),
        "held": held(len(sent), late),
    }


def held(queries: int, late: int, share: float = 0.01, confidence: float = 0.99) -> bool:
    """Return whether at most a share of all requests is late, with a confidence.

    It is, where so few late ones among so many would be less likely than `1 - confidence` if the
    share were just that large: 459 with none late, or 2,010 with 10.

    Source: the early stopping of MLPerf Inference's LoadGen (EARLY_STOPPING.md).
    """
    below = 0.0
    for count in range(late + 1):
        ways = math.lgamma(queries + 1) - math.lgamma(count + 1) - math.lgamma(queries - count + 1)
        below += math.exp(ways + count * math.log(share) + (queries - count) * math.log1p(-share))
        if below > 1 - confidence:
            return False
    return queries > late


def _percentile_of_all(took: list[float], sent: int) -> float | None:
    """Return the 99th percentile where what was not answered took for ever; None if that is it."""
    found = percentile([*took, *[math.inf] * (sent - len(took))], 99)
    return found if found is not None and math.isfinite(found) else None


def timeline(
    sent: list[Sent], limit: float, seconds: float, names: list[str]
) -> dict[str, list[Any]]:
    """Return what happened in each stretch of time: requests, late ones, and who answered."""
    bins = max(1, round(seconds / BIN))
    asked, late = [0] * bins, [0] * bins
    by = {name: [0] * bins for name in names}
    for each in sent:
        place = min(int(each.due / BIN), bins - 1)
        asked[place] += 1
        late[place] += each.ms is None or each.ms > limit
        if each.entry:
            by[each.entry][place] += 1
    return {"asked": asked, "late": late, **{f"by {name}": row for name, row in by.items()}}


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
