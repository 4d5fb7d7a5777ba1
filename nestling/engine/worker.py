"""Worker: one thread that runs one batch after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from nestling.engine.collation import Collation
from nestling.engine.dispatcher import Dispatcher, expired
from nestling.engine.request import Batch, Request
from nestling.errors import EngineError, NestlingError, brief

Run: TypeAlias = Callable[[str, list[Tensor], dict[str, Tensor]], Any]

STUCK = 4.0  # seconds after which a batch may count as stuck
MANY = 20.0  # times of its forecast that it must have taken, too


class Worker:
    """A thread that asks the dispatcher for batches, runs them and gives the answers.

    Args:
        desk: the dispatcher.
        ready: its lock, and the sign that there is work.
        closed: set when it shall end as soon as nothing waits.
        collation: of the model.
        run: what runs a batch.
        clock: of the engine.

    Attributes:
        thread: it runs in.
        abandoned: whether another one took its place; what it still does counts for nothing.
    """

    def __init__(
        self,
        desk: Dispatcher,
        ready: threading.Condition,
        closed: threading.Event,
        collation: Collation,
        run: Run,
        clock: Callable[[], float],
    ) -> None:
        self.abandoned = False
        self._desk = desk
        self._ready = ready
        self._closed = closed
        self._collation = collation
        self._run = run
        self._clock = clock
        self._running: tuple[Batch, float] | None = None
        self.thread = threading.Thread(target=self._work, name="nestling-worker", daemon=True)
        self.thread.start()

    @property
    def is_stuck(self) -> bool:
        """Whether its batch takes so long that it is not expected to end."""
        running = self._running
        if running is None:
            return False
        batch, start = running
        usual = batch.choice.state.usual_ms(batch.rung, len(batch.requests))
        return self._clock() - start > max(STUCK, MANY * usual / 1000)

    def abandon(self) -> None:
        """Let its batch fail, and whatever it still does count for nothing."""
        with self._ready:
            self.abandoned = True
        self._fail("the worker is stuck in this batch and was replaced")

    def _work(self) -> None:
        try:
            while (batch := self._next()) is not None:
                self._answer(batch)
        except BaseException as error:  # noqa: BLE001  (the thread ends; the watch sees it)
            self._fail(f"the worker died in this batch ({brief(error)})")

    def _next(self) -> Batch | None:
        """Wait for the next batch; None when there will be none."""
        while True:
            with self._ready:
                batch = None
                if not self.abandoned:
                    now = self._clock()
                    batch = self._chosen(now)
                    self._running = None if batch is None else (batch, now)
                over = self._desk.over()
                ended = self.abandoned or (self._closed.is_set() and not len(self._desk))
                if batch is None and not over and not ended:
                    self._ready.wait()
                    continue
            for request in over:
                settle(request, expired(request, self._clock()))
            if batch is not None or ended:
                return batch

    def _chosen(self, now: float) -> Batch | None:
        """Return the next batch; a request for which the policy itself fails, fails alone."""
        while True:
            try:
                return self._desk.next(now)
            except Exception as error:  # noqa: BLE001  (a user's own policy)
                request = self._desk.drop()
                if request is None:
                    return None
                self._desk.counts.failed += 1
                told = EngineError(f"the engine's objective fails: {brief(error)}; correct it")
                told.__cause__ = error
                settle(request, told)

    def _answer(self, batch: Batch) -> None:
        start = self._clock()
        try:
            answers: Sequence[Any] = self._outputs(batch.requests, batch.entry)
        except Exception as error:  # noqa: BLE001  (the model's own, told to whoever asked)
            answers = self._one_by_one(batch, error)
        now = self._clock()
        with self._ready:
            if self.abandoned:
                return
            self._running = None
            failed = sum(isinstance(each, BaseException) for each in answers)
            self._desk.done(batch, now, -1.0 if failed else 1000 * (now - start), failed)
        for request, answer in zip(batch.requests, answers, strict=True):
            request.future.entry, request.future.ms = batch.entry, 1000 * (now - request.since)
            settle(request, answer)

    def _outputs(self, requests: Sequence[Request], entry: str) -> list[Any]:
        args, kwargs = self._collation.call([request.inputs for request in requests])
        return self._collation.apart(self._run(entry, args, kwargs), len(requests))

    def _one_by_one(self, batch: Batch, error: Exception) -> list[Any]:
        """Return the answer of each request alone, so that only those fail that are at fault."""
        if len(batch.requests) == 1:
            return [_told(error)]
        answers: list[Any] = []
        for request in batch.requests:
            try:
                answers += self._outputs([request], batch.entry)
            except Exception as own:  # noqa: BLE001  (as above)
                answers.append(_told(own))
        return answers

    def _fail(self, why: str) -> None:
        """Let the batch that runs fail."""
        with self._ready:
            running, self._running = self._running, None
            if running is None:
                return
            self._desk.counts.failed += len(running[0].requests)
        error = EngineError(f"{why}; only its requests fail, send them again if that is safe")
        for request in running[0].requests:
            settle(request, error)


def settle(request: Request, answer: Any) -> None:
    """Give a request its answer, or its error."""
    future = request.future
    if future.done() or (not future.running() and not future.set_running_or_notify_cancel()):
        return
    if isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def _told(error: Exception) -> Exception:
    """Return an error as one of ours."""
    if isinstance(error, NestlingError):
        return error
    told = EngineError(f"the model fails on this request: {brief(error)}")
    told.__cause__ = error
    return told
