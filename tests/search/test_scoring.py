"""Scoring on held-out data, and dropping candidates early."""

import math
import warnings

import pytest
import torch

import nestling
from nestling import DataError, ModelError, evaluate
from nestling.search import Scorer
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
