"""Turn: one batch on its way through the model; an engine has one at a time, in any thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, TypeAlias

from torch import Tensor

from nestling.engine.collation import Collation
from nestling.engine.dispatcher import Dispatcher, expired
from nestling.engine.request import Batch, Request
from nestling.errors import EngineError, NestlingError, brief

Run: TypeAlias = Callable[[str, list[Tensor], dict[str, Tensor]], Any]

STUCK = 4.0  # seconds after which a batch may count as stuck
MANY = 20.0  # times of its forecast that it must have taken, too


class Turns:
    """The turns of an engine: which one goes on, and what the next one runs.

    Who calls `next` and `end` holds the lock.

    Args:
        desk: the dispatcher.
        collation: of the model.
        run: what runs a batch.
        clock: of the engine.

    Attributes:
        current: the turn that goes on; None between two.
        unsteered: requests for which the policy itself failed, with the error, until a turn takes
            them to tell them.
        lock: of the dispatcher and of all this.
        ready: the sign for the worker that there may be work.
        closed: set when no more requests come.
    """

    def __init__(
        self,
        desk: Dispatcher,
        collation: Collation,
        run: Run,
        clock: Callable[[], float],
    ) -> None:
        self.current: Turn | None = None
        self.unsteered: list[tuple[Request, EngineError]] = []
        # Entered itself, as a condition enters it in Python code, where Ctrl-C can leave it locked.
        self.lock = threading.RLock()
        self.ready = threading.Condition(self.lock)
        self.closed = threading.Event()
        self.desk = desk
        self.collation = collation
        self.run = run
        self.clock = clock

    @property
    def is_free(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return self.current is None and not len(self.desk)

    @property
    def is_over(self) -> bool:
        """Whether nothing runs, nothing waits and nothing comes any more."""
        return self.is_free and self.closed.is_set()

    def end(self, turn: Turn) -> bool:
        """Let the next turn begin; False where this one does not go on."""
        if self.current is not turn:
            return False
        if len(self.desk) or self.closed.is_set():
            self.ready.notify()  # a worker that waits for the end of this turn
        self.current = None
        return True

    def next(self, now: float) -> Batch | None:
        """Return what runs next; a request for which the policy itself fails, fails alone.

        It is told by the turn, without the lock: what was added to its future may ask the engine.
        """
        while True:
            try:
                return self.desk.next(now)
            except Exception as error:  # noqa: BLE001  (a user's own policy)
                request = self.desk.drop()
                if request is None:
                    return None
                self.desk.counts.failed += 1
                told = EngineError(f"the engine's objective fails: {brief(error)}; correct it")
                told.__cause__ = error
                self.unsteered.append((request, told))


class Turn:
    """One batch, and requests that failed before it, in the thread that makes the turn.

    Use it with `with`: where an error leaves the block (Ctrl-C may come at any line), the batch
    fails, and the next turn can begin.

    Args:
        turns: of the engine.

    Attributes:
        thread: that runs it.
        abandoned: whether it was given up; what it still does counts for nothing.
    """

    def __init__(self, turns: Turns) -> None:
        self.thread = threading.current_thread()
        self.abandoned = False
        self._turns = turns
        self._start = 0.0
        self._batch: Batch | None = None
        self._over: Sequence[Request] = ()
        self._unsteered: Sequence[tuple[Request, EngineError]] = ()

    @property
    def is_stuck(self) -> bool:
        """Whether its batch takes so long that it is not expected to end."""
        if self._batch is None:
            return False
        usual = self._batch.choice.state.usual_ms(self._batch.rung, len(self._batch.requests))
        return self._turns.clock() - self._start > max(STUCK, MANY * usual / 1000)

    def begin(self) -> bool:
        """Take what is to be done next; False where there is nothing, or another turn goes on.

        Whoever calls this holds the lock.
        """
        if self._turns.current is not None or not len(self._turns.desk):
            return False
        self._start = self._turns.clock()
        self._batch = self._turns.next(self._start)
        if self._batch is not None:
            self._turns.current = self
        self._over = self._turns.desk.over()
        self._unsteered, self._turns.unsteered = self._turns.unsteered, []
        return self._batch is not None or bool(self._over) or bool(self._unsteered)

    def run(self) -> None:
        """Run what it took; each request gets its answer or its error."""
        self._refuse()
        if self._batch is not None:
            self._answer(self._batch)

    def abandon(self) -> None:
        """Let its batch fail, and whatever its thread still does count for nothing."""
        with self._turns.lock:
            self.abandoned = self._failed()
        if self.abandoned:  # otherwise it has just ended
            self._tell("the thread is stuck in this batch and was given up")

    def __enter__(self) -> Turn:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            return
        self._failed()
        self._refuse()
        if not self.abandoned:
            self._tell(f"the thread died in this batch ({brief(error)})")

    def _refuse(self) -> None:
        """Let those that are not run fail."""
        for request, error in self._unsteered:
            settle(request, error)
        for request in self._over:
            settle(request, expired(request, self._turns.clock()))

    def _answer(self, batch: Batch) -> None:
        start = self._turns.clock()
        try:
            answers: Sequence[Any] = self._outputs(batch.requests, batch.entry)
        except Exception as error:  # noqa: BLE001  (the model's own, told to whoever asked)
            answers = self._one_by_one(batch, error)
        now = self._turns.clock()
        with self._turns.lock:
            if not self._turns.end(self):
                return
            failed = sum(isinstance(each, BaseException) for each in answers)
            self._turns.desk.done(batch, now, -1.0 if failed else 1000 * (now - start), failed)
        for request, answer in zip(batch.requests, answers, strict=True):
            request.future.entry, request.future.ms = batch.entry, 1000 * (now - request.since)
            settle(request, answer)

    def _outputs(self, requests: Sequence[Request], entry: str) -> list[Any]:
        collation = self._turns.collation
        args, kwargs = collation.call([request.inputs for request in requests])
        return collation.apart(self._turns.run(entry, args, kwargs), len(requests))

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

    def _failed(self) -> bool:
        """End the turn without answers; False where it does not go on."""
        with self._turns.lock:
            ended = self._turns.end(self)
            if ended and self._batch is not None:
                self._turns.desk.counts.failed += len(self._batch.requests)
            return ended

    def _tell(self, why: str) -> None:
        """Let every request fail that has no answer yet."""
        error = EngineError(f"{why}; only its requests fail, send them again if that is safe")
        for request in () if self._batch is None else self._batch.requests:
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
