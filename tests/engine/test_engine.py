"""The engine with real threads; all waits are generous."""

import asyncio
import math
import os
import threading
import time
from concurrent.futures import CancelledError

import pytest
import torch
from gated import LONG, held

import nestling
from nestling import BudgetError, DataError, EngineError, ModelError, backends
from nestling.costs.latency import Latency
from nestling.engine import figures, turn
from nestling.engine.dispatcher import steered
from nestling.errors import ExpiredError, FullError
from nestling.governor import policy
from nestling.menu import replace
from nestling.signature import Signature
from nestling.upkeep import Upkeep


def test_the_answers_are_the_models(model):
    xs = torch.randn(20, 6)
    with nestling.Engine(model, "fixed") as engine:
        expected = model(xs)
        assert torch.allclose(engine(xs[0]), expected[0], atol=1e-5)
        assert torch.allclose(engine.batch(xs), expected, atol=1e-5)
        found = asyncio.run(asyncio.wait_for(engine.infer(xs[1]), LONG))
        assert torch.allclose(found, expected[1], atol=1e-5)
        futures = [engine.submit(x) for x in xs]
        for future, row in zip(futures, expected, strict=True):
            assert torch.allclose(future.result(LONG), row, atol=1e-5)
        assert engine.sight().counts.answered == 42


def test_many_threads_get_their_own_answers(model):
    xs = torch.randn(200, 6)
    expected = model(xs, subnet=model.menu.full.name)
    wrong = []

    def ask(engine, start):
        for place in range(start, 200, 8):
            if not torch.allclose(engine(xs[place]), expected[place], atol=1e-5):
                wrong.append(place)

    with nestling.Engine(model, "fixed") as engine:
        threads = [threading.Thread(target=ask, args=(engine, k)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
    assert wrong == []


def test_waiting_requests_are_batched_on_one_choice(model, gate):
    x = torch.randn(6)
    with nestling.Engine(model, "latency", ms=100, run=gate) as engine:
        first = held(engine, gate, x)
        rest = [engine.submit(x) for _ in range(5)]
        gate.open.set()
        for future in (first, *rest):
            future.result(LONG)
        assert [count for _, count in gate.ran] == [1, 5]
        sight = engine.sight()
    assert sight.entry == gate.ran[-1][0]
    assert sight.counts.answered == 6
    assert sight.p50_ms <= sight.p95_ms <= sight.p99_ms
    assert 0.7 <= sight.score <= 0.9
    assert engine.log[0].reason.startswith("p99 <= 100 ms")


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(7),
        torch.zeros(1, 6),
        torch.zeros(6, dtype=torch.float64),
        torch.zeros(6, dtype=torch.int64),
        torch.full((6,), float("nan")),
        "a picture",
        None,
        [1.0] * 6,
    ],
    ids=lambda value: str(getattr(value, "dtype", value))[:20],
)
def test_only_the_request_that_is_wrong_fails(model, gate, wrong):
    x = torch.randn(6)
    with nestling.Engine(model, "fixed", run=gate) as engine:
        first = held(engine, gate, x)
        futures = [engine.submit(each) for each in (x, wrong, x)]
        gate.open.set()
        assert isinstance(futures[1].exception(LONG), (ModelError, DataError))
        for future in (first, futures[0], futures[2]):
            assert torch.allclose(future.result(LONG), model(x[None])[0], atol=1e-5)


def test_wrong_examples_are_told_what_is_right(model):
    with nestling.Engine(model, "fixed") as engine:
        with pytest.raises(ModelError, match=r"one example is \(6,\) float32, but got \(7,\)"):
            engine(torch.zeros(7))
        with pytest.raises(ModelError, match=r"call engine\.batch"):
            engine(torch.zeros(3, 6))
        with pytest.raises(DataError, match="NaN"):
            engine.batch([torch.zeros(6), torch.full((6,), float("nan"))])


