"""Batches that the thread which made the engine runs itself; all waits are generous."""

import asyncio
import math
import signal
import threading

import pytest
import torch
from gated import LONG, held
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import nestling
from nestling import BudgetError, DataError, EngineError, ModelError
from nestling.engine.dispatcher import steered
from nestling.engine.turn import Turn
from nestling.errors import ExpiredError
from nestling.governor import policy

X = torch.linspace(-1, 1, 6)


class Runs:
    """What runs batches: notes by which thread, and does once what a test wants done in it."""

    def __init__(self, model):
        self.model = model
        self.ran = []  # (whether it was the main thread, entry, examples)
        self.going = self.most = 0
        self.once = None

    def __call__(self, entry, args, kwargs):
        self.going += 1
        self.most = max(self.most, self.going)
        self.ran.append(
            (threading.current_thread() is threading.main_thread(), entry, len(args[0]))
        )
        try:
            once, self.once = self.once, None
            if once is not None:
                once()
            return self.model(*args, subnet=entry, **kwargs)
        finally:
            self.going -= 1

    @property
    def here(self):
        """Whether each batch since the last look ran in the main thread."""
        found = [here for here, _, _ in self.ran]
        self.ran.clear()
        return found


@pytest.fixture
def runs(model):
    return Runs(model)


def started(target, *args):
    thread = threading.Thread(target=target, args=args)
    thread.start()
    return thread


def elsewhere(call):
    """Return what a call gives in another thread."""
    found = []
    thread = started(lambda: found.append(call()))
    thread.join(LONG)
    return found[0]


def test_the_maker_of_an_engine_runs_its_calls_and_nothing_else(model, runs):
    expected = model(X[None])[0]
    with nestling.Engine(model, "fixed", run=runs) as engine:
        runs.ran.clear()
        assert torch.equal(engine(X), expected)
        assert torch.equal(engine(X, priority=3, deadline_ms=1e6), expected)
        assert runs.here == [True, True]
        assert torch.equal(engine.submit(X).result(LONG), expected)
        assert torch.equal(asyncio.run(engine.infer(X)), expected)
        assert torch.equal(engine.batch(X[None])[0], expected)
        assert torch.equal(elsewhere(lambda: engine(X)), expected)
        assert runs.here == [False] * 4
    with elsewhere(lambda: nestling.Engine(model, "fixed", run=runs)) as engine:
        runs.ran.clear()
        assert torch.equal(engine(X), expected)
        assert runs.here == [False]


def test_no_thread_is_woken(model, runs, monkeypatch):
    woken = []
    with nestling.Engine(model, "fixed", run=runs) as engine:
        notify = engine._turns.ready.notify
        monkeypatch.setattr(engine._turns.ready, "notify", lambda n=1: woken.append(n) or notify(n))
        runs.ran.clear()
        for _ in range(3):
            engine(X)
        assert (runs.here, woken) == ([True] * 3, [])
        replies = []

        def meanwhile():
            replies.append(engine.submit(X))
            assert woken == []  # it is at the end of the turn

        runs.once = meanwhile
        engine(X)
        assert woken
        assert replies[0].result(LONG) is not None


def kept(model, ask):
    """Return all that an engine did for requests, and what its objective was told.

    Args:
        ask: called with a function that asks once, in the way that is tested.
    """
    now, readings, answers = [0.0], [], []

    def run(entry, args, kwargs):
        if bool((args[0] == 77).any()):
            raise RuntimeError("no such index")
        now[0] += 0.001 * (3 + len(readings) % 4)
        return model(*args, subnet=entry)

    def mine(forecast):
        steer = steered(policy("latency", forecast, {"ms": 40}))

        def choose(reading):
            readings.append(reading)
            if len(readings) == 6:
                raise ZeroDivisionError("in my objective")
            return steer(reading)

        return choose

    small = model.menu.entries[-1].name
    asked = [
        *[(X * k, {}) for k in range(4)],
        (X[:5], {}),
        (torch.full((6,), math.nan), {}),
        (X, {}),
        (torch.full((6,), 77.0), {}),
        (X, {"deadline_ms": 5, "since": -1.0}),
        (X, {"deadline_ms": 500}),
        (X, {"subnet": small, "priority": 2}),
        (X, {"macs": 0.5}),
        (X, {}),
    ]
    with nestling.Engine(model, mine, run=run, clock=lambda: now[0]) as engine:
        for example, options in asked:
            now[0] += 0.01
            try:
                answers.append(ask(engine, example, options).tolist())
            except nestling.NestlingError as error:
                answers.append((type(error), str(error)))
        sight, done = engine.sight(), list(engine._desk.answers)
        chosen = [(each.entry, each.batch, each.reason) for each in engine.log]
        return answers, readings, chosen, sight, done


