"""A loaded model on backends: which one runs a call, and which latencies it goes by."""

import pytest
import torch

import nestling
from nestling import BudgetError, ModelError, backends
from nestling.backends import Conversions, shelf
from nestling.costs.latency import Latency
from nestling.exporters import onnx
from nestling.menu import replace

CONVERTED = Conversions()


@pytest.fixture(autouse=True)
def converted_once(monkeypatch):
    monkeypatch.setattr(shelf, "Conversions", lambda: CONVERTED)


@pytest.fixture(scope="module")
def menu(small):
    net = small.supernet()
    for _ in range(3):  # the norms have seen something
        net.subnet(net.space.full).train()(small.pictures(16)[0])
    specs = {"half": net.space.spec(width=0.5)}
    menu = nestling.make_menu(net, specs, calibrate=small.batches(), measure=False)
    entries = [replace(e, accuracy=a) for e, a in zip(menu, (0.9, 0.8), strict=True)]
    profile = menu.profile
    figures = {"eager": (8.0, 4.0), "packed": (9.0, 2.0), "onnxruntime": (3.0, 3.0)}
    for name, (full, half) in figures.items():
        table = {"full": Latency(full, full, full, 9), "half": Latency(half, half, half, 9)}
        profile = profile.with_table(menu.key(2, name), table)
    other = menu.key(3, "eager")
    profile = profile.with_table(other, {"full": Latency(9, 9, 9, 9), "half": Latency(5, 5, 5, 9)})
    return replace(menu, entries=tuple(entries), profile=profile)


def close(one, other):
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_auto_runs_and_chooses_by_the_fastest(menu, small):
    model = nestling.LoadedModel(menu)
    images, _ = small.pictures(2)
    assert [model.backend_of(name, 2) for name in ("full", "half")] == ["onnxruntime", "packed"]
    ready = model.prepare()
    assert {(each.place.entry, each.place.backend) for each in ready} == {
        ("full", "onnxruntime"), ("half", "packed"),
    }  # fmt: skip
    assert all(each.bytes > 0 for each in ready)
    for name in ("full", "half"):
        close(model(images, subnet=name), menu.module(name)(images))
    assert model.choose(latency_ms=3, batch=2).name == "full"
    assert model.choose(latency_ms=2.5, batch=2).name == "half"
    with pytest.raises(BudgetError, match="latency_ms=2;"):
        model.choose(latency_ms=1, batch=2)
    assert model.left_out == {}


def test_auto_runs_on_views_where_nothing_else_was_measured(menu, small):
    model = nestling.LoadedModel(menu)
    assert model.backend_of("full", 3) == "eager"
    assert model.choose(latency_ms=6, batch=3).name == "half"
    with pytest.raises(BudgetError, match="nestling profile FILE --batch 4 --threads 1`"):
        model.choose(latency_ms=6, batch=4)
    images, _ = small.pictures(4)
    assert torch.equal(model(images), menu.module("full")(images))
    assert model.ready == []


def test_one_backend_for_all_goes_by_its_own_figures(menu, small, tmp_path):
    path = menu.save(tmp_path / "m.nest")
    model = nestling.load(path, model=small.ConvNet(), backend="onnxruntime")
    assert [each.place.backend for each in model.ready] == ["onnxruntime", "onnxruntime"]
    assert model.choose(latency_ms=3, batch=2).name == "full"
    with pytest.raises(BudgetError, match="--backend onnxruntime"):
        model.choose(latency_ms=3, batch=3)  # views were measured, but do not run it
    for count in (1, 5):
        images, _ = small.pictures(count)
        close(model(images), menu.module("full")(images))
    with pytest.raises(ModelError, match=r"takes inputs like .* and fails on \(2, 3, 8, 8\)"):
        model(torch.zeros(2, 3, 8, 8))
    with pytest.raises(nestling.DataError, match="finite"):
        model(torch.full((2, 1, 8, 8), float("nan")))


def test_a_backend_that_fails_for_one_entry_is_left_out_there(menu, small, monkeypatch):
    found = backends.find("packed")

    def failing(subject):
        if subject.name == "half":
            raise RuntimeError("no such op")
        return found.prepare(subject)

    swapped = replace(found, prepare=failing)
    find = backends.find
    monkeypatch.setattr(backends, "find", lambda name: swapped if name == "packed" else find(name))
    model = nestling.LoadedModel(menu, backend="packed", memory_cap=10**9)
    assert [each.place.entry for each in model.prepare(2)] == ["full"]
    assert model.left_out == {
        ("packed", "half"): "packed fails on 'half': RuntimeError: no such op"
    }
    assert model.backend_of("half", 2) == "eager"
    images, _ = small.pictures(2)
    assert torch.equal(model(images, subnet="half"), menu.module("half")(images))
    assert {name: found.median for name, found in model.latencies(2).items()} == {
        "full": 9.0, "half": 4.0,
    }  # fmt: skip
    # and its latency is that of views: 4 ms, not 2
    assert model.choose(latency_ms=8.9, batch=2).name == "half"
    with pytest.raises(BudgetError, match="latency_ms=4;"):
        model.choose(latency_ms=2.5, batch=2)


def broken(*args, **kwargs):
    raise RuntimeError("no such op")


def test_loading_says_what_does_not_run_on_its_backend(menu, small, tmp_path, monkeypatch):
    path = menu.save(tmp_path / "m.nest")
    monkeypatch.setattr(onnx, "session", broken)
    with pytest.warns(UserWarning, match=r"'full' on onnxruntime, and 1 more: .*no such op"):
        model = nestling.load(path, model=small.ConvNet(), backend="onnxruntime")
    images, _ = small.pictures(2)
    assert torch.equal(model(images), menu.module("full")(images))


def test_a_cap_holds_what_fits(menu, small):
    one = menu["full"].bytes
    model = nestling.LoadedModel(menu, backend="packed", memory_cap=100 * one)
    assert len(model.prepare()) == 2
    none = nestling.LoadedModel(menu, backend="packed", memory_cap=0)
    assert none.prepare() == []
    images, _ = small.pictures(2)
    assert torch.equal(none(images), menu.module("full")(images))


def test_bad_requests(menu, small, tmp_path):
    path = menu.save(tmp_path / "m.nest")
    with pytest.raises(ModelError, match="unknown backend 'egaer'; did you mean 'eager'"):
        nestling.load(path, model=small.ConvNet(), backend="egaer")
    with pytest.raises(ModelError, match="packed=True is the same"):
        nestling.LoadedModel(menu, packed=True, backend="eager")
    with pytest.raises(BudgetError, match="memory_cap= is a number of bytes"):
        nestling.LoadedModel(menu, memory_cap="much")
    with pytest.raises(nestling.SpecError, match="did you mean 'half'"):
        nestling.LoadedModel(menu).backend_of("hal")


def test_a_batch_that_was_not_measured_runs_as_the_nearest_one(menu, small):
    model = nestling.LoadedModel(menu)
    assert [model.backend_of(name, 1) for name in ("full", "half")] == ["onnxruntime", "packed"]
    assert [model.backend_of(name, 7) for name in ("full", "half")] == ["eager", "eager"]
    images, _ = small.pictures(1)
    close(model(images, subnet="full"), menu.module("full")(images))
    with pytest.raises(BudgetError):  # budgets go by what was measured at this batch alone
        model.choose(latency_ms=5, batch=1)
