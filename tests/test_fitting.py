import io
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

import nestling
from nestling import ModelError
from nestling.costs.latency import Latency, Ratio
from nestling.menu import Menu, replace
from nestling.offers import settle_offers
from nestling.progress import Reporter
from nestling.weights import cloned, tensors_of

quick = pytest.mark.usefixtures("unmeasured")


def fit(net, train, val=None, **options):
    return nestling.fit(net, train, val, **{"epochs": 1, "progress": False, **options})


def states():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


@quick
def test_global_random_states_are_put_back(small):
    before = states()
    fit(small.supernet(), small.loader())
    assert states() == before
    with pytest.raises(nestling.DataError):
        fit(small.supernet(), [3])
    assert states() == before


@quick
@pytest.mark.parametrize("method", ["uniform", "individual"])
def test_a_seed_repeats_bit_for_bit(small, same, method):
    def run(seed):
        net = small.supernet()
        torch.rand(3), np.random.rand()  # whatever happened before
        menu = fit(net, small.loader(), method=method, seed=seed, fractions=(1.0, 0.3))
        private = {f"{e.name}/{k}": t for e in menu for k, t in e.private.items()}
        return {**cloned(tensors_of(net.model)), **private}

    first = run(1)
    assert same(first, run(1))
    assert not same(first, run(2))


@quick
def test_the_same_batches_object_may_be_used_twice(small, same):
    train, found = small.data_batches(), []
    for _ in range(2):
        net = small.supernet()
        fit(net, train, epochs=2)
        found.append(tensors_of(net.model))
    assert same(*found)


@quick
def test_no_epochs_gives_the_menu_of_the_untrained_net(small, same):
    net = small.supernet()
    before = cloned(tensors_of(net.model))
    menu = fit(net, small.batches(), small.batches(16), epochs=0)
    assert same(before, tensors_of(net.model))
    assert len(menu) >= 3
    assert menu.facts == {"method": "uniform", "epochs": 0, "seed": 0, **_precision(menu)}
    plain = nestling.Supernet(small.seeded(small.Mlp), torch.randn(2, 6), step=2)
    assert len(fit(plain, [], epochs=0)) >= 3


@quick
def test_a_menu_says_when_its_accuracies_have_chosen_it(small):
    val, other = small.batches(16), small.batches(8)
    options = {"method": "progressive", "epochs": 0, "rank_by": None, "search": "uniform"}
    menu = fit(small.supernet(), small.batches(), val, **options)
    assert menu.facts["chosen on"] == "the held-out batches"
    menu = fit(small.supernet(), small.batches(), val, held_out=other, **options)
    assert "chosen on" not in menu.facts


def _precision(menu):
    return {"precision": menu.facts["precision"]}


@quick
@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16", "float32-channels-last"])
def test_precisions(small, precision):
    menu = fit(small.supernet(), small.batches(), small.batches(), epochs=8, precision=precision)
    assert menu["full"].accuracy > 0.7
    told = {
        "float32": "float32",
        "bfloat16": "bfloat16, channels-last",
        "float32-channels-last": "float32, channels-last",
    }
    assert menu.facts["precision"] == told.get(precision, menu.facts["precision"])
    assert all(p.dtype == torch.float32 for p in menu.net.parameters())


@quick
def test_optimizers_are_made_from_the_parameters(small):
    made = []

    def optimizer(parameters):
        made.append(list(parameters))
        return torch.optim.AdamW(made[-1], lr=0.01)

    net = small.supernet()
    fit(net, small.batches(), optimizer=optimizer)
    assert [id(p) for p in made[0]] == [id(p) for p in net.parameters()]


@quick
def test_regression(small):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 6, generator=generator)
    y = x[:, :1] * 2 + x[:, 1:2]
    data = list(zip(x.split(16), y.split(16), strict=True))
    net = nestling.Supernet(small.seeded(small.Mlp, 6, 16, 1), x[:2], step=4)

    def negative_error(outputs, targets):
        return -F.mse_loss(outputs, targets)

    before = nestling.evaluate(net.model, data, negative_error)
    menu = fit(
        net, data, data, epochs=30, loss=F.mse_loss, metric=negative_error, optimizer=small.adamw
    )
    assert menu.metric == "negative_error"
    assert before < menu["full"].accuracy < 0
    assert menu["full"].accuracy > -1.5


