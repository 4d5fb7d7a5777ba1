"""Engine: one loaded model that holds an objective by itself while the load changes."""

from __future__ import annotations

import asyncio
import atexit
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from nestling import governor
from nestling.engine import collector, figures
from nestling.engine.caller import Caller
from nestling.engine.collation import Collation
from nestling.engine.dispatcher import Dispatcher, Steer, steered
from nestling.engine.filling import Filling
from nestling.engine.reply import Reply
from nestling.engine.request import Request
from nestling.engine.sight import Sight, percentile
from nestling.engine.turn import Run, Turn, Turns
from nestling.engine.worker import Worker
from nestling.errors import EngineError, FullError, ModelError, brief
from nestling.governor import Choice, Forecast
from nestling.governor.checks import positive
from nestling.governor.fixed import within
from nestling.runtime import LoadedModel, load

QUEUE = 1024  # requests that may wait
BUDGETS = 1000  # different budgets of requests that are remembered
WATCH = 0.5  # seconds between two looks at the worker
READY = 2.0  # seconds after which no further numbers of examples are run before the first request


class Engine:
    """Runs requests from any number of threads through one model, and holds an objective.

    Each batch is one choice of the governor: which subnet runs, and how many of the waiting
    requests. One runs at a time, in a worker thread; if that dies, or a batch takes far too long,
    the batch fails alone and another worker takes over. The thread that made the engine runs the
    batch of a call itself where nothing else runs or waits, which saves waking another thread.
    Use it with `with`, or call `close`.

    Args:
        source: a `.nest` file, or a `LoadedModel`.
        objective: the name of a policy of `nestling.governor` ("latency", "fixed", "throughput",
            "energy", "schedule"), or a function from a `Forecast` to one that answers each
            `Reading` with a `Choice`.
        queue: requests that may wait; one more is refused at once.
        deadline_ms: milliseconds after which an answer is of no use; such requests are not run.
            They may also have a deadline each.
        measure: measure what the profile lacks of this device, which takes seconds, instead of
            refusing to start.
        run: what runs a batch, instead of the model: from an entry's name, positional inputs and
            keywords to outputs.
        clock: a function that returns seconds and does not jump.
        **options: of the policy, such as `ms=20, percentile=99` of "latency".

    Attributes:
        model: the loaded model.
        forecast: what its entries cost here.
        left_out: entries that failed when they were tried at the start, with the reason.

    Raises:
        BudgetError: no entry meets the objective (the message names the fastest), or there is no
            profile of this device.
        ModelError: an unknown objective or option; or the model cannot be batched.
        FileError: the file cannot be read.

    Example:
        >>> with nestling.Engine("model.nest", "latency", ms=20) as engine:
        ...     answer = engine(picture)                      # waits for it
        ...     future = engine.submit(picture, priority=1)   # does not
        ...     answers = engine.batch(pictures)              # many
    """

    def __init__(
        self,
        source: str | Path | LoadedModel,
        objective: str | Callable[[Forecast], Steer] = "latency",
        *,
        queue: int = QUEUE,
        deadline_ms: float | None = None,
        measure: bool = False,
        run: Run | None = None,
        clock: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> None:
        model = source if isinstance(source, LoadedModel) else load(source)
        if isinstance(queue, bool) or not isinstance(queue, int) or queue < 1:
            raise ModelError(f"queue= is a whole number of at least 1, but it is {queue!r:.80}")
        _check_deadline(deadline_ms)
        self.model = figures.measured(model) if measure else model
        self._run: Run = run or self._through_model
        device = next(self.model.menu.net.parameters()).device
        self._collation = Collation(self.model.menu.net.signature, device)
        batches = figures.known_batches(self.model)
        self.model.prepare(*batches)
        # What a user's own `run` is given is not filled up.
        self._filling = Filling.of(self.model, batches) if run is None else Filling((), {})
        fixed = self._filling.fixed
        self.forecast = figures.forecast(self.model, fixed=fixed)
        self.left_out = self._tried(device)
        if self.left_out:
            self.forecast = figures.forecast(self.model, self.left_out, fixed)
        self._desk = Dispatcher(_governor(objective, self.forecast, options), queue)
        self._deadline_ms = deadline_ms
        self._clock = clock
        self._budgets: dict[tuple[tuple[str, Any], ...], tuple[int, ...]] = {}
        self._over = threading.Event()
        self._turns = Turns(self._desk, self._collation, self._run, clock)
        self._lock, self._closed = self._turns.lock, self._turns.closed
        self._caller = Caller(device)
        self._process = os.getpid()
        collector.hold()
        self._worker = Worker(self._turns)
        self._watch = threading.Thread(target=self._watched, name="nestling-watch", daemon=True)
        self._watch.start()
        self._at_exit = _close_at_exit(self)

    # -- requests --------------------------------------------------------------------------------

    def submit(
        self,
        example: Any,
        *,
        deadline_ms: float | None = None,
        priority: int = 0,
        since: float | None = None,
        **budget: Any,
    ) -> Reply:
        """Take one example and return at once; the reply gets its output.

        It is a future (`result()`, `cancel()` ...) that also tells which subnet answered.

        An example that does not fit the model fails alone, in its future. It is not copied: do not
        write to it before it is answered.

        Args:
            example: a tensor without the dimension of the batch; for a model of several inputs a
                tuple of tensors, or a mapping by keyword.
            deadline_ms: milliseconds from its arrival within which it is answered or not run.
            priority: requests of a larger one run first.
            since: when it arrived, on the engine's clock; now if None.
            **budget: for this request alone, as for `LoadedModel.choose` (`fraction=`, `macs=` ...)
                or `subnet=`; the governor chooses within it.

        Raises:
            FullError: the queue is full.
            EngineError: the engine is closed, or was made before a fork.
            BudgetError: no entry on offer is within the budget, or the deadline is no number.
            ModelError: a priority that is no whole number.
        """
        request = self._request(
            example, deadline_ms=deadline_ms, priority=priority, since=since, **budget
        )
        self._take(request)
        return request.future

    def __call__(self, example: Any, **options: Any) -> Any:
        """Return the output of one example; see `submit` for the options and errors.

        Raises:
            ExpiredError: its deadline could not be met.
            ModelError: the example does not fit the model.
            DataError: it holds NaN or infinity.
        """
        request = self._request(example, **options)
        if self._caller.is_here:
            with Turn(self._turns) as turn, torch.enable_grad():  # as it is in the worker
                self._take(request, turn)
                turn.run()
        else:
            self._take(request)
        return request.future.result()

    async def infer(self, example: Any, **options: Any) -> Any:
        """Return the output of one example, for asyncio; cancelling the task cancels the request.

        See `submit` for the options and errors.
        """
        return await asyncio.wrap_future(self.submit(example, **options))

    def batch(self, examples: Iterable[Any], **options: Any) -> Any:
        """Return the outputs of many examples, each a request of its own.

        They may be more than the queue holds. If one fails, the others are run all the same, and
        its error is raised at the end; to have every answer, `submit` each.

        Args:
            examples: a tensor with the dimension of the batch, or single examples.
            **options: see `submit`.

        Returns:
            Outputs as the model gives them for a batch: one tensor, or a list.
        """
        replies: list[Reply] = []
        waiting = 0
        for example in examples:
            while True:
                try:
                    replies.append(self.submit(example, **options))
                    break
                except FullError:
                    if waiting == len(replies):
                        raise  # others fill the queue
                    replies[waiting].exception()
                    waiting += 1
        errors = [error for error in (each.exception() for each in replies) if error is not None]
        if errors:
            raise errors[0]
        return self._collation.together([each.result() for each in replies])

    # -- what it does ----------------------------------------------------------------------------

    def sight(self) -> Sight:
        """Return what the engine does just now, in numbers."""
        with self._lock:
            desk = self._desk
            answers, last = list(desk.answers), desk.last
            counts, waiting = desk.counts.copy(), len(desk)
        took = [each.ms for each in answers]
        scores = [self.forecast.scores[each.rung] for each in answers]
        return Sight(
            entry="" if last is None else last.entry,
            queue=waiting,
            rate=0.0 if last is None else 1000 * last.state.surge,
            p50_ms=percentile(took, 50),
            p95_ms=percentile(took, 95),
            p99_ms=percentile(took, 99),
            score=sum(scores) / len(scores) if scores else None,
            counts=counts,
            reason="" if last is None else last.reason,
        )

    @property
    def log(self) -> list[Choice]:
        """The last choices that changed the subnet, oldest first; each has a `reason` in words."""
        with self._lock:
            return list(self._desk.log)

    # -- its end ---------------------------------------------------------------------------------

    def close(self, *, drain: bool = True) -> None:
        """End the engine; a second call does nothing.

        Args:
            drain: run what waits first; otherwise it is cancelled.
        """
        if os.getpid() != self._process:
            return
        with self._lock:
            if not self._closed.is_set():
                collector.release()
            self._closed.set()
            left = [] if drain else self._desk.empty()
            self._turns.ready.notify_all()
            turn = self._turns.current
        for request in left:
            request.future.cancel()
        atexit.unregister(self._at_exit)
        busy = self._worker.thread, self._watch, None if turn is None else turn.thread
        if threading.current_thread() not in busy:  # those would wait for themselves
            self._end()

    def _end(self) -> None:
        """Wait for the last turn and the worker, and let nobody wait for what they left behind."""
        while True:
            self._worker.thread.join(WATCH)
            with self._lock:
                if self._turns.is_over and self._worker.is_gone:
                    break
        self._over.set()
        self._watch.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(drain=kind is None)

    def __repr__(self) -> str:
        names = ", ".join(self.forecast.names)
        state = "closed" if self._closed.is_set() else f"{len(self._desk)} waiting"
        return f"Engine of {names}: {state}"

    # -- parts -----------------------------------------------------------------------------------

    def _request(
        self,
        example: Any,
        *,
        deadline_ms: float | None = None,
        priority: int = 0,
        since: float | None = None,
        **budget: Any,
    ) -> Request:
        """Return a request, checked; one whose example does not fit has failed already."""
        if os.getpid() != self._process:
            raise EngineError(
                f"an engine belongs to the process that made it ({self._process}), and its worker "
                f"does not live on in a forked one ({os.getpid()}); make an Engine there"
            )
        now = self._clock()
        start = now if since is None else since
        limit = self._deadline_ms if deadline_ms is None else deadline_ms
        if deadline_ms is not None:
            _check_deadline(deadline_ms)
        end = math.inf if limit is None else start + limit / 1000
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise ModelError(
                f"priority= is a whole number, the larger the sooner, not {priority!r:.80}"
            )
        rungs = self._rungs(budget) if budget else None
        request = Request((), start, end, priority, rungs)
        try:
            request.inputs = self._collation.inputs(example)
        except ModelError as error:
            request.future.set_exception(error)
        return request

    def _take(self, request: Request, turn: Turn | None = None) -> None:
        """Let a request wait for the worker, or begin a turn of the calling thread with it.

        Args:
            request: that may have failed already, and then waits for nothing.
            turn: begins where nothing else runs or waits.
        """
        if request.future.done():
            return
        with self._lock:
            self._check_open()
            here = turn is not None and self._turns.is_free
            self._desk.add(request)
            if turn is not None and here:
                try:
                    turn.begin()
                except BaseException:  # Ctrl-C: nobody asks for the answer any more
                    self._desk.empty()  # of this request, which alone waits
                    raise
            elif self._turns.current is None:  # otherwise whoever ends the turn looks
                self._turns.ready.notify()

    def _watched(self) -> None:
        """Give up a turn that is stuck, and replace a worker that is gone, until all has ended."""
        while not self._over.wait(WATCH):
            turn = self._turns.current
            if turn is not None and turn.is_stuck:
                turn.abandon()
            if not self._worker.is_gone:
                continue
            with self._lock:
                if self._turns.is_over:
                    return  # also where `close` was called by the worker itself, which cannot wait
                self._desk.counts.revived += 1
                self._worker = Worker(self._turns)

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise EngineError("the engine is closed and takes no more requests; make another one")

    def _rungs(self, budget: dict[str, Any]) -> tuple[int, ...]:
        """Return what runs within a budget in place of each rung that the governor may choose."""
        key = tuple(sorted(budget.items()))
        with suppress(TypeError):  # what cannot be looked up is no number; said below
            if key in self._budgets:
                return self._budgets[key]
        subnet = budget.pop("subnet", None)
        allowed = within(self.forecast, subnet, budget)
        places = range(len(self.forecast.names))
        rungs = tuple(max([a for a in allowed if a <= rung] or [allowed[0]]) for rung in places)
        if len(self._budgets) < BUDGETS:
            self._budgets[key] = rungs
        return rungs

    def _through_model(self, entry: str, args: list[torch.Tensor], kwargs: dict[str, Any]) -> Any:
        return self._filling.run(self.model, entry, args, kwargs)

    def _tried(self, device: torch.device) -> dict[str, str]:
        """Run every entry on made-up inputs, which also makes it ready; return those that fail.

        A library may first make code for just that number of examples, so that the first call takes
        twice as long as later ones; under load that makes requests late. So entries run with one
        example and with the most, and then with every number between that is not filled up, few
        first, until `READY` seconds are over.
        """
        failed: dict[str, str] = {}
        names, largest = self.forecast.names, self.forecast.largest
        example = lru_cache(1)(self.model.menu.net.signature.example)
        end = time.monotonic() + READY
        for batch, name in product(dict.fromkeys((1, largest, *range(2, largest))), names):
            if batch not in (1, largest) and time.monotonic() > end:
                break
            if name in failed or self._filling.size(name, batch) != batch:
                continue
            args, kwargs = example(batch, device)
            try:
                self._collation.apart(self._run(name, args, kwargs), batch)
            except Exception as error:  # noqa: BLE001  (the entry is left out, and says why)
                failed[name] = brief(error)
        if len(failed) == len(self.forecast.names):
            name, reason = next(iter(failed.items()))
            raise ModelError(f"every entry fails on made-up inputs; {name!r} with: {reason}")
        return failed


def _governor(
    objective: str | Callable[[Forecast], Steer], forecast: Forecast, options: dict[str, Any]
) -> Steer:
    if isinstance(objective, str):
        return steered(governor.policy(objective, forecast, options))
    if options:
        raise ModelError(
            f"options are for an objective by name, but {', '.join(options)} came with a function; "
            "bind them to it"
        )
    return objective(forecast)


def _check_deadline(milliseconds: Any) -> None:
    """Check a deadline.

    Raises:
        BudgetError: it is no number above 0.
    """
    if milliseconds is not None:
        positive("deadline_ms", milliseconds)


def _close_at_exit(engine: Engine) -> Callable[[], None]:
    """Close an engine that was left open before Python takes its threads away."""
    known = weakref.ref(engine)

    def close() -> None:
        left = known()
        if left is not None:
            left.close(drain=False)

    atexit.register(close)
    return close
