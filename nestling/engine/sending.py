"""Sending: requests to an engine when they are due, whatever became of the earlier ones."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from nestling.engine.engine import Engine
from nestling.engine.reply import Reply
from nestling.errors import FullError

LEAD = 0.05  # seconds before the first arrival
SWITCH = 0.0005  # seconds after which Python lets another thread run
PAUSE = 0.0005  # seconds for which a sender rests after a refusal


def send(
    engine: Engine,
    times: Iterable[float],
    examples: Sequence[Any],
    *,
    deadline_ms: float | None = None,
    sent: Callable[[int, float, Reply | None], object] | None = None,
    stop: threading.Event | None = None,
) -> int:
    """Send requests when they are due; return how many.

    Requests that come at a high rate keep Python busy; while they are sent, threads take turns more
    often than usual. Latencies and deadlines count from the time at which a request is due, so that
    a sender that falls behind hides nothing. The engine must run on the usual clock,
    `time.monotonic`.

    Args:
        engine: that gets them.
        times: seconds from now at which they are due, ascending.
        examples: sent in turn.
        deadline_ms: of each.
        sent: told the number of each request, when it was due, and its reply; None where the queue
            was full.
        stop: ends it early when it is set.
    """
    before = sys.getswitchinterval()
    # A worker gives Python's lock away at every op and would wait 5 ms for it, which is the usual.
    sys.setswitchinterval(SWITCH)
    try:
        return _send(engine, times, examples, deadline_ms, sent, stop or threading.Event())
    finally:
        sys.setswitchinterval(before)


def _send(
    engine: Engine,
    times: Iterable[float],
    examples: Sequence[Any],
    deadline_ms: float | None,
    sent: Callable[[int, float, Reply | None], object] | None,
    halt: threading.Event,
) -> int:
    start = time.monotonic() + LEAD
    number = 0
    for due in times:
        at = start + due
        wait = at - time.monotonic()
        if (wait > 0 and halt.wait(wait)) or halt.is_set():
            break
        reply: Reply | None = None
        try:
            example = examples[number % len(examples)]
            reply = engine.submit(example, since=at, deadline_ms=deadline_ms)
        except FullError:
            halt.wait(PAUSE)  # counted by the engine, and told below
        if sent is not None:
            sent(number, due, reply)
        number += 1
    return number
