"""Turns without an engine: whoever begins one runs it."""

import threading

import pytest
import torch
from simulated import ladder

from nestling import EngineError
from nestling.engine.dispatcher import Dispatcher, steered
from nestling.engine.request import Request
from nestling.engine.turn import Turns
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
        self.closed = threading.Event()
        self.ready = threading.Condition()
        parts = self.desk, self.ready, self.closed, Rows(), run, lambda: self.now
        self.turns = Turns(*parts)

    def put(self, *values, **options):
        made = [Request((torch.tensor(value),), self.now, **options) for value in values]
        for request in made:
            self.desk.add(request)
        return [request.future for request in made]


def test_all_that_the_dispatcher_gives_is_answered_and_the_next_one_waits():
    bed = Bed()
    replies = bed.put(1.0, 2.0)
    assert not bed.turns.is_free
    turn = bed.turns.begin()
    later = bed.put(3.0)
    assert bed.turns.current is turn
    assert bed.turns.begin() is None
    turn.run()
    assert [reply.result(0).item() for reply in replies] == [2.0, 3.0]
    assert not later[0].done()
    bed.turns.begin().run()
    assert later[0].result(0).item() == 4.0
    assert bed.turns.begin() is None
    assert bed.turns.is_free
    assert not bed.turns.is_over
    bed.closed.set()
    assert bed.turns.is_over


def test_requests_that_only_expired_are_told():
    bed = Bed()
    replies = bed.put(1.0, deadline=-1.0)
    turn = bed.turns.begin()
    assert bed.turns.is_free
    assert not turn.is_stuck
    turn.run()
    assert isinstance(replies[0].exception(0), ExpiredError)


def test_a_thread_that_dies_lets_its_whole_batch_fail():
    def run(entry, args, kwargs):
        raise KeyboardInterrupt

    bed = Bed(run)
    replies = bed.put(1.0, 2.0)
    with pytest.raises(KeyboardInterrupt):
        bed.turns.begin().run()
    for reply in replies:
        assert "the thread died in this batch (KeyboardInterrupt)" in str(reply.exception(0))
    assert bed.turns.is_free
    assert (bed.desk.counts.failed, bed.desk.counts.answered) == (2, 0)


def test_a_thread_that_dies_while_it_answers_leaves_no_request_without():
    def interrupt(_):
        raise KeyboardInterrupt

    bed = Bed()
    replies = bed.put(1.0, 2.0)
    replies[0].add_done_callback(interrupt)
    with pytest.raises(KeyboardInterrupt):
        bed.turns.begin().run()
    assert replies[0].result(0).item() == 2.0
    assert isinstance(replies[1].exception(0), EngineError)
    assert bed.turns.is_free


@pytest.mark.parametrize("death", [None, KeyboardInterrupt])
def test_what_an_abandoned_turn_still_does_counts_for_nothing(death):
    bed = Bed()

    def run(entry, args, kwargs):
        bed.now += 1000
        assert first.is_stuck
        first.abandon()
        second = bed.turns.begin()  # as the worker would
        second.abandon()
        assert bed.turns.is_free
        if death is not None:
            raise death
        return args[0]

    bed.turns.run = run
    replies = bed.put(1.0)
    first = bed.turns.begin()
    assert not first.is_stuck
    replies += bed.put(2.0)
    if death is None:
        first.run()
    else:
        with pytest.raises(death):
            first.run()
    for reply in replies:
        assert "stuck in this batch and was given up" in str(reply.exception(0))
    counts = bed.desk.counts
    assert (counts.failed, counts.answered) == (2, 0)


def test_a_turn_that_has_ended_is_not_abandoned():
    bed = Bed()
    replies = bed.put(1.0)
    turn = bed.turns.begin()
    turn.run()
    turn.abandon()
    assert not turn.abandoned
    assert replies[0].result(0).item() == 2.0
    assert bed.desk.counts.failed == 0


def test_the_worker_is_told_only_of_work_and_of_the_end():
    bed, told = Bed(), []
    bed.ready.notify = lambda: told.append(len(bed.desk))
    bed.put(1.0)
    bed.turns.begin().run()
    assert told == []
    bed.put(1.0)
    turn = bed.turns.begin()
    bed.put(2.0)
    turn.run()
    assert told == [1]
    bed.closed.set()
    bed.turns.begin().run()
    assert told == [1, 0]
