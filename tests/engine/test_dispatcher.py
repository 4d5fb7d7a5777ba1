"""Queue and batches in simulated time."""

import pytest
from simulated import ladder

from nestling.engine.dispatcher import Dispatcher, expired, steered
from nestling.engine.request import Request
from nestling.errors import FullError
from nestling.governor import policy

FORECAST = ladder(4, 2.0)


def desk_of(room=100, objective="fixed", **options):
    return Dispatcher(steered(policy(objective, FORECAST, options)), room)


def put(desk, count=1, **options):
    requests = [Request((), options.pop("since", 0.0), **options) for _ in range(count)]
    for request in requests:
        desk.add(request)
    return requests


def test_nothing_waits_nothing_runs():
    desk = desk_of()
    assert desk.next(0.0) is None
    assert desk.last is None


def test_a_full_queue_refuses_at_once_and_takes_again_later():
    desk = desk_of(room=3)
    put(desk, 3)
    with pytest.raises(FullError, match=r"3 requests wait.*try again later"):
        put(desk)
    assert desk.counts.refused == 1
    desk.next(0.0)
    put(desk)


def test_all_that_waits_is_one_batch_of_one_choice():
    desk = desk_of()
    requests = put(desk, 5)
    batch = desk.next(0.01)
    assert batch.requests == requests
    assert batch.entry == "e3"
    assert len(desk) == 0


def test_a_batch_is_no_larger_than_the_governor_allows():
    desk = desk_of(objective="latency", ms=30)
    put(desk, 40)
    batch = desk.next(0.0)
    assert len(batch.requests) == batch.choice.batch < 40
    assert len(desk) == 40 - len(batch.requests)


def test_those_of_more_priority_run_first_and_then_the_older():
    desk = desk_of()
    first, second = put(desk, 2)
    urgent = put(desk, 1, priority=5)[0]
    later = put(desk, 1, priority=5)[0]
    assert desk.next(0.0).requests == [urgent, later, first, second]


def test_what_has_expired_is_not_run():
    desk = desk_of()
    put(desk, 2, deadline=0.05)
    alive = put(desk, 1, deadline=9.0)
    batch = desk.next(0.06)
    assert batch.requests == alive
    over = desk.over()
    assert len(over) == 2
    assert desk.counts.expired == 2
    assert desk.over() == []
    assert "had 50 ms, of which 60 ms were over" in str(expired(over[0], 0.06))


def test_what_not_even_the_fastest_can_meet_is_not_run():
    """e3 takes 8 ms; a fixed e3 cannot meet 5 ms any more, a governor that may go down can."""
    for options, runs in (({"subnet": "e3"}, False), ({"subnet": "e0"}, True)):
        desk = desk_of(**options)
        put(desk)
        desk.next(0.0)  # the first choice tells the policy
        put(desk, 1, deadline=0.015)
        assert (desk.next(0.01) is not None) == runs
    desk = desk_of(objective="latency", ms=100)
    put(desk)
    assert desk.next(0.0).entry == "e3"
    put(desk, 1, deadline=0.015)
    assert desk.next(0.01) is not None


def test_cancelled_requests_are_dropped_wherever_they_stand():
    desk = desk_of()
    requests = put(desk, 4)
    for gone in (requests[0], requests[2]):
        assert gone.future.cancel()
    assert desk.next(0.0).requests == [requests[1], requests[3]]
    assert desk.counts.cancelled == 2
    assert put(desk)[0].future.cancel()
    assert desk.next(0.0) is None


def test_a_request_with_a_budget_runs_within_it_and_not_with_others():
    desk = desk_of()
    small = (0, 1, 1, 1)  # e1 where the governor would choose more
    put(desk, 2)
    put(desk, 1, rungs=small)
    put(desk, 2)
    first, second = desk.next(0.0), desk.next(0.0)
    assert (first.entry, len(first.requests)) == ("e3", 4)
    assert (second.entry, len(second.requests)) == ("e1", 1)
    assert desk.next(0.0) is None


def test_what_was_seen_reaches_the_governor_once():
    seen = []
    steer = steered(policy("latency", FORECAST, {"ms": 20}))

    def watching(reading):
        seen.append(reading)
        return steer(reading)

    desk = Dispatcher(watching, 100)
    put(desk, 3)
    batch = desk.next(0.002)
    desk.done(batch, 0.03, 25.0)
    put(desk, 1, since=0.03)
    desk.next(0.031)
    first, second = seen
    assert (first.queue, first.arrived, first.waited_ms) == (3, 3, pytest.approx(2.0))
    assert (second.rung, second.batch, second.took_ms) == (batch.rung, len(batch.requests), 25.0)
    assert (second.answered, second.late) == (len(batch.requests), len(batch.requests))
    assert second.arrived == 1
    assert desk.counts.answered == len(batch.requests)


def test_failed_batches_teach_no_times():
    desk = desk_of()
    put(desk, 2)
    desk.done(desk.next(0.0), 5.0, -1.0, failed=2)
    put(desk)
    assert desk.next(5.0).choice.state.factors == (1, 1, 1, 1)
    assert (desk.counts.failed, desk.counts.answered) == (2, 0)


def test_a_request_that_wants_a_slower_entry_makes_no_long_batch():
    desk = desk_of(objective="latency", ms=30)
    slow = len(FORECAST.names) - 1
    put(desk, 40, rungs=(slow,) * (slow + 1))
    batch = desk.next(0.0)
    assert batch.rung == slow
    assert FORECAST.times[slow][len(batch.requests)] <= 30
    calm = desk_of(subnet=FORECAST.names[0])  # without a limit: no longer than what it stands for
    put(calm, 40, rungs=(slow,) * (slow + 1))
    batch = calm.next(0.0)
    usual = FORECAST.times[0][min(40, FORECAST.largest)]
    assert len(batch.requests) == 1 or FORECAST.times[slow][len(batch.requests)] <= usual
