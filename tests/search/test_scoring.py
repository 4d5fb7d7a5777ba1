"""Scoring on held-out data, and dropping candidates early."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nestling
from nestling import DataError, ModelError, evaluate
from nestling.search import Scorer, Tuner, conduct, progressive
from nestling.search.steps import lowered, stairs
from nestling.testing import some_specs
from nestling.weights import cloned, tensors_of


def test_the_accuracy_is_that_of_a_recalibrated_subnet(digits):
    net, train, held_out = digits
    score = Scorer(net, held_out, calibrate=train)
    inputs = [images for images, _ in list(train.at(0))[:4]]  # 256 examples
    train.epoch = 0
    for spec in some_specs(net.space):
        subnet = net.subnet(spec)
        if spec != net.space.full:
            net.recalibrate(subnet, inputs)
        assert score(spec) == pytest.approx(evaluate(subnet, held_out), abs=0.006)
        assert score(spec) == score(spec)


def test_without_calibration_statistics_are_slices_of_the_nets(digits):
    net, _, held_out = digits
    score = Scorer(net, held_out, calibrate=[])
    for spec in some_specs(net.space):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", nestling.UncalibratedWarning)
            expected = evaluate(net.subnet(spec), held_out)
        assert score(spec) == pytest.approx(expected, abs=1e-9)  # and it warns of nothing


def test_it_equals_evaluate_bit_for_bit_without_norms(small):
    net = nestling.Supernet(small.seeded(small.Mlp), torch.randn(2, 6), step=1)
    generator = torch.Generator().manual_seed(0)
    data = [
        (torch.randn(n, 6, generator=generator), torch.randint(3, (n,), generator=generator))
        for n in (16, 16, 5)
    ]
    for metric in (nestling.evaluation.accuracy, lambda outputs, targets: -outputs.std()):
        score = Scorer(net, data, metric=metric)
        for spec in some_specs(net.space):
            assert score(spec) == pytest.approx(evaluate(net.subnet(spec), data, metric), abs=1e-12)


def test_scores_of_every_pixel(small):
    net = nestling.Supernet(small.seeded(small.Segmenter), torch.randn(2, 1, 8, 8), step=2)
    generator = torch.Generator().manual_seed(0)
    data = [
        (
            torch.randn(6, 1, 8, 8, generator=generator),
            torch.randint(2, (6, 8, 8), generator=generator),
        )
        for _ in range(3)
    ]
    score = Scorer(net, data, calibrate=data)
    assert score(net.space.full) == pytest.approx(evaluate(net.subnet(net.space.full), data))


def test_nothing_of_the_net_changes_and_nothing_warns(digits):
    net, train, held_out = digits
    before, state = cloned(tensors_of(net.model)), torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Scorer(net, held_out, calibrate=train).pick(some_specs(net.space))
    assert all(torch.equal(before[name], each) for name, each in tensors_of(net.model).items())
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_race_all_see_everything(digits):
    net, train, held_out = digits
    score = Scorer(net, held_out, calibrate=train, race=False)
    specs = some_specs(net.space)
    accuracies, shares = score.pick(specs)
    assert shares == [1.0] * len(specs)
    assert accuracies == [score(spec) for spec in specs]


def test_the_race_finds_the_best_nearly_always_and_costs_less(digits):
    """On the path of a progressive search: the best in 9 of 10 choices, and never far off it."""
    net, train, held_out = digits
    race = Scorer(net, held_out, calibrate=train)
    all_of_it = Scorer(net, held_out, calibrate=train, race=False)
    race(net.space.full)
    steps, spec = stairs(net.space, 2, 0.25), net.space.full
    same, regrets, seen = [], [], []
    while candidates := list(lowered(net.space, spec, steps).values()):
        exact, _ = all_of_it.pick(candidates)
        raced, shares = race.pick(candidates)
        left = [place for place, share in enumerate(shares) if share == 1]
        for place in left:
            assert raced[place] == exact[place]
        won = max(left, key=lambda place: raced[place])
        regrets.append(max(exact) - exact[won])
        same.append(regrets[-1] == 0)
        seen.append(sum(shares) / len(shares))
        spec = candidates[exact.index(max(exact))]
    assert len(same) >= 15
    assert sum(same) >= 0.9 * len(same)
    assert sum(regrets) / len(regrets) < 0.002
    assert max(regrets) < 0.03
    assert sum(seen) / len(seen) < 0.8


def test_clear_losers_are_dropped_early_and_worth_decides_who_they_are(digits):
    net, train, held_out = digits
    score = Scorer(net, held_out, calibrate=train)
    good = score(net.space.full)
    least = net.space.spec({name: axis.counts[0] for name, axis in net.space.axes.items()})
    assert score(least) < good - 0.3
    _, shares = score.pick([least, net.space.full])
    assert shares[1] == 1.0
    assert shares[0] < 0.3
    _, shares = score.pick([least, net.space.full], lambda place, accuracy: accuracy - place)
    assert shares[0] == 1.0
    assert shares[1] < 0.3
    assert sum(share == 1 for share in score.pick([least, least])[1]) == 2  # ties run to the end


def test_it_refuses_what_it_cannot_compare_on(digits, small):
    net, train, held_out = digits
    with pytest.raises(ModelError, match="calibrate="):
        Scorer(net, held_out)
    with pytest.raises(DataError, match="others each time"):
        Scorer(net, train, calibrate=train)
    with pytest.raises(DataError, match="read only once"):
        Scorer(net, iter(list(held_out)), calibrate=train)
    with pytest.raises(DataError, match="yields none"):
        Scorer(net, [], calibrate=train)
    with pytest.raises(DataError, match="must be finite"):
        Scorer(net, held_out, calibrate=train, metric=lambda outputs, targets: math.nan)(
            net.space.full
        )


class Viewing(nn.Module):
    """Takes no channels-last pictures: its view needs them in the order of the channels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 64, 3)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().view(len(x), -1))


