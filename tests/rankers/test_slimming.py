import pytest
import torch
from torch import nn

import nestling
from nestling import ModelError, rankers
from nestling.execution.cutoff import cutoff
from nestling.training import Run


def run_of(nets, **options):
    net, batches = nets("residual")
    optimizer = lambda p: torch.optim.SGD(p, lr=0.05)  # noqa: E731
    return Run(net, batches, 4, optimizer=optimizer, precision="float32", **options)


def test_scores_are_the_scales(nets):
    run = run_of(nets)
    found = rankers.scores(run, "slimming")
    norm = run.net.model.norm.weight.detach().double()
    assert torch.equal(found["one"], norm.abs())
    wide, shortcut = run.net.model.wide.weight, run.net.model.shortcut.weight
    parts = [w.detach().double().abs().sum((1, 2, 3)) for w in (wide, shortcut)]
    want = torch.stack([p / p.mean() for p in parts]).mean(0) * norm.abs().mean()
    assert torch.allclose(found["wide"], want)


def test_the_penalty_is_the_sum_of_the_scales(nets):
    """One step of SGD: the scales move by the penalty's slope beside the loss's."""
    norms, rest = [], []
    for strength in (0.0, 0.5):
        run = run_of(nets)
        run.train = run.train[:1]
        run.length = 1
        rankers.scores(run, "slimming", strength=strength, epochs=1)
        norms.append(run.net.model.norm.weight.detach().clone())
        rest.append(run.net.model.stem.weight.detach().clone())
    assert torch.allclose(norms[0] - norms[1], torch.full((6,), 0.05 * 0.5), atol=1e-6)
    assert torch.equal(rest[0], rest[1])


def test_strength_shrinks_what_is_not_needed(nets):
    weak, strong = (rankers.scores(run_of(nets), "slimming", strength=s) for s in (0.0, 0.5))
    assert strong["one"].mean() < 0.9 * weak["one"].mean()


def test_a_global_cut_takes_more_of_an_axis_of_small_scales():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([2.0] * 6 + [0.1] * 2))
        model[4].weight.copy_(torch.tensor([2.0] * 2 + [0.1] * 6))
    net = nestling.Supernet(model, torch.randn(2, 1, 8, 8), step=1)
    data = [(torch.randn(4, 1, 8, 8), torch.randint(3, (4,)))]
    run = Run(net, data, 1, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    assert list(cutoff(net.space, rankers.scores(run, "slimming"), 0.32).values()) == [6, 2]


@pytest.mark.parametrize("strength", [-1, True, float("inf"), "x"])
def test_options_are_checked(nets, strength):
    with pytest.raises(ModelError, match="strength= is a number of at least 0"):
        rankers.scores(run_of(nets), "slimming", strength=strength)