def test_it_is_as_through_the_worker_to_the_last_reading(model):
    here = kept(model, lambda engine, x, options: engine(x, **options))
    there = kept(model, lambda engine, x, options: engine.submit(x, **options).result(LONG))
    assert here == there
    answers, readings, _, sight, done = here
    kinds = [each[0] for each in answers if isinstance(each, tuple)]
    assert kinds == [ModelError, DataError, EngineError, EngineError, ExpiredError, BudgetError]
    counts = sight.counts
    assert (counts.answered, counts.failed, counts.expired) == (7, 3, 1)
    assert (len(readings), len(done)) == (10, 9)


def test_what_comes_meanwhile_waits_for_the_worker_by_priority(model, runs):
    full, middle, small = (entry.name for entry in model.menu)
    replies = []
    with nestling.Engine(model, "fixed", run=runs) as engine:

        def others():
            thread = started(lambda: replies.append(engine.submit(X, subnet=small)))
            thread.join(LONG)
            replies.append(engine.submit(X, subnet=middle, priority=1))
            replies.append(engine.submit(X, subnet=small))
            assert len(engine._desk) == 3

        runs.ran.clear()
        runs.once = others
        engine(X)
        for reply in replies:
            reply.result(LONG)
        assert runs.ran == [(True, full, 1), (False, middle, 1), (False, small, 2)]
        assert runs.most == 1
        assert [reply.entry for reply in replies] == [small, middle, small]


def test_a_call_waits_its_turn_where_the_worker_runs_or_others_wait(model, gate):
    with nestling.Engine(model, "fixed", run=gate) as engine:
        first = held(engine, gate, X)
        thread = started(gate.open_when, lambda: len(engine._desk) == 1)
        assert torch.equal(engine(X), first.result(LONG))  # the gate opens when this one waits
        thread.join(LONG)
        assert gate.threads == ["nestling-worker"] * 2


def test_a_call_leaves_what_waits_to_the_worker(model, runs):
    with nestling.Engine(model, "fixed", run=runs) as engine:
        runs.ran.clear()
        with engine._lock:  # nothing runs, and the worker cannot begin
            reply = engine.submit(X)
            request = engine._request(X)
            with Turn(engine._turns) as turn:
                engine._take(request, turn)
                turn.run()
            assert not request.future.done()
        assert torch.equal(reply.result(LONG), request.future.result(LONG))
        assert runs.ran == [(False, model.menu.full.name, 2)]


def test_many_threads_and_the_maker_get_their_own_answers_one_batch_at_a_time(model, runs):
    xs = torch.randn(160, 6)
    expected = model(xs, subnet=model.menu.full.name)
    wrong = []

    def ask(engine, start):
        for place in range(start, 160, 4):
            if not torch.allclose(engine(xs[place]), expected[place], atol=1e-5):
                wrong.append(place)

    with nestling.Engine(model, "fixed", run=runs) as engine:
        threads = [started(ask, engine, k) for k in range(3)]
        ask(engine, 3)
        for thread in threads:
            thread.join(LONG)
        assert wrong == []
        assert (runs.most, engine.sight().counts.answered) == (1, 160)


def test_a_call_that_is_stuck_is_given_up_and_the_worker_goes_on(model, runs):
    """Its thread itself comes back when the model does."""
    now = [0.0]
    with nestling.Engine(model, "fixed", run=runs, clock=lambda: now[0]) as engine:
        worker = engine._worker

        def stuck():
            waiting = engine.submit(X)
            now[0] += 1000
            assert waiting.result(LONG) is not None  # by the worker, after the watch gave up

        runs.ran.clear()
        runs.once = stuck
        with pytest.raises(EngineError, match="stuck in this batch and was given up"):
            engine(X)
        assert engine(X) is not None
        assert runs.here == [True, False, True]
        counts = engine.sight().counts
        assert (counts.failed, counts.answered, counts.revived) == (1, 2, 0)
        assert engine._worker is worker


def test_an_engine_used_by_its_own_model_is_a_turn_that_is_stuck(model, runs):
    now, inner = [0.0], []
    with nestling.Engine(model, "fixed", run=runs, clock=lambda: now[0]) as engine:

        def again():
            now[0] += 1000
            inner.append(engine(X))

        runs.ran.clear()
        runs.once = again
        with pytest.raises(EngineError, match="stuck"):
            engine(X)
        assert inner[0].shape == (10,)
        assert runs.here == [True, False]