@quick
@pytest.mark.parametrize("form", ["tuple", "dict"])
def test_several_inputs(small, form):
    left, right = torch.randn(24, 4), torch.randn(24, 5)
    labels = (left.sum(1) + right.sum(1) > 0).long()
    parts = zip(left.split(8), right.split(8), labels.split(8), strict=True)
    data = [
        ((a, b) if form == "tuple" else {"left": a, "right": b}, target) for a, b, target in parts
    ]
    net = nestling.Supernet(small.seeded(small.TwoInputs), left[:2], right[:2], step=2)
    menu = fit(net, data, data, epochs=30, optimizer=small.adamw)
    assert menu["full"].accuracy > 0.7
    assert nestling.LoadedModel(menu)(left, right).shape == (24, 2)


@quick
def test_a_class_for_every_pixel(small):
    images = torch.randn(16, 1, 8, 8)
    labels = (images[:, 0] > 0).long()
    data = list(zip(images.split(8), labels.split(8), strict=True))
    net = nestling.Supernet(small.seeded(small.Segmenter), images[:2], step=2)
    menu = fit(net, data, data, epochs=20, optimizer=small.adamw)
    assert menu["full"].accuracy > 0.7


def test_the_run_says_what_is_not_offered(small, monkeypatch):
    out = io.StringIO()

    def measured(menu):
        times = {entry.name: 5.0 + number for number, entry in enumerate(menu)}
        table = {name: Latency(ms, ms, ms, 9) for name, ms in times.items()}
        equal = [replace(entry, accuracy=0.5) for entry in menu]
        return replace(menu, entries=settle_offers(equal, table))

    monkeypatch.setattr(Menu, "measured", measured)
    reporter = Reporter(console=Console(file=out, width=200))
    menu = fit(small.supernet(), small.batches(), progress=reporter)
    hidden = [entry.name for entry in menu if not entry.offered]
    assert hidden == [entry.name for entry in menu][1:]
    for name in hidden:
        assert f"with 1 example a call, {name} is not offered" in out.getvalue()


@quick
def test_a_narrowed_training(small, monkeypatch):
    def compare(smaller, larger, precision, seconds):
        blocks = [sum(-(-n // 4) for n in spec.values()) for spec in (smaller, larger)]
        return Ratio(*[blocks[0] / blocks[1]] * 3, 40)

    monkeypatch.setattr("nestling.timing._comparer", lambda *given: compare)
    out = io.StringIO()
    reporter = Reporter(console=Console(file=out, width=300))
    options = {"fractions": (1.0, 0.5, 0.05), "epochs": 1}
    plain = fit(small.supernet(), small.batches(), small.batches(16), **options, progress=False)
    menu = fit(
        small.supernet(), small.batches(), small.batches(16), **options, narrow=9, progress=reporter
    )
    counts = [{count for count in entry.spec.values()} for entry in menu]
    assert counts == [{8}, {4}]
    assert [set(entry.spec.values()) for entry in plain] == [{8}, {6}, {2}]
    assert "2 of 8 is no faster than 4 here, so 4 is used" in out.getvalue()
    assert menu.facts["narrowed in"] == "9 s"
    assert list(menu.profile.narrowings) == [menu.key()]
    for entry in menu:  # the figures are of what is on the menu
        assert entry.accuracy == nestling.evaluate(menu.module(entry.name), small.batches(16))
    alone = fit(
        small.supernet(), small.batches(), **options, method="individual", narrow=9,
        progress=reporter,
    )  # fmt: skip
    assert [dict(entry.spec) for entry in alone] == [dict(entry.spec) for entry in plain]
    assert "nothing is narrowed: these nets were trained alone" in out.getvalue()
    with pytest.raises(ModelError, match="time to narrow in"):
        fit(small.supernet(), small.batches(), narrow=-1)


def test_a_model_that_cannot_be_measured_is_not_lost(small):
    class Flagged(small.Mlp):
        def forward(self, x, flag):
            return super().forward(x) if flag else x

    out = io.StringIO()
    net = nestling.Supernet(Flagged(), torch.randn(2, 6), True, step=2)
    data = [((torch.randn(8, 6), True), torch.randint(3, (8,)))]
    reporter = Reporter(console=Console(file=out, width=300))
    menu = fit(net, data, data, narrow=1, progress=reporter)
    assert "nothing is narrowed: latency is measured on made-up inputs" in out.getvalue()
    assert "latencies were not measured" in out.getvalue()
    assert len(menu) >= 2
    with pytest.raises(nestling.BudgetError, match="nestling profile"):
        nestling.LoadedModel(menu).choose(latency_ms=1)