def test_a_full_queue_is_refused_at_once(model, gate):
    x = torch.randn(6)
    with nestling.Engine(model, "fixed", queue=2, run=gate) as engine:
        taken = [held(engine, gate, x), engine.submit(x), engine.submit(x)]
        with pytest.raises(FullError, match="2 requests wait"):
            engine.submit(x)
        assert engine.sight().counts.refused == 1
        gate.open.set()
        assert all(future.result(LONG) is not None for future in taken)
        assert engine.batch([x] * 50).shape == (50, 10)  # more than the queue holds


def test_deadlines_and_cancelled_requests(model, gate):
    x = torch.randn(6)
    with nestling.Engine(model, "fixed", run=gate) as engine:
        first = held(engine, gate, x)
        hurried = engine.submit(x, deadline_ms=1)
        gone = engine.submit(x)
        assert gone.cancel()
        assert not first.cancel()
        time.sleep(0.01)
        gate.open.set()
        with pytest.raises(ExpiredError, match="had 1 ms"):
            hurried.result(LONG)
        with pytest.raises(CancelledError):
            gone.result(LONG)
        assert first.result(LONG) is not None
        assert engine(x) is not None
        counts = engine.sight().counts
        assert (counts.expired, counts.cancelled) == (1, 1)
        assert sum(count for _, count in gate.ran) == 2
        with pytest.raises(TimeoutError):  # as asyncio and futures have it
            engine(x, since=engine._clock() - 1, deadline_ms=5)
        with pytest.raises(BudgetError, match="deadline_ms= is"):
            engine.submit(x, deadline_ms=-1)


def test_an_asyncio_task_that_is_cancelled_takes_its_request_along(model, gate):
    async def ask(engine):
        task = asyncio.ensure_future(engine.infer(torch.zeros(6)))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with nestling.Engine(model, "fixed", run=gate) as engine:
        held(engine, gate, torch.zeros(6))
        asyncio.run(ask(engine))
        gate.open.set()
        engine(torch.zeros(6))
        assert engine.sight().counts.cancelled == 1


def test_budgets_of_single_requests(model, gate):
    x = torch.randn(6)
    full, middle, small = (entry.name for entry in model.menu)
    with nestling.Engine(model, "fixed", run=gate) as engine:
        gate.ran.clear()
        engine(x)
        engine(x, subnet=small)
        engine(x, macs=model.menu[middle].macs)
        assert [name for name, _ in gate.ran] == [full, small, middle]
        with pytest.raises(BudgetError, match="no entry meets macs=1"):
            engine.submit(x, macs=1)
        with pytest.raises(BudgetError, match="did you mean 'macs'"):
            engine.submit(x, mac=1)
    with nestling.Engine(model, "fixed", subnet=small, run=gate) as engine:
        gate.ran.clear()
        engine(x, macs=model.menu[middle].macs)  # the governor may choose less
        assert gate.ran == [(small, 1)]


def test_a_model_that_fails_on_one_request_fails_on_that_alone(model):
    def run(entry, args, kwargs):
        if len(args[0]) and bool((args[0] > 99).any()):
            raise RuntimeError("no such index")
        return model(*args, subnet=entry)

    xs = [torch.zeros(6), torch.full((6,), 100.0), torch.zeros(6)]
    with nestling.Engine(model, "fixed", run=run) as engine:
        futures = [engine.submit(x) for x in xs]
        assert futures[0].result(LONG).shape == futures[2].result(LONG).shape == (10,)
        error = futures[1].exception(LONG)
        assert isinstance(error, EngineError)
        assert "no such index" in str(error)
        assert engine.sight().counts.failed == 1