def test_ctrl_c_in_the_model_ends_the_turn_and_nobody_hangs(model, runs):
    replies = []
    with nestling.Engine(model, "fixed", run=runs) as engine:

        def interrupted():
            replies.append(engine.submit(X))
            signal.raise_signal(signal.SIGINT)

        runs.ran.clear()
        runs.once = interrupted
        with pytest.raises(KeyboardInterrupt):
            engine(X)
        assert replies[0].result(LONG) is not None
        assert engine(X) is not None
        assert runs.here == [True, False, True]
        counts = engine.sight().counts
        assert (counts.failed, counts.answered, counts.revived) == (1, 2, 0)


def test_ctrl_c_in_the_objective_leaves_nothing_behind(model):
    once = []

    def mine(forecast):
        steer = steered(policy("fixed", forecast, {}))

        def choose(reading):
            if once:
                once.pop()
                signal.raise_signal(signal.SIGINT)
            return steer(reading)

        return choose

    with nestling.Engine(model, mine) as engine:
        once.append(1)
        with pytest.raises(KeyboardInterrupt):
            engine(X)
        assert engine._turns.is_free
        assert engine(X).shape == (10,)
        assert engine.sight().counts.answered == 1


def test_ctrl_c_leaves_a_with_block(model, runs):
    engine = nestling.Engine(model, "fixed", run=runs)
    runs.once = lambda: signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), engine:
        engine(X)
    assert not engine._worker.thread.is_alive()
    assert not engine._watch.is_alive()


def test_who_closes_during_a_call_waits_for_its_end(model, runs):
    engine = nestling.Engine(model, "fixed", run=runs)
    closing = []

    def close():
        closing.append(started(engine.close))
        assert engine._closed.wait(LONG)
        with pytest.raises(EngineError, match="closed"):
            engine.submit(X)
        closing[0].join(0.1)
        assert closing[0].is_alive()

    runs.once = close
    assert engine(X).shape == (10,)
    closing[0].join(LONG)
    assert not closing[0].is_alive()
    assert not engine._worker.thread.is_alive()
    assert not engine._watch.is_alive()


@pytest.mark.parametrize("drain", [True, False])
def test_an_engine_closed_by_the_model_of_a_call_ends(model, runs, drain):
    engine, replies = nestling.Engine(model, "fixed", run=runs), []

    def close():
        replies.append(engine.submit(X))
        engine.close(drain=drain)
        engine._worker.thread.join(0.1)
        assert engine._worker.thread.is_alive()  # it waits for the end of this turn

    runs.once = close
    assert engine(X).shape == (10,)
    engine._worker.thread.join(LONG)
    engine._watch.join(LONG)
    assert not engine._worker.thread.is_alive()
    assert not engine._watch.is_alive()
    assert replies[0].cancelled() is not drain
    assert engine.sight().counts.revived == 0
    engine.close()


class Doubled(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        return found * 2 if func is torch.nn.functional.linear else found


class Tripled(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        return found * 3 if func is torch.ops.aten.addmm.default else found


class Threads:
    """Another number of threads for this thread."""

    def __enter__(self):
        self.before = torch.get_num_threads()
        torch.set_num_threads(self.before + 1)

    def __exit__(self, *_):
        torch.set_num_threads(self.before)


MODES = {
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "function": Doubled,
    "device": lambda: torch.device("meta"),
    "dispatch": Tripled,
    "threads": Threads,
}


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_does_not_depend_on_the_modes_of_whoever_asks(model, runs, mode):
    with nestling.Engine(model, "fixed", run=runs) as engine:
        plain = engine(X)
        runs.ran.clear()
        with MODES[mode]():
            found = engine(X)
        assert runs.here == [False]
        assert torch.equal(found, plain)
        assert (found.dtype, found.is_inference()) == (plain.dtype, False)
        engine(X)
        assert runs.here == [True]


def test_gradients_are_as_through_the_worker(model):
    weight = torch.ones(6, 10, requires_grad=True)
    modes = []

    def run(entry, args, kwargs):
        modes.append(torch.is_grad_enabled())
        return args[0] @ weight

    with nestling.Engine(model, "fixed", run=run) as engine, torch.no_grad():
        modes.clear()
        assert engine(X).requires_grad
        assert engine.submit(X).result(LONG).requires_grad
        assert modes == [True, True]
        assert not torch.is_grad_enabled()
    leaf = X.clone().requires_grad_()
    with nestling.Engine(model, "fixed") as engine:
        assert not engine(leaf).requires_grad
        assert not engine.submit(leaf).result(LONG).requires_grad
