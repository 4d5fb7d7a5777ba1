"""Taylor and Fisher against finite differences, and on units that are worth nothing."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nestling
from nestling import ModelError, rankers
from nestling.training import Run

STEP = 1e-6
MEASURES = {"taylor": np.abs, "fisher": np.square}


def differences(model, batches, loss):
    """Return per batch and weight what the loss changes by with it, over the change."""
    rows = []
    for inputs, targets in batches:
        row = {}
        for name, weight in model.named_parameters():
            flat, slopes = weight.data.view(-1), []
            for place in range(flat.numel()):
                sides = []
                for sign in (1, -2):
                    flat[place] += sign * STEP
                    sides.append(loss(model(inputs), targets).item())
                flat[place] += STEP
                slopes.append((sides[0] - sides[1]) / (2 * STEP))
            row[name] = np.array(slopes).reshape(weight.shape)
        rows.append(row)
    return rows


@pytest.mark.parametrize("by", MEASURES)
@pytest.mark.parametrize("loss", [None, lambda out, y: F.multi_margin_loss(out, y)])
def test_against_finite_differences(nets, by, loss):
    net, batches = nets("joined")
    net.to(torch.float64)
    batches = [(inputs.double(), targets) for inputs, targets in batches]
    found = rankers.scores(Run(net, batches, 0, loss=loss), by)
    rows = differences(net.model.eval(), batches, loss or F.cross_entropy)
    weights = {name: p.detach().numpy() for name, p in net.named_parameters()}
    total = {n: sum(MEASURES[by](w * row[n]) for row in rows) for n, w in weights.items()}
    expected = {
        "left": total["left.weight"].sum(1),
        "right": total["right.weight"].sum(1),
        "gated": total["gated.weight"].reshape(2, 8, 12).sum((0, 2)),
    }
    for axis, mine in expected.items():
        np.testing.assert_allclose(found[axis].numpy(), mine / mine.mean(), rtol=1e-4)


@pytest.mark.parametrize("by", MEASURES)
def test_number_of_batches(nets, by):
    net, batches = nets("joined")
    some = rankers.scores(Run(net, batches, 0), by, batches=1)
    first = rankers.scores(Run(net, batches[:1], 0), by)
    every = rankers.scores(Run(net, batches, 0), by)
    assert torch.equal(some["left"], first["left"])
    assert not torch.allclose(some["left"], every["left"])
    with pytest.raises(ModelError, match="at least 1, but it is 0"):
        nestling.rank(net, by, batches, batches=0)


def test_gradients_that_are_not_finite_are_refused(nets):
    net, batches = nets("joined")
    with pytest.raises(ModelError, match="must be finite"):
        nestling.rank(net, "taylor", batches, loss=lambda out, y: out.sum() * math.inf)


class Net(nn.Module):
    """A convolution with batch norm, a hidden layer and a classifier."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.hidden = nn.Linear(8, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        return self.head(F.relu(self.hidden(F.relu(self.norm(self.conv(x))).mean((2, 3)))))


@pytest.mark.parametrize("by", MEASURES)
def test_units_that_nothing_reads_come_last(by):
    torch.manual_seed(0)
    inputs, targets = torch.randn(16, 1, 8, 8), torch.randint(3, (16,))
    net = nestling.Supernet(Net(), inputs[:2], step=1)
    with torch.no_grad():  # of both layers, the second half of the units
        net.model.hidden.weight[:, 4:] = 0
        net.model.head.weight[:, 6:] = 0
    orders = nestling.rank(net, by, [(inputs, targets)])
    assert set(orders["conv"][4:]) == {4, 5, 6, 7}
    assert set(orders["hidden"][6:]) == set(range(6, 12))
    assert (
        nestling.rank(net, "l1")["hidden"][6:] != orders["hidden"][6:]
    )  # the weights tell nothing
