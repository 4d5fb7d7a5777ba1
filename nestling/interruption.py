"""Interruption: Ctrl-C and SIGTERM end a training or a search where it can go on again."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

IMPATIENT = 1.0  # seconds after which a second Ctrl-C stops at once, without saving


class Interrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C or SIGTERM, after its state was saved."""


@contextmanager
def graceful() -> Iterator[threading.Event]:
    """Turn Ctrl-C and SIGTERM into an event that is looked at after every step.

    A loader may hang, so a second Ctrl-C that comes after a while stops at once.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    first: list[float] = []

    def handle(number: int, _: Any) -> None:
        first.append(time.monotonic())
        if number == signal.SIGINT and first[-1] - first[0] > IMPATIENT:
            raise KeyboardInterrupt
        stop.set()

    before = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def at_once() -> Iterator[None]:
    """Let SIGTERM raise `KeyboardInterrupt`, as Ctrl-C does: for what is saved as it is made."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
