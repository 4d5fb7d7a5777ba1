"""A search as a stage of a training."""

import pytest
import torch

import nestling
from nestling import DataError, FileError, ModelError, SpecError, search
from nestling.search.stage import check_begins, log_of, searched
from nestling.training import Run
from nestling.weights import cloned, tensors_of


@pytest.fixture
def start(small, tmp_path):
    """Return a function that makes a run, of a net that was trained for an epoch."""

    def make(name="state", **options):
        net = small.supernet()
        path = tmp_path / name if name else None
        run = Run(net, small.batches(), 1, precision="float32", checkpoint=path, **options)
        run.train_stage(nestling.sandwich)
        return run

    return make


def held_out(small):
    return small.batches(48, seed=5)


def rows(path):
    return [nestling.strictjson.parse(line) for line in path.read_bytes().splitlines()]


def test_it_finds_what_the_search_alone_finds(start, small):
    run = start()
    score = search.Scorer(run.net, held_out(small), calibrate=small.batches())
    expected = search.conduct(search.progressive(run.net.space, groups=2), run.net, score=score)
    before, state = cloned(tensors_of(run.net.model)), torch.get_rng_state()
    found = searched(run, "progressive", held_out(small), {"groups": 2})
    assert found == expected  # to the last bit: thirds have no short form
    assert len({each.accuracy for each in found}) > 1
    assert all(torch.equal(before[name], t) for name, t in tensors_of(run.net.model).items())
    assert torch.equal(torch.get_rng_state(), state)
    assert run.seconds["search"] > 0


def test_its_log_lies_beside_the_checkpoint(start, small, tmp_path):
    run = start("seed.1")
    found = searched(run, "progressive", held_out(small), {"groups": 2})
    log = log_of(run.checkpoint)
    assert log == tmp_path / "seed.1.search.jsonl"  # another than that of seed.2
    header, *answers = rows(log)
    assert (header["search"], header["options"]["groups"]) == ("progressive", 2)
    assert header["seed"] == run.seed
    kept = [row for row in answers if row["kind"] == "found"]
    assert [row["accuracy"] for row in kept] == [each.accuracy for each in found]
    assert [row["spec"] for row in kept] == [dict(each.spec) for each in found]


def test_without_a_checkpoint_nothing_is_written(start, small, tmp_path):
    assert searched(start(None), "uniform", held_out(small), {})
    assert not list(tmp_path.iterdir())


def test_a_resumed_run_has_what_was_found(start, small, tmp_path, monkeypatch):
    run = start()
    found = searched(run, "progressive", held_out(small), {"groups": 2})
    run.train_stage(nestling.sandwich)
    again = Run(
        small.supernet(), small.batches(), 1, precision="float32", checkpoint=tmp_path / "state"
    )
    again.resume()
    again.train_stage(nestling.sandwich)
    monkeypatch.setattr("nestling.search.stage.conduct", None)  # it is not called
    assert searched(again, "progressive", held_out(small), {"groups": 2}) == found


def test_the_log_of_another_search_is_refused(start, small, tmp_path):
    searched(start(), "uniform", held_out(small), {})
    other = start()
    other.resumed = True
    with pytest.raises(FileError, match="search='uniform' \\(now 'progressive'\\)"):
        searched(other, "progressive", held_out(small), {"groups": 2})
    fresh = start()  # not resumed: the log is replaced
    searched(fresh, "progressive", held_out(small), {"groups": 2})
    assert rows(tmp_path / "state.search.jsonl")[0]["search"] == "progressive"


def test_the_run_s_seed_metric_and_loss_are_used(start, small):
    pytest.importorskip("optuna")

    def metric(outputs, targets):
        return 1 / (2 + float(outputs.abs().mean()))

    run = start(seed=3, metric=metric)
    options = {"trials": 4, "population": 2}
    found = searched(run, "evolution", held_out(small), options)
    header = rows(log_of(run.checkpoint))[0]
    assert header["options"]["seed"] == 3
    assert header["score"]["metric"] == "metric"
    score = search.Scorer(run.net, held_out(small), calibrate=small.batches(), metric=metric)
    assert all(score(each.spec) == each.accuracy for each in found)

    calls = []

    def loss(outputs, targets):
        calls.append(None)
        return torch.nn.functional.cross_entropy(outputs, targets)

    tuned = start("tuned", loss=loss)
    calls.clear()
    options = {"groups": 1, "threshold": 1.0, "epochs": 1}
    searched(tuned, "progressive", held_out(small), options)
    kinds = [row.get("kind") for row in rows(log_of(tuned.checkpoint))]
    assert "tune" in kinds
    assert len(calls) >= kinds.count("tune")


@pytest.mark.parametrize(
    ("by", "options", "error", "message"),
    [
        ("greddy", {}, ModelError, "did you mean 'greedy'"),
        ("path", {}, ModelError, "use the method 'norms'"),
        ("greedy", {"group": 2}, ModelError, "did you mean 'groups'"),
        ("greedy", {"slack": 0}, SpecError, "slack="),
        ("progressive", {"threshold": 2}, SpecError, "threshold="),
        ("uniform", {"fractions": []}, SpecError, "fractions="),
    ],
)
def test_mistakes(start, small, by, options, error, message):
    run = start(None)
    for call in (check_begins, searched):
        with pytest.raises(error, match=message):
            call(run, by, held_out(small), options)


def test_data_that_varies_is_told_before_it_begins(start, small):
    run = start(None)
    with pytest.raises(DataError, match="yields others each time"):
        check_begins(run, "uniform", small.loader(), {})
    with pytest.raises(DataError, match="at least one batch"):
        check_begins(run, "uniform", [], {})
    state = torch.get_rng_state()
    check_begins(run, "progressive", held_out(small), {"groups": 2})
    assert torch.equal(torch.get_rng_state(), state)
