"""Turns without an engine: whoever begins one runs it."""

import threading

import pytest
import torch
from simulated import ladder

from nestling import EngineError
from nestling.engine.dispatcher import Dispatcher, steered
from nestling.engine.request import Request
from nestling.engine.turn import Turn, Turns
from nestling.errors import ExpiredError
from nestling.governor import policy


class Rows:
    """A collation of single numbers."""

    def call(self, examples):
        return [torch.stack([one for (one,) in examples])], {}

    def apart(self, outputs, count):
        return list(outputs.unbind())


class Bed:
    """Turns in the test's own thread and time."""

    def __init__(self, run=lambda entry, args, kwargs: args[0] + 1):
        self.now = 0.0
        self.desk = Dispatcher(steered(policy("fixed", ladder(3, 2.0), {})), 100)
        self.turns = Turns(self.desk, Rows(), run, lambda: self.now)

    def put(self, *values, **options):
        made = [Request((torch.tensor(value),), self.now, **options) for value in values]
        for request in made:
            self.desk.add(request)
        return [request.future for request in made]

    def begin(self):
        """Return a turn that has begun; None where none can."""
        turn = Turn(self.turns)
        return turn if turn.begin() else None


def run(turn):
    with turn:
        turn.run()


def test_all_that_the_dispatcher_gives_is_answered_and_the_next_one_waits():
    bed = Bed()
    replies = bed.put(1.0, 2.0)
    assert not bed.turns.is_free
    turn = bed.begin()
    later = bed.put(3.0)
    assert bed.turns.current is turn
    assert bed.begin() is None
    run(turn)
    assert [reply.result(0).item() for reply in replies] == [2.0, 3.0]
    assert not later[0].done()
    run(bed.begin())
    assert later[0].result(0).item() == 4.0
    assert bed.begin() is None
    assert bed.turns.is_free
    assert not bed.turns.is_over
    bed.turns.closed.set()
    assert bed.turns.is_over


def test_requests_that_only_expired_are_told():
    bed = Bed()
    replies = bed.put(1.0, deadline=-1.0)
    turn = bed.begin()
    assert bed.turns.is_free
    assert not turn.is_stuck
    run(turn)
    assert isinstance(replies[0].exception(0), ExpiredError)


def test_a_thread_that_dies_lets_its_whole_batch_fail():
    def dies(entry, args, kwargs):
        raise KeyboardInterrupt

    bed = Bed(dies)
    replies = bed.put(1.0, 2.0)
    with pytest.raises(KeyboardInterrupt):
        run(bed.begin())
    for reply in replies:
        assert "the thread died in this batch (KeyboardInterrupt)" in str(reply.exception(0))
    assert bed.turns.is_free
    assert (bed.desk.counts.failed, bed.desk.counts.answered) == (2, 0)


def test_a_thread_that_dies_before_it_runs_what_it_took_lets_that_fail():
    bed = Bed()
    replies = bed.put(1.0)
    turn = bed.begin()
    with pytest.raises(KeyboardInterrupt), turn:
        raise KeyboardInterrupt
    assert isinstance(replies[0].exception(0), EngineError)
    assert bed.turns.is_free
    later, other = bed.put(2.0), bed.begin()
    with pytest.raises(KeyError), Turn(bed.turns):  # has not begun, and ends nothing
        raise KeyError
    assert bed.turns.current is other
    run(other)
    assert later[0].result(0).item() == 3.0


def test_a_thread_that_dies_while_it_answers_leaves_no_request_without():
    def interrupt(_):
        raise KeyboardInterrupt

    bed = Bed()
    replies = bed.put(1.0, 2.0)
    replies[0].add_done_callback(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(bed.begin())
    assert replies[0].result(0).item() == 2.0
    assert isinstance(replies[1].exception(0), EngineError)
    assert bed.turns.is_free


@pytest.mark.parametrize("death", [None, KeyboardInterrupt])
def test_what_an_abandoned_turn_still_does_counts_for_nothing(death):
    bed = Bed()

    def abandoned(entry, args, kwargs):
        bed.now += 1000
        assert first.is_stuck
        first.abandon()
        second = bed.begin()  # as the worker would
        second.abandon()
        assert bed.turns.is_free
        if death is not None:
            raise death
        return args[0]

    bed.turns.run = abandoned
    replies = bed.put(1.0)
    first = bed.begin()
    assert not first.is_stuck
    replies += bed.put(2.0)
    if death is None:
        run(first)
    else:
        with pytest.raises(death):
            run(first)
    for reply in replies:
        assert "stuck in this batch and was given up" in str(reply.exception(0))
    counts = bed.desk.counts
    assert (counts.failed, counts.answered) == (2, 0)


def test_a_turn_that_has_ended_is_not_abandoned():
    bed = Bed()
    replies = bed.put(1.0)
    turn = bed.begin()
    run(turn)
    turn.abandon()
    assert not turn.abandoned
    assert replies[0].result(0).item() == 2.0
    assert bed.desk.counts.failed == 0


def test_the_worker_is_told_only_of_work_and_of_the_end():
    bed, told = Bed(), []
    bed.turns.ready.notify = lambda: told.append(len(bed.desk))
    bed.put(1.0)
    run(bed.begin())
    assert told == []
    bed.put(1.0)
    turn = bed.begin()
    bed.put(2.0)
    run(turn)
    assert told == [1]
    bed.turns.closed.set()
    run(bed.begin())
    assert told == [1, 0]


def test_requests_without_a_choice_are_told_when_the_lock_is_free():
    """What is added to a future may wait for another thread that asks the engine."""
    bed, free = Bed(), []

    def fails(reading):
        raise ZeroDivisionError("no choice")

    def look():
        free.append(bed.turns.lock.acquire(timeout=0.1))
        if free[-1]:
            bed.turns.lock.release()

    def ask(_):
        other = threading.Thread(target=look)
        other.start()
        other.join()

    bed.desk._steer = fails
    replies = bed.put(1.0, 2.0)
    for reply in replies:
        reply.add_done_callback(ask)
    with bed.turns.lock:
        turn = bed.begin()
    run(turn)
    for reply in replies:
        assert "the engine's objective fails" in str(reply.exception(0))
    assert free == [True, True]
    assert bed.turns.is_free
    assert bed.desk.counts.failed == 2


def test_a_thread_that_dies_while_it_tells_what_expired_leaves_no_request_without():
    def interrupt(_):
        raise KeyboardInterrupt

    bed = Bed()
    late, later = bed.put(1.0, 2.0, deadline=-1.0)
    in_time = bed.put(3.0)[0]
    late.add_done_callback(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(bed.begin())
    for reply in (late, later):
        assert isinstance(reply.exception(0), ExpiredError)
    assert isinstance(in_time.exception(0), EngineError)
    assert bed.turns.is_free
