"""The clipped lasso: its penalty against NumPy, what it notes, and units worth nothing."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nestling
from nestling import ModelError, rankers
from nestling.rankers.lasso import FALLEN, Falls, path, penalty
from nestling.training import Run

CPU = torch.device("cpu")


def test_penalty_and_its_gradient():
    """A unit that is shorter than the bound is pulled straight to zero; a longer one is not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].weight[:3] *= 0.1
    net = nestling.Supernet(model, torch.randn(2, 4), step=1)
    weights = dict(net.named_parameters())
    value = penalty(Falls(net.space, (), CPU).norms(weights), 0.5)
    value.backward()
    rows = weights["0.weight"].detach().double().numpy()
    lengths = np.sqrt((rows**2).sum(1))
    bound = 0.5 * lengths.mean()
    assert value.item() == pytest.approx(np.minimum(lengths, bound).sum(), rel=1e-5)
    expected = np.where((lengths < bound)[:, None], rows / lengths[:, None], 0.0)
    assert 0 < (lengths < bound).sum() < 6
    np.testing.assert_allclose(weights["0.weight"].grad.numpy(), expected, atol=1e-6)


def test_a_unit_at_zero_has_a_finite_slope(nets):
    net, _ = nets("joined")
    weights = dict(net.named_parameters())
    with torch.no_grad():
        weights["left.weight"][0] = 0
    penalty(Falls(net.space, (), CPU).norms(weights), 0.3).backward()
    assert torch.isfinite(weights["left.weight"].grad).all()


def noted(net, targets, *steps):
    """Return the state after steps of (share of the run, units of "left" that are down)."""
    falls = Falls(net.space, targets, CPU)
    for now, down in steps:
        norms = [[torch.ones(axis.size)] for axis in falls.axes]
        norms[0][0][list(down)] = 0.01
        falls.note(norms, now)
    return falls


def test_moments_are_those_of_the_last_fall(nets):
    net, _ = nets("joined")
    falls = noted(net, (), (0.1, {3}), (0.2, {3, 5}), (0.3, {5}), (0.4, {3, 5}), (0.5, {3, 5, 0}))
    scores = falls.scores()
    assert {u: round(float(scores["left"][u]), 4) for u in (5, 3, 0)} == {5: 0.2, 3: 0.4, 0: 0.5}
    assert float(scores["left"].min()) == pytest.approx(0.2)
    assert (scores["left"][[1, 2, 4, 6, 7]] > 1).all()
    assert (scores["right"] > 1).all()
    order = rankers.orders(net.space, scores)["left"]
    assert order[-3:] == (0, 3, 5)


def test_widths_are_noted_when_a_target_is_crossed(nets):
    net, _ = nets("joined")
    share = {n: net.space.macs({"left": n}) / net.space.macs(net.space.full) for n in range(1, 9)}
    targets = (share[6] + 1e-6, share[3] + 1e-6)
    falls = noted(net, targets, (0.1, {7}), (0.2, {7, 6}), (0.3, {7, 6, 5}), (0.4, range(2, 8)))
    first, second = falls.specs()
    assert first["left"] == 6
    assert second["left"] == 2
    for spec, target in zip((first, second), targets, strict=True):
        assert (spec["right"], spec["gated"]) == (4, 8)
        assert net.space.macs(spec) <= target * net.space.macs(net.space.full)


def test_targets_that_are_not_crossed_take_the_longest(nets):
    net, _ = nets("joined")
    falls = noted(net, (0.75, 0.5, 0.0001), (0.1, {7}))
    generator = torch.Generator().manual_seed(0)
    falls.lengths.copy_(torch.rand(falls.lengths.shape, generator=generator) + 1)
    assert (falls.widths < 0).all()
    full, scores = net.space.macs(net.space.full), falls.scores()
    every = sorted(float(s) for score in scores.values() for s in score)
    for spec, target in zip(falls.specs(), (0.75, 0.5, 0.0001), strict=True):
        fitting = []  # by trying every bound, not by bisection
        for bound in [*every, math.inf]:
            left = {n: max(1, int((score >= bound).sum())) for n, score in scores.items()}
            if net.space.macs(left) <= target * full:
                fitting.append(left)
        least = {name: 1 for name in scores}
        assert spec == max(fitting, key=net.space.macs, default=least)


def test_counts_are_allowed_ones(nets):
    model = nets("joined")[0].model
    net = nestling.Supernet(model, torch.randn(2, 5), step=4)
    falls = noted(net, (0.9,), (0.1, {7}), (0.2, {7, 6, 5, 4, 3}))
    (spec,) = falls.specs()
    assert spec["left"] == 4


class Dead(nn.Module):
    """The second half of the hidden units never reaches the output."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(6, 16)
        self.two = nn.Linear(16, 3)
        self.register_buffer("factor", torch.cat([torch.ones(8), torch.zeros(8)]))

    def forward(self, x):
        return self.two(F.relu(self.one(x)) * self.factor)


def batches():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (20, 32), generator=generator)
    centres = 2 * torch.randn(3, 6, generator=generator)
    return [(torch.randn(32, 6, generator=generator) + centres[y], y) for y in labels]


def run_of(**options):
    torch.manual_seed(0)
    model = Dead()
    with torch.no_grad():
        model.one.weight[8:] *= 0.3
    net = nestling.Supernet(model, torch.randn(2, 6), step=1)
    optimizer = lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)  # noqa: E731
    return Run(net, batches(), 10, optimizer=optimizer, precision="float32", **options)


def test_units_that_nothing_reads_fall_and_the_others_stand():
    run = run_of()
    found = path(run, (0.6, 0.2), strength=(0.05, 0.05), clip=0.6)
    scores = found.scores["one"]
    assert (scores[8:] < 1).all()
    assert (scores[:8] > 1).all()
    assert found.crossed == (True, False)
    assert found.specs[0]["one"] <= 9
    run.reorder(rankers.orders(run.net.space, found.scores))
    before = run_of().net.space
    assert before.macs(found.specs[1]) <= 0.2 * before.macs(before.full)
    lengths = dict(run.net.named_parameters())["one.weight"].norm(dim=1)
    assert (lengths[8:] < 2 * FALLEN * lengths.mean()).all()


def test_without_strength_none_falls():
    scores = rankers.scores(run_of(), "lasso", strength=(0.0, 0.0))
    assert (scores["one"] > 1).all()


def test_the_pull_rises_during_the_run(monkeypatch):
    seen = []

    def spy(hard, norms, clip, weight):
        seen.append(weight)
        return hard

    monkeypatch.setattr("nestling.rankers.lasso._penalised", spy)
    rankers.scores(run_of(), "lasso", strength=(0.1, 0.3))
    assert seen == pytest.approx([0.1 + 0.2 * step / 200 for step in range(200)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": (1.5,)}, "targets= are shares"),
        ({"strength": 3}, "strength= is a pair"),
        ({"strength": (1, -1)}, "strength= is a pair"),
        ({"clip": 0}, "clip= is a share"),
        ({"epochs": 0}, "at least 1 epoch"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ModelError, match=message):
        path(run_of(), **options)
