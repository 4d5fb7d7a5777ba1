"""L1, L2, norm scales and random orders against numbers worked out by hand with NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

import nestling
from nestling import rankers
from nestling.training import Run

# Per net and axis: for each weight that makes its units, its shape and the dimensions to sum over.
LAYERS = {
    "residual": {
        "stem": [("stem", (8, -1), 1), ("two", (8, -1), 1)],
        "one": [("one", (6, -1), 1)],
        "wide": [("wide", (12, -1), 1), ("shortcut", (12, -1), 1)],
    },
    "grouped": {
        "stem.paths": [("stem", (4, -1), 1), ("grouped", (4, -1), 1)],
        "stem": [("stem", (4, 4, -1), (0, 2))],
        "grouped": [("grouped", (4, 4, -1), (0, 2))],
        "point": [("point", (8, -1), 1)],
        "up": [("up", (8, 6, -1), (0, 2))],
    },
    "joined": {
        "left": [("left", (8, 5), 1)],
        "right": [("right", (4, 5), 1)],
        "gated": [("gated", (2, 8, 12), (0, 2))],
    },
    "attention": {
        "embedding": [("embedding", (7, 8), 0), ("out", (8, -1), 1), ("down", (8, -1), 1)],
        "qkv.heads": [("qkv", (3, 4, 3, 8), (0, 2, 3))],
        "qkv.head_size": [("qkv", (3, 4, 3, 8), (0, 1, 3))],
        "up": [("up", (8, 8), 1)],
    },
}
POWERS = {"l1": lambda total: total, "l2": np.sqrt}


@pytest.mark.parametrize("by", POWERS)
@pytest.mark.parametrize("name", LAYERS)
def test_norms(nets, name, by):
    net, _ = nets(name)
    found = rankers.scores(Run(net, [], 0), by)
    assert set(found) == set(LAYERS[name])
    for axis, layers in LAYERS[name].items():
        parts = []
        for layer, shape, dims in layers:
            weight = net.state_dict()[f"{layer}.weight"].double().numpy().reshape(shape)
            norm = POWERS[by]((np.abs(weight) if by == "l1" else weight**2).sum(dims))
            parts.append(norm / norm.mean())
        np.testing.assert_allclose(found[axis].numpy(), np.mean(parts, 0), rtol=1e-6)


class Normed(nn.Module):
    """Batch norm on one axis, two norms on the other, none on the third; its own class of norm."""

    class RootNorm(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(size))

        def forward(self, x):
            return x / (x.square().mean(1, keepdim=True) + 1e-5).sqrt() * self.weight[:, None, None]

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(1, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.two = nn.Conv2d(6, 4, 3)
        self.other = self.RootNorm(4)
        self.again = nn.GroupNorm(1, 4)
        self.three = nn.Linear(4, 5)
        self.head = nn.Linear(5, 3)
        for norm in (self.norm, self.again):
            nn.init.normal_(norm.weight)

    def forward(self, x):
        x = self.two(torch.relu(self.norm(self.one(x))))
        x = torch.relu(self.again(torch.relu(self.other(x))))
        return self.head(torch.relu(self.three(x.mean((2, 3)))))


def test_scales():
    torch.manual_seed(0)
    net = nestling.Supernet(Normed(), torch.randn(2, 1, 8, 8), step=1)
    found = rankers.scores(Run(net, [], 0), "scale")
    state = {name: tensor.double().abs().numpy() for name, tensor in net.state_dict().items()}
    mine = {
        "one": [state["norm.weight"]],
        "two": [state["other.weight"], state["again.weight"]],
        "three": [state["three.weight"].sum(1)],
    }
    assert set(found) == set(mine)
    for axis, parts in mine.items():
        expected = np.mean([part / part.mean() for part in parts], 0)
        np.testing.assert_allclose(found[axis].numpy(), expected, rtol=1e-6)


def test_random_orders_follow_from_the_seed(nets):
    net, _ = nets("grouped")
    first, again, other = (nestling.rank(net, "random", seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_random_orders_are_even(nets):
    """Every unit comes first about as often as the others."""
    net, _ = nets("joined")
    firsts = [nestling.rank(net, "random", seed=seed)["right"][0] for seed in range(200)]
    assert all(25 < firsts.count(unit) < 75 for unit in range(4))