def test_an_objective_of_ones_own_and_one_that_fails(model):
    small = model.menu.entries[-1].name

    def mine(forecast):
        steer = steered(policy("fixed", forecast, {"subnet": small}))
        calls = iter(range(100))

        def choose(reading):
            if next(calls) == 1:
                raise ZeroDivisionError("in my objective")
            return steer(reading)

        return choose

    x = torch.zeros(6)
    with nestling.Engine(model, mine) as engine:
        reply = engine.submit(x)
        assert reply.result(LONG).shape == (10,)
        assert reply.entry == small
        assert reply.ms > 0
        with pytest.raises(
            EngineError, match="objective fails: ZeroDivisionError: in my objective"
        ):
            engine(x)
        assert engine(x).shape == (10,)
    with pytest.raises(ModelError, match="ms came with a function"):
        nestling.Engine(model, mine, ms=3)


def test_what_a_request_asks_for_is_checked(model):
    with nestling.Engine(model, "fixed") as engine:
        for wrong in ("high", None, 1.5, True):
            with pytest.raises(ModelError, match="priority= is a whole number"):
                engine.submit(torch.zeros(6), priority=wrong)
        with pytest.raises(BudgetError, match="macs= is a finite number"):
            engine.submit(torch.zeros(6), macs=[1])


class Death(BaseException):
    pass


def test_a_worker_that_dies_is_back_and_only_its_batch_fails(model, gate):
    dead = threading.Event()

    def run(entry, args, kwargs):
        outputs = gate(entry, args, kwargs)
        if dead.is_set():
            dead.clear()
            raise Death("out of luck")
        return outputs

    x = torch.randn(6)
    with nestling.Engine(model, "fixed", run=run) as engine:
        first = held(engine, gate, x)
        rest = [engine.submit(x) for _ in range(3)]
        dead.set()
        gate.open.set()
        assert "thread died in this batch (Death: out of luck)" in str(first.exception(LONG))
        for future in rest:
            assert future.result(LONG) is not None
        counts = engine.sight().counts
        assert (counts.failed, counts.answered, counts.revived) == (1, 3, 1)


def test_a_worker_that_is_stuck_is_replaced(model, gate, monkeypatch):
    monkeypatch.setattr(turn, "STUCK", 0.2)
    monkeypatch.setattr(turn, "MANY", 1.0)
    x = torch.randn(6)
    with nestling.Engine(model, "fixed", run=gate) as engine:
        old = engine._worker
        stuck = held(engine, gate, x)
        waiting = engine.submit(x)
        assert "stuck" in str(stuck.exception(LONG))
        monkeypatch.setattr(turn, "STUCK", LONG)
        gate.open.set()  # the old worker comes back, and counts for nothing
        old.thread.join(LONG)
        assert waiting.result(LONG) is not None
        engine(x)
        counts = engine.sight().counts
        assert counts.revived >= 1
        assert counts.answered + counts.failed == 3


def test_others_go_on_while_a_worker_is_stuck(model):
    now, stuck, over = [0.0], threading.Event(), threading.Event()

    def run(entry, args, kwargs):
        if stuck.is_set():
            stuck.clear()
            now[0] += 1000
            assert over.wait(LONG)
        return model(*args, subnet=entry, **kwargs)

    x = torch.randn(6)
    with nestling.Engine(model, "fixed", run=run, clock=lambda: now[0]) as engine:
        old = engine._worker.thread
        stuck.set()
        first, second = engine.submit(x), engine.submit(x, subnet=model.menu.entries[-1].name)
        assert "stuck" in str(first.exception(LONG))
        assert second.result(LONG) is not None
        assert old.is_alive()
        over.set()
        old.join(LONG)
        assert not old.is_alive()
        assert engine.sight().counts.revived == 1


def test_closing_waits_for_what_a_dead_worker_left_behind(model):
    began, dead = threading.Event(), threading.Event()

    def run(entry, args, kwargs):
        if dead.is_set():
            dead.clear()
            began.set()
            assert engine._closed.wait(LONG)
            raise Death
        return model(*args, subnet=entry, **kwargs)

    engine = nestling.Engine(model, "fixed", run=run)
    dead.set()
    first = engine.submit(torch.zeros(6))
    assert began.wait(LONG)
    second = engine.submit(torch.zeros(6))
    engine.close()
    assert "died" in str(first.exception(0))
    assert second.result(0) is not None


