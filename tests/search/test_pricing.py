"""Measured latency as a cost."""

import pytest
import torch

import nestling
from nestling import ModelError, models, search
from nestling.search import conduct, greedy, measured_latency


@pytest.fixture(scope="module")
def wide():
    return nestling.Supernet(models.mlp(in_features=64, hidden=[512, 512]), torch.randn(2, 64))


@pytest.mark.parametrize("packed", [False, True])
def test_a_wider_net_is_slower(wide, packed):
    cost = measured_latency(wide, batch=64, packed=packed)
    small = wide.space.spec({name: axis.counts[0] for name, axis in wide.space.axes.items()})
    assert 0 < cost(small) < cost(wide.space.full)


def test_a_search_by_latency_meets_its_target(wide):
    cost = measured_latency(wide, batch=64, seconds=0.05)
    told = {}

    def kept(spec):
        told[spec] = cost(spec)
        return told[spec]

    make = greedy(wide.space, groups=4, targets=(0.6,))
    (found,) = conduct(make, wide, score=lambda spec: sum(spec.values()) / 2048, cost=kept)
    assert told[found.spec] <= 0.6 * told[wide.space.full]


def test_a_batch_is_a_number(wide):
    with pytest.raises(ModelError, match="batch="):
        measured_latency(wide, batch=0)


def test_costs_by_name(wide):
    assert {"bytes", "macs", "params"} < set(search.costs())
    assert search.costs()[-1] == "latency"
    assert "memory" not in search.costs()
    spec = wide.space.spec(width=0.5)
    for name in search.costs()[:-1]:
        counted = getattr(wide.space, name)
        assert search.cost_of(wide, name)(spec) == counted(spec) < counted(wide.space.full)
    assert 0 < search.cost_of(wide, "latency", 2)(spec) < 1000
    with pytest.raises(ModelError, match="unknown cost 'mac'; did you mean 'macs'"):
        search.cost_of(wide, "mac")