class Indexed(Viewing):
    """Takes no bf16 beside: sums over indices want one dtype."""

    def forward(self, x):
        zeros = torch.zeros(len(x), 3, dtype=self.head.weight.dtype)
        return zeros.index_add(0, torch.arange(len(x)), super().forward(x))


@pytest.mark.parametrize(
    ("kind", "precision", "found"),
    [
        (Viewing, "auto", "bfloat16"),
        (Indexed, "auto", "float32"),
        (Viewing, "bfloat16", "bfloat16"),
        (Viewing, "float32-channels-last", "float32"),
    ],
)
def test_a_search_takes_the_precision_that_the_model_takes(
    small, monkeypatch, kind, precision, found
):
    monkeypatch.setattr("nestling.precision.fast_bfloat16", lambda device: True)
    net = small.supernet(small.seeded(kind), step=4)
    train, held_out = small.batches(48), small.batches(48, seed=5)
    before, state = cloned(tensors_of(net.model)), torch.get_rng_state()
    score = Scorer(net, held_out, calibrate=train, precision=precision)
    tune = Tuner(net, train, score, precision=precision)
    assert score.facts["precision"] == str(score.precise) == found
    chain = conduct(progressive(net.space, threshold=1.0, epochs=1), net, score=score, tune=tune)
    assert len(chain) >= 2
    assert str(tune.precise) == found
    assert all(torch.equal(before[name], each) for name, each in tensors_of(net.model).items())
    assert torch.equal(torch.get_rng_state(), state)
    plain = Scorer(net, held_out, calibrate=train)
    for spec in some_specs(net.space):
        assert score(spec) == pytest.approx(plain(spec), abs=0.05)


def test_asked_for_by_name_bf16_stays(small):
    net = small.supernet(small.seeded(Indexed), step=4)
    score = Scorer(net, small.batches(), calibrate=small.batches(), precision="bfloat16")
    with pytest.raises(DataError, match="accept"):
        score(net.space.full)


def test_metric_and_loss_are_given_float32(small):
    net, dtypes = small.supernet(), []

    def metric(outputs, targets):
        dtypes.append(outputs.dtype)
        return -F.cross_entropy(outputs, targets)

    data = small.batches()
    score = Scorer(net, data, calibrate=data, metric=metric, precision="bfloat16")
    Tuner(net, data, score, loss=lambda *given: -metric(*given), precision="bfloat16")(
        net.space.full, 9.0, 1
    )
    assert set(dtypes) == {torch.float32}
    assert str(score.precise) == "bfloat16, channels-last"