def test_closing(model, gate):
    x = torch.randn(6)
    engine = nestling.Engine(model, "fixed", run=gate)
    first, second = held(engine, gate, x), engine.submit(x)
    threading.Timer(0.05, gate.open.set).start()
    engine.close()
    assert first.result(0) is not None
    assert second.result(0) is not None
    with pytest.raises(EngineError, match="closed"):
        engine.submit(x)
    engine.close()
    assert not engine._worker.thread.is_alive()
    assert not engine._watch.is_alive()
    assert "closed" in repr(engine)


def test_closing_without_running_what_waits(model, gate):
    x = torch.randn(6)
    engine = nestling.Engine(model, "fixed", run=gate)
    first, second = held(engine, gate, x), engine.submit(x)
    threading.Timer(0.05, gate.open.set).start()
    engine.close(drain=False)
    assert first.result(LONG) is not None
    assert second.cancelled()


def test_a_forked_process_is_told(model):
    with nestling.Engine(model, "fixed") as engine:
        read, write = os.pipe()
        child = os.fork()
        if not child:  # pragma: no cover  (the child)
            text = ""
            for ask in (engine.submit, engine):
                try:
                    ask(torch.zeros(6))
                except EngineError as error:
                    text += str(error)
            engine.close()
            os.write(write, text.encode())
            os._exit(0)
        os.waitpid(child, 0)
        os.close(write)
        with os.fdopen(read) as said:
            assert said.read().count("make an Engine there") == 2
        assert engine(torch.zeros(6)).shape == (10,)


def test_a_clock_that_stands_still_or_goes_back_loses_nothing(model):
    times = iter([0.0, 5.0, 1e9, 3.0, -1e9] * 1000)
    with nestling.Engine(model, "latency", ms=50, clock=lambda: next(times)) as engine:
        assert engine.batch(torch.zeros(40, 6)).shape == (40, 10)


def test_what_cannot_be_held_is_told_at_the_start(model):
    with pytest.raises(BudgetError, match=r"no entry meets p99 <= 0.5 ms: the fastest here is 'm"):
        nestling.Engine(model, "latency", ms=0.5)
    with pytest.raises(ModelError, match="unknown objective"):
        nestling.Engine(model, "speed")
    with pytest.raises(ModelError, match="queue= is"):
        nestling.Engine(model, "fixed", queue=0)
    bare = nestling.LoadedModel(replace(model.menu, profile=type(model.menu.profile)("x")))
    with pytest.raises(BudgetError, match="nestling profile FILE --batch 1"):
        nestling.Engine(bare, "fixed")
    for key in model.menu.profile.tables:
        strange = replace(key, device="another processor")
        profile = type(model.menu.profile)("x", {strange: model.menu.profile.tables[key]})
    other = nestling.LoadedModel(replace(model.menu, profile=profile))
    with pytest.raises(BudgetError, match="measured so far: another processor"):
        nestling.Engine(other, "fixed")


def test_an_entry_that_fails_is_left_out(model):
    full = model.menu.full.name

    def run(entry, args, kwargs):
        if entry == full:
            raise RuntimeError("not on this machine")
        return model(*args, subnet=entry)

    with nestling.Engine(model, "fixed", run=run) as engine:
        assert full not in engine.forecast.names
        assert "not on this machine" in engine.left_out[full]
        assert engine(torch.zeros(6)).shape == (10,)

    def never(entry, args, kwargs):
        raise RuntimeError("nothing works")

    with pytest.raises(ModelError, match=r"every entry fails.*nothing works"):
        nestling.Engine(model, "fixed", run=never)


