"""Dispatcher: the queue, and which requests run next; no threads and no clock of its own.

Whoever calls it holds a lock and tells the time, so that it runs in simulated time as well.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from nestling.engine.request import Batch, Request
from nestling.engine.sight import ANSWERS, Answer, Counts
from nestling.errors import ExpiredError, FullError
from nestling.governor import Choice, Policy, Reading, step
from nestling.governor.records import State
from nestling.governor.stepping import begin

Steer: TypeAlias = Callable[[Reading], Choice]

LOG = 1000  # changes of the entry that are kept
LOOK = 4  # times a batch's examples: how far it looks for requests of the same budget


def steered(policy: Policy) -> Steer:
    """Return the governor of a policy as a function that keeps its state."""
    state: list[State] = [begin(policy)]

    def steer(reading: Reading) -> Choice:
        state[0], choice = step(state[0], reading)
        return choice

    return steer


class Dispatcher:
    """Requests that wait, in the order in which they run: by priority, then by arrival.

    Args:
        steer: the governor.
        room: requests that may wait.

    Attributes:
        counts: of requests, by what became of them.
        answers: the last ones, for percentiles.
        log: the last choices that changed the entry.
        last: the last choice; None before the first.
    """

    def __init__(self, steer: Steer, room: int) -> None:
        self.room = room
        self.counts = Counts()
        self.answers: deque[Answer] = deque(maxlen=ANSWERS)
        self.log: deque[Choice] = deque(maxlen=LOG)
        self.last: Choice | None = None
        self._steer = steer
        self._waiting: list[tuple[int, int, Request]] = []
        self._number = 0
        self._over: list[Request] = []
        self._arrived = self._answered = self._late = 0
        self._ran: tuple[int, int, float] = (0, 0, 0.0)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, request: Request) -> None:
        """Take a request.

        Raises:
            FullError: as many as may wait do.
        """
        if len(self._waiting) >= self.room:
            self.counts.refused += 1
            raise FullError(
                f"the engine's queue is full: {self.room} requests wait, and no more may; try "
                "again later, send less, or make room with Engine(queue=)"
            )
        self._number += 1
        self._arrived += 1
        heapq.heappush(self._waiting, (-request.priority, self._number, request))

    def next(self, now: float) -> Batch | None:
        """Return what runs now, on one choice of the governor; None where nothing waits.

        Requests that were cancelled are dropped, and those whose deadline not even the fastest
        entry can meet are not run: `over` gives them. Where more wait than the fastest runs at
        once, those that its whole batch cannot meet are not run either: each of them would be
        answered too late and make another one late.
        """
        head = self._head(now)
        if head is None:
            return None
        choice = self._choose(now, head)
        rung = choice.rung if head.rungs is None else head.rungs[choice.rung]
        most = max(choice.batch, 1)
        if rung > choice.rung:  # a request's own budget wants a slower entry than the governor's
            most = max(1, min(most, self._room(choice, rung, most)))
        full = rung <= choice.policy.least and len(self._waiting) > most
        needed = self._usual(rung, most) if full else self._least()
        requests = self._taken(head, most, now + needed)
        if not requests:
            return self.next(now)
        return Batch(requests, rung, choice.policy.forecast.names[rung], choice)

    @staticmethod
    def _room(choice: Choice, rung: int, most: int) -> int:
        """Return how many examples a slower entry may run, so that it keeps nobody waiting."""
        known, limit = choice.policy.forecast, choice.policy.limit_ms
        usual = known.times[choice.rung][min(most, known.largest)]
        return known.batch_within(rung, usual if limit is None else limit / 2)

    def done(self, batch: Batch, now: float, took_ms: float, failed: int = 0) -> None:
        """Take note of a batch that ended.

        Args:
            batch: the batch.
            now: the time.
            took_ms: that it took; negative where that says nothing.
            failed: how many of its requests got an error.
        """
        limit = batch.choice.policy.limit_ms
        for request in batch.requests:
            spent = 1000 * (now - request.since)
            self.answers.append(Answer(now, spent, batch.rung))
            self._answered += 1
            self._late += limit is not None and spent > limit
        self.counts.answered += len(batch.requests) - failed
        self.counts.failed += failed
        self._ran = batch.rung, len(batch.requests), took_ms

    def over(self) -> list[Request]:
        """Return the requests that expired since the last call; each once."""
        found, self._over = self._over, []
        return found

    def drop(self) -> Request | None:
        """Return the request that is next, and let go of it; None where nothing waits."""
        return heapq.heappop(self._waiting)[2] if self._waiting else None

    def empty(self) -> list[Request]:
        """Return all that wait, and let go of them."""
        found = [request for _, _, request in sorted(self._waiting, key=lambda each: each[:2])]
        self._waiting.clear()
        return found

    def _head(self, now: float) -> Request | None:
        """Return the next request that is to run; those before it that are not, are taken out."""
        while self._waiting:
            request = self._waiting[0][2]
            if not self._is_gone(request, now + self._least()):
                return request
            heapq.heappop(self._waiting)
        return None

    def _is_gone(self, request: Request, end: float) -> bool:
        """Return whether a request was cancelled or cannot be answered in time, and count it.

        Args:
            request: that waits.
            end: when it would be answered at the soonest.
        """
        if request.future.cancelled():
            self.counts.cancelled += 1
            return True
        if request.deadline > end:
            return False
        self.counts.expired += 1
        self._answered += 1
        self._late += 1
        self._over.append(request)
        return True

    def _least(self) -> float:
        """Return the seconds that an answer takes at least, as far as is known."""
        return 0.0 if self.last is None else self._usual(self.last.policy.least, 1)

    def _usual(self, rung: int, batch: int) -> float:
        """Return the seconds that a call usually takes, as far as is known."""
        assert self.last is not None
        return self.last.state.usual_ms(rung, batch) / 1000

    def _choose(self, now: float, head: Request) -> Choice:
        rung, batch, took = self._ran
        reading = Reading(
            now,
            len(self._waiting),
            max(0.0, 1000 * (now - head.since)),
            self._arrived,
            rung,
            batch,
            took,
            self._answered,
            self._late,
        )
        self._arrived = self._answered = self._late = 0
        self._ran = (0, 0, 0.0)
        choice = self._steer(reading)
        if self.last is None or choice.rung != self.last.rung:
            self.counts.switches += self.last is not None
            self.log.append(choice)
        self.last = choice
        return choice

    def _taken(self, head: Request, most: int, end: float) -> list[Request]:
        """Return the requests of the next batch: those of the head's budget, in order.

        Args:
            head: the first of them.
            most: how many there may be.
            end: when they would be answered.
        """
        taken: list[Request] = []
        passed: list[tuple[int, int, Request]] = []
        while self._waiting and len(taken) < most and len(passed) < LOOK * most:
            each = heapq.heappop(self._waiting)
            request = each[2]
            if request.rungs is not head.rungs:
                passed.append(each)
            elif not self._is_gone(request, end):
                if request.future.set_running_or_notify_cancel():
                    taken.append(request)
                else:
                    self.counts.cancelled += 1
        for each in passed:
            heapq.heappush(self._waiting, each)
        return taken


def expired(request: Request, now: float) -> ExpiredError:
    """Return the error of a request that was not run."""
    waited, allowed = 1000 * (now - request.since), 1000 * (request.deadline - request.since)
    return ExpiredError(
        f"a request is answered within its deadline or not run, and this one had {allowed:.3g} ms, "
        f"of which {waited:.3g} ms were over with what is left too little for any entry; allow "
        "more, or send less"
    )
