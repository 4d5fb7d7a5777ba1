"""A menu for engines, and what runs their batches."""

import pytest
import torch
from gated import Gate

import nestling
from nestling.costs.latency import Latency
from nestling.menu import replace


@pytest.fixture(scope="module")
def model():
    """A menu of three with made-up figures: 2, 4 and 8 ms for one example, 3 times that for 8."""
    torch.manual_seed(0)
    net = nestling.Supernet(nestling.models.mlp(6, (32,), norm=False), torch.randn(1, 6))
    specs = [net.space.spec(width=width) for width in (0.5, 0.25)]
    menu = nestling.make_menu(net, specs, measure=False)
    entries = tuple(
        replace(entry, accuracy=accuracy)
        for entry, accuracy in zip(menu, (0.9, 0.8, 0.7), strict=True)
    )
    profile = menu.profile
    for batch, times in ((1, 1.0), (8, 3.0)):
        table = {
            entry.name: Latency(ms * times, ms * times, ms * times, 9)
            for entry, ms in zip(menu, (8.0, 4.0, 2.0), strict=True)
        }
        profile = profile.with_table(menu.key(batch), table)
    return nestling.LoadedModel(replace(menu, entries=entries, profile=profile))


@pytest.fixture
def gate(model):
    return Gate(model)