def test_entries_run_with_every_number_of_examples_before_the_first_request(
    model, gate, monkeypatch
):
    monkeypatch.setattr("nestling.engine.engine.READY", math.inf)
    with nestling.Engine(model, "fixed", run=gate) as engine:
        sizes = range(1, engine.forecast.largest + 1)
        assert sorted(gate.ran) == sorted(
            (n, size) for n in engine.forecast.names for size in sizes
        )


def test_making_entries_ready_ends_in_time(model, gate, monkeypatch):
    """What is needed runs; then not even inputs are made."""
    monkeypatch.setattr("nestling.engine.engine.READY", -1.0)
    made, example = [], Signature.example

    def noted(self, batch, device):
        made.append(batch)
        return example(self, batch, device)

    monkeypatch.setattr(Signature, "example", noted)
    with nestling.Engine(model, "fixed", run=gate) as engine:
        assert {size for _, size in gate.ran} == {1, engine.forecast.largest}
        assert made == [1, engine.forecast.largest]


def test_few_examples_come_first_and_what_fails_is_not_run_again(model, monkeypatch):
    monkeypatch.setattr("nestling.engine.engine.READY", math.inf)
    full, ran = model.menu.full.name, []

    def run(entry, args, kwargs):
        if entry == full:
            ran.append(len(args[0]))
            if len(args[0]) == 3:
                raise RuntimeError("not three")
        return model(*args, subnet=entry)

    with nestling.Engine(model, "fixed", run=run) as engine:
        assert ran == [1, 8, 2, 3]
        assert engine.left_out == {full: "RuntimeError: not three"}


def test_what_is_not_known_here_can_be_measured(monkeypatch):
    monkeypatch.setattr(figures, "SECONDS", 0.02)
    net = nestling.Supernet(nestling.models.mlp(6, (16,), norm=False), torch.randn(1, 6))
    menu = nestling.make_menu(net, [net.space.spec(width=0.5)], measure=False)
    with nestling.Engine(nestling.LoadedModel(menu), "fixed", measure=True) as engine:
        assert engine.forecast.batches == (1, 2, 4, 8, 16, 32)


def test_inputs_by_keyword_and_several_of_them():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = torch.nn.Linear(4, 8), torch.nn.Linear(3, 8)
            self.head = torch.nn.Linear(8, 2)

        def forward(self, a, b):
            return {"scores": self.head((self.one(a) + self.two(b)).relu())}

    a, b = torch.randn(2, 4), torch.randn(2, 3)
    for args, kwargs in (((a, b), {}), ((), {"a": a, "b": b})):
        net = nestling.Supernet(Two(), *args, kwargs=kwargs)
        menu = nestling.make_menu(net, [net.space.full], measure=False).measured(1, seconds=0.02)
        one = {"a": a[0], "b": b[0]} if kwargs else (a[0], b[0])
        with nestling.Engine(nestling.LoadedModel(menu), "fixed") as engine:
            scores = engine(one)["scores"]
            expected = engine.model(*args, **kwargs)["scores"][0]
            assert torch.allclose(scores, expected, atol=1e-5)
            with pytest.raises(ModelError, match="one example is"):
                engine({"a": a[0]} if kwargs else (a[0],))


