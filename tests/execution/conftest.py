"""Nets of every axis kind, dense and residual ones among them, in float64."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nestling


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


SMALL = load("nestling_nets_of_rankers", Path(__file__).parents[1] / "rankers" / "conftest.py")


class Dense(nn.Module):
    """A dense block: each layer reads the concatenation of all before it."""

    def __init__(self, growth=4, layers=3):
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        widths = [6 + growth * n for n in range(layers)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.convs = nn.ModuleList(
            nn.Conv2d(width, growth, 3, padding=1, bias=False) for width in widths
        )
        self.norm = nn.BatchNorm2d(widths[-1] + growth)
        self.head = nn.Linear(widths[-1] + growth, 3)

    def forward(self, x):
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.head(F.relu(self.norm(x)).mean((2, 3)))


class Block(nn.Module):
    """Two residual blocks with batch norm, coupled by their sums."""

    def __init__(self, width=6):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.first = nn.BatchNorm2d(width)
        self.convs = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(4)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(4))
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = F.relu(self.first(self.stem(x)))
        for place in (0, 2):
            inner = F.relu(self.norms[place](self.convs[place](x)))
            x = F.relu(x + self.norms[place + 1](self.convs[place + 1](inner)))
        return self.head(x.mean((2, 3)))


OWN = {"dense": Dense, "block": Block}
NETS = (*SMALL.NETS, *OWN)


def made(name, dtype=torch.float64):
    """Return a supernet and its batches."""
    if name in OWN:
        torch.manual_seed(3)
        images, labels = SMALL.pictures()
        net = nestling.Supernet(OWN[name](), images[:2], step=1)
        batches = list(zip(images.split(8), labels.split(8), strict=True))
    else:
        net, batches = SMALL.make(name)
    net.to(dtype)
    return net, [(x.to(dtype) if x.is_floating_point() else x, y) for x, y in batches]


@pytest.fixture
def nets():
    return made


@pytest.fixture(params=NETS)
def name(request):
    """The name of each of the nets."""
    return request.param
