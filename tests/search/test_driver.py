"""The driver: cache, log, resume, and what it refuses."""

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from nestling import FileError, ModelError, SpecError
from nestling.interruption import Interrupted
from nestling.progress import Reporter
from nestling.search import (
    Cost,
    Found,
    Pick,
    Progress,
    Score,
    Scorer,
    Tune,
    Tuner,
    conduct,
    greedy,
    progressive,
)
from nestling.weights import cloned, tensors_of


class Counted:
    """A score that counts, and is interrupted at a call."""

    def __init__(self, score, stop=-1):
        self.score, self.stop, self.asked = score, stop, []

    def __call__(self, spec):
        if len(self.asked) == self.stop:
            raise KeyboardInterrupt
        self.asked.append(spec)
        return self.score(spec)


def rows(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_nothing_is_scored_twice_until_the_weights_change(tiny):
    full, half = tiny.space.full, tiny.space.spec({"conv1": 4})

    def search(space):
        one = yield Score(full)
        two = yield Score(full)
        choice = yield Pick((half, full))
        three = yield Score(half)
        tuned = yield Tune(half, 0.9, 1)
        four = yield Score(half)
        five = yield Score(full)
        return [
            Found(full, one),
            Found(half, choice.accuracies[0]),
            Found(full, five),
            two,
            three,
            tuned,
            four,
        ][:3]

    score = Counted(lambda spec: 0.1 * spec["conv1"])
    conduct(search(tiny.space), tiny, score=score, tune=lambda spec, until, epochs: 0.9)
    assert score.asked == [full, half, full]


def test_answers_are_what_was_measured(tiny):
    half, told = tiny.space.spec({"conv1": 4}), {}

    def search(space):
        told["score"] = yield Score(half)
        told["pick"] = yield Pick((half, space.full))
        told["worth"] = yield Pick((space.full, half), lambda place, accuracy: place * accuracy)
        told["cost"] = yield Cost((half, space.full, half))
        told["progress"] = yield Progress(1, 2)
        return [Found(half, told["score"])]

    cost = Counted(tiny.space.params)
    conduct(search(tiny.space), tiny, score=lambda spec: spec["conv1"] / 10, cost=cost)
    assert told["score"] == 0.4
    assert told["pick"] == (1, 0.8, (0.4, 0.8))
    assert told["worth"] == (1, 0.4, (0.8, 0.4))
    assert told["cost"] == tuple(map(tiny.space.params, (half, tiny.space.full, half)))
    assert len(cost.asked) == 2
    assert told["progress"] is None


@pytest.mark.parametrize("stop", [0, 1, 7, 20, 33])
def test_resumed_it_is_the_same_and_asks_for_the_rest_only(deep, scores, tmp_path, stop):
    score, log = scores["noisy"](deep.space), tmp_path / "log.jsonl"
    make = lambda: progressive(deep.space, groups=4)  # noqa: E731
    whole = Counted(score)
    expected = conduct(make(), deep, score=whole, log=tmp_path / "whole.jsonl")
    with pytest.raises(Interrupted, match=r"log\.jsonl"):
        conduct(make(), deep, score=Counted(score, stop), log=log)
    rest = Counted(score)
    assert conduct(make(), deep, score=rest, log=log, resume=True) == expected
    assert rest.asked == whole.asked[len(whole.asked) - len(rest.asked) :]
    assert stop - 20 <= len(whole.asked) - len(rest.asked) <= stop
    same = [{k: v for k, v in row.items() if k != "seconds"} for row in rows(log)]
    other = [
        {k: v for k, v in row.items() if k != "seconds"} for row in rows(tmp_path / "whole.jsonl")
    ]
    assert same == other
    again = Counted(score)
    assert conduct(make(), deep, score=again, log=log, resume=True) == expected
    assert not again.asked


def test_a_measured_cost_is_kept_for_the_resumed_search(deep, scores, tmp_path):
    draws = iter(range(10**6))

    def latency(spec):  # never the same twice
        return deep.space.macs(spec) * (1 + 0.1 * (next(draws) * 7919 % 13) / 13)

    score, log = scores["separable"](deep.space), tmp_path / "log.jsonl"
    with pytest.raises(Interrupted):
        conduct(greedy(deep.space), deep, score=Counted(score, 60), cost=latency, log=log)
    before = rows(log)
    conduct(greedy(deep.space), deep, score=score, cost=latency, log=log, resume=True)
    kept = [row for row in before if row.get("kind") != "candidate"]
    assert [row for row in rows(log) if row.get("kind") != "candidate"][: len(kept)] == kept


def test_the_log_has_every_evaluation(deep, scores, tmp_path):
    log, score = tmp_path / "log.jsonl", scores["noisy"](deep.space)
    asked = Counted(score)
    found = conduct(progressive(deep.space, groups=4), deep, score=asked, log=log, seed=5)
    header, *lines = rows(log)
    assert header["nestling search"] == 1
    assert header["search"] == "progressive"
    assert header["options"]["groups"] == 4
    assert header["seed"] == 5
    evaluated = [row for row in lines if row["kind"] in ("score", "candidate")]
    assert [row["spec"] for row in evaluated] == [dict(spec) for spec in asked.asked]
    for row in evaluated:
        spec = deep.space.spec(row["spec"])
        assert row["accuracy"] == score(spec)
        assert row["macs"] == deep.space.macs(spec)
    assert all(row["seconds"] >= 0 for row in lines if row["kind"] in ("score", "pick"))
    last = [row for row in lines if row["kind"] == "found"]
    assert [(row["spec"], row["accuracy"]) for row in last] == [(dict(s), a) for s, a in found]


@pytest.mark.parametrize("cut", [1, 10, 400])
def test_a_last_line_that_is_not_whole_is_left_out(deep, scores, tmp_path, cut):
    score, log = scores["noisy"](deep.space), tmp_path / "log.jsonl"
    expected = conduct(progressive(deep.space), deep, score=score, log=log)
    log.write_bytes(log.read_bytes()[:-cut])
    assert conduct(progressive(deep.space), deep, score=score, log=log, resume=True) == expected
    assert [row["kind"] for row in rows(log)[1:]].count("found") == len(expected)


def test_a_last_answer_without_its_line_end_is_asked_for_again(deep, scores, tmp_path):
    score, log = scores["noisy"](deep.space), tmp_path / "log.jsonl"
    expected = conduct(progressive(deep.space), deep, score=score, log=log)
    lines = log.read_text().splitlines(keepends=True)
    last = max(n for n, line in enumerate(lines[:40]) if '"kind":"pick"' in line)
    log.write_text("".join(lines[: last + 1])[:-1])
    assert conduct(progressive(deep.space), deep, score=score, log=log, resume=True) == expected
    assert len(rows(log)) == len(lines)


def test_a_line_that_is_damaged_in_the_middle_is_refused(deep, scores, tmp_path):
    log = tmp_path / "log.jsonl"
    score = scores["noisy"](deep.space)
    conduct(progressive(deep.space), deep, score=score, log=log)
    lines = log.read_text().splitlines(keepends=True)
    for broken in ("{]\n", '{"kind":"score"}\n', "[]\n"):
        log.write_text("".join([*lines[:4], broken, *lines[5:]]))
        with pytest.raises(FileError, match="damaged in line 5"):
            conduct(progressive(deep.space), deep, score=score, log=log, resume=True)


def test_the_log_of_another_search_is_refused(deep, tiny, scores, tmp_path):
    log, score = tmp_path / "log.jsonl", scores["noisy"](deep.space)
    conduct(progressive(deep.space), deep, score=score, log=log)

    def again(search, net=deep, **options):
        return conduct(search, net, score=lambda spec: 0.5, log=log, resume=True, **options)

    with pytest.raises(FileError, match=r"search='progressive' \(now 'greedy'\)"):
        again(greedy(deep.space))
    with pytest.raises(FileError, match=r"one with options={'groups': 8} \(now {'groups': 4}\);"):
        again(progressive(deep.space, groups=4))
    with pytest.raises(FileError, match="seed=0"):
        again(progressive(deep.space), seed=1)
    with pytest.raises(FileError, match="axes="):
        again(progressive(tiny.space), tiny)
    kept = cloned(tensors_of(deep.model))
    with torch.no_grad():
        next(deep.parameters()).add_(1.0)
    with pytest.raises(FileError, match="weights="):
        again(progressive(deep.space))
    with torch.no_grad():
        next(deep.parameters()).copy_(next(iter(kept.values())))


def test_the_log_of_a_version_that_lacks_an_option_is_refused(deep, scores, tmp_path):
    """Its steps may be other ones, even where the option changes nothing."""
    log, targets = tmp_path / "log.jsonl", tuple(1 - k / 40 for k in range(30))
    conduct(greedy(deep.space, targets=targets), deep, score=scores["noisy"](deep.space), log=log)
    text = log.read_text()
    log.write_text(text.replace(',"even_below":null', "", 1))
    assert log.read_text() != text
    with pytest.raises(FileError, match=r"one with options={} \(now {'even_below': None}\);"):
        conduct(
            *(greedy(deep.space, targets=targets), deep),
            score=scores["noisy"](deep.space),
            log=log,
            resume=True,
        )


def test_a_search_that_asks_for_other_things_than_its_log_is_refused(tiny, tmp_path):
    log = tmp_path / "log.jsonl"
    specs = [tiny.space.full, tiny.space.spec({"conv1": 4})]

    def search(space, specs):
        for spec in specs():
            yield Score(spec)
        return []

    for first, then in ([specs, specs[::-1]], [specs, specs[:1]]):
        now = first
        conduct(search(tiny.space, lambda: now), tiny, score=lambda spec: 0.5, log=log)
        now = then
        with pytest.raises(FileError, match="log of another search"):
            conduct(
                search(tiny.space, lambda: now), tiny, score=lambda spec: 0.5, log=log, resume=True
            )


def test_without_resume_a_log_is_replaced(tiny, tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text("something else\n")
    score = Counted(lambda spec: 0.5)
    conduct(progressive(tiny.space), tiny, score=score, log=log)
    asked = len(score.asked)
    conduct(progressive(tiny.space), tiny, score=score, log=log)
    assert len(score.asked) == 2 * asked
    assert rows(log)[0]["search"] == "progressive"


def test_what_is_no_search_is_refused(tiny):
    begun = progressive(tiny.space)
    next(begun)
    with pytest.raises(ModelError, match="has begun"):
        conduct(begun, tiny, score=lambda spec: 0.5)
    with pytest.raises(ModelError, match="log="):
        conduct(progressive(tiny.space), tiny, score=lambda spec: 0.5, resume=True)

    def yields(what):
        yield what
        return []

    with pytest.raises(SpecError, match="yields requests"):
        conduct(yields("a spec"), tiny, score=lambda spec: 0.5)
    with pytest.raises(SpecError, match="unknown axis"):
        conduct(yields(Score({"conv9": 4})), tiny, score=lambda spec: 0.5)
    with pytest.raises(SpecError, match="cannot keep 3"):
        conduct(yields(Score({"conv1": 3})), tiny, score=lambda spec: 0.5)
    with pytest.raises(SpecError, match="at least one candidate"):
        conduct(yields(Pick(())), tiny, score=lambda spec: 0.5)
    with pytest.raises(ModelError, match="give a Tuner"):
        conduct(progressive(tiny.space, threshold=0.9), tiny, score=lambda spec: 0.5)


def test_progress_shows_the_front(deep, scores):
    text = io.StringIO()
    reporter = Reporter(console=Console(file=text, width=200))
    score = scores["separable"](deep.space)
    conduct(progressive(deep.space), deep, score=score, reporter=reporter)
    last = text.getvalue().splitlines()[-1]
    total = sum(len(axis.counts) for axis in deep.space.axes.values())
    assert last.startswith("progressive: ")
    assert total > 20
    assert f"front: {score(deep.space.full):.3f} at 100%, " in last


def test_random_choices_of_tuning_follow_from_the_seed(tiny, tmp_path):
    def run(log, seed, stop=-1, resume=False):
        drawn = []

        def tune(spec, until, epochs):
            if len(drawn) == stop:
                raise KeyboardInterrupt
            drawn.append(float(torch.rand(())))
            return 0.1 * drawn[-1]

        torch.rand(len(log))  # what happens outside does not count
        make = progressive(tiny.space, threshold=0.9, reselect=False)
        path = tmp_path / log
        conduct(make, tiny, score=lambda s: 0.1, tune=tune, log=path, resume=resume, seed=seed)
        return [row["accuracy"] for row in rows(path) if row.get("kind") == "tune"]

    expected = run("whole", 1)
    assert len(set(expected)) == len(expected) > 3
    with pytest.raises(Interrupted):
        run("broken", 1, stop=2)
    assert run("broken", 1, resume=True) == expected
    assert run("other", 2) != expected


def test_a_search_that_fails_at_once_leaves_no_log(tiny, tmp_path):
    log = tmp_path / "log.jsonl"
    with pytest.raises(SpecError):
        conduct(progressive(tiny.space, groups=0), tiny, score=lambda spec: 0.5, log=log)
    assert not log.exists()
    with pytest.raises(FileError, match="cannot write"):
        conduct(progressive(tiny.space), tiny, score=lambda spec: 0.5, log=tmp_path / "no" / "log")


# -- real weights -----------------------------------------------------------------------------


def test_weights_are_put_back_and_a_resumed_search_goes_on_with_the_tuned_ones(digits, tmp_path):
    net, train, held_out = digits
    train, held_out = list(train.at(0))[:4], list(held_out)[:3]
    score = Scorer(net, held_out, calibrate=train)
    before = cloned(tensors_of(net.model))
    threshold = min(1.0, score(net.space.full) + 0.05)

    class Stopping(Tuner):
        calls, stop = 0, -1

        def __call__(self, *args):
            if Stopping.calls == self.stop:
                raise KeyboardInterrupt
            Stopping.calls += 1
            return super().__call__(*args)

    def run(log, stop=-1, resume=False):
        Stopping.calls, tuner = 0, Stopping(net, train, score)
        tuner.stop = stop
        floor = {name: 0.5 if "layer1" in name else 1.0 for name in net.space.axes}
        make = progressive(net.space, groups=2, floor=floor, threshold=threshold, epochs=1)
        torch.manual_seed(stop + 7)  # what happens outside does not count
        return conduct(make, net, score=score, tune=tuner, log=tmp_path / log, resume=resume)

    expected = run("whole.jsonl")
    tunes = [row for row in rows(tmp_path / "whole.jsonl") if row.get("kind") == "tune"]
    assert len(tunes) >= 3
    assert all(torch.equal(before[k], t) for k, t in tensors_of(net.model).items())
    with pytest.raises(Interrupted):
        run("broken.jsonl", stop=2)
    assert all(torch.equal(before[k], t) for k, t in tensors_of(net.model).items())
    assert [path.name for path in tmp_path.glob("*tuned*")] == ["broken.jsonl.tuned-2"]
    saved = (tmp_path / "broken.jsonl.tuned-2").rename(tmp_path / "away")
    with pytest.raises(FileError, match="tuned are missing"):
        run("broken.jsonl", resume=True)
    saved.rename(tmp_path / "broken.jsonl.tuned-2")
    assert run("broken.jsonl", resume=True) == expected
    assert all(torch.equal(before[k], t) for k, t in tensors_of(net.model).items())
    assert not list(tmp_path.glob("*tuned*"))


def test_random_states_are_left_alone(digits):
    net, train, held_out = digits
    score = Scorer(net, held_out, calibrate=train)
    before = torch.get_rng_state()
    place = train.epoch
    floor = {name: 0.75 if name in ("layer1", "layer2") else 1.0 for name in net.space.axes}
    conduct(
        progressive(net.space, groups=1, floor=floor, threshold=0.999, epochs=1),
        net,
        score=score,
        tune=Tuner(net, train, score),
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert train.epoch == place