def test_batches_are_filled_up_to_what_code_was_made_for(model, gate, monkeypatch):
    """As the forecast says: on views, such a batch would take another time."""
    menu, find = model.menu, backends.find
    sizes, opened = [], threading.Event()
    opened.set()

    def prepare(subject):
        def run(inputs):
            assert len(inputs) == subject.batch
            sizes.append(len(inputs))
            assert opened.wait(LONG)
            return subject.module(inputs).detach()

        return run

    made = replace(find("compiled"), convert=lambda subject: None, prepare=prepare)
    monkeypatch.setattr(backends, "find", lambda name: made if name == "compiled" else find(name))
    monkeypatch.setattr("nestling.engine.engine.READY", math.inf)
    profile = menu.profile
    for batch in (1, 4, 8):
        table = profile.tables[menu.key(8 if batch == 8 else 1)]
        profile = profile.with_table(menu.key(batch, "compiled"), table)
    known = nestling.LoadedModel(replace(menu, profile=profile), backend="compiled")
    inputs = torch.randn(5, 6)
    known.prepare(1, 4, 8)
    sizes.clear()
    with nestling.Engine(known, "fixed", run=gate):  # which fills nothing up
        assert {size for _, size in gate.ran} == set(range(1, 9))
        assert not sizes
    with nestling.Engine(known, "fixed") as engine:
        assert sorted(sizes) == sorted(3 * [1, 4, 8])  # none is filled up to be made ready
        top = engine.forecast.top
        assert engine.forecast.times[top] == (0, 8, 8, 8, 8, 24, 24, 24, 24)
        opened.clear()
        sizes.clear()
        replies = [engine.submit(inputs[0])]
        while not sizes:  # the worker has taken it
            time.sleep(0.001)
        replies += [engine.submit(each) for each in inputs[1:4]]
        opened.set()
        answers = torch.stack([each.result(LONG) for each in replies])
        assert sizes == [1, 4]
        torch.testing.assert_close(answers, model.subnet(menu.full.name)(inputs[:4]).detach())
        found = engine._filling.run(known, menu.full.name, [inputs], {})
        assert sizes == [1, 4, 8]
        torch.testing.assert_close(found, model.subnet(menu.full.name)(inputs).detach())


def test_figures_are_those_of_the_backend_that_runs_an_entry(model):
    menu = model.menu
    names = [entry.name for entry in menu]
    quick = {name: Latency(ms, ms, ms, 9) for name, ms in zip(names, (5.0, 3.0, 1.0), strict=True)}
    upkeep = Upkeep(joules=dict(zip(names, (0.4, 0.2, 0.1), strict=True)))
    profile = menu.profile.with_table(menu.key(1, "packed"), quick, upkeep)
    known = replace(menu, profile=profile)

    packed = figures.forecast(nestling.LoadedModel(known, backend="packed"))
    assert packed.batches == (1,)
    fastest = nestling.LoadedModel(known, backend="auto")
    assert {fastest.backend_of(name, 1) for name in names} == {"packed"}
    mixed = figures.forecast(fastest)
    assert mixed.batches == (1, 8)
    for found in (packed, mixed):
        assert [times[1] for times in found.times] == [1.0, 3.0, 5.0]
        assert found.joules == (0.1, 0.2, 0.4)
    assert mixed.times[0][8] == 6.0  # measured on views alone
    with nestling.Engine(fastest, "energy", joules=0.25) as engine:
        reply = engine.submit(torch.zeros(6))
        reply.result(LONG)
        assert reply.entry == names[1]
    with pytest.raises(BudgetError, match="energy"):
        nestling.Engine(model, "energy", joules=0.25)


def test_what_has_no_faster_entry_within_its_budget_runs_on_the_fastest_within(model):
    entries = tuple(
        replace(entry, bytes=size) for entry, size in zip(model.menu, (50, 60, 100), strict=True)
    )
    other = nestling.LoadedModel(replace(model.menu, entries=entries))
    with nestling.Engine(other, "fixed") as engine:
        assert engine._rungs({"bytes": 70}) == (1, 1, 2)


def test_a_fraction_is_of_the_full_net_also_where_the_menu_has_it_not(model):
    small = nestling.LoadedModel(model.menu.only(*[entry.name for entry in model.menu][1:]))
    found = figures.forecast(small)
    whole = model.menu.full.macs
    shares = {name: small.menu[name].macs / whole for name in found.names}
    assert dict(zip(found.names, found.costs["fraction"], strict=True)) == pytest.approx(shares)


def test_an_engine_closed_by_its_own_worker_ends(model):
    engine = nestling.Engine(model, "fixed")
    engine.submit(torch.zeros(6)).add_done_callback(lambda _: engine.close())
    engine._watch.join(LONG)
    assert not engine._watch.is_alive()
