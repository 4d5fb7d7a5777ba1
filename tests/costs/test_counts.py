"""Costs against counts that know nothing of the space."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import nestling
from nestling import costs, models


@pytest.fixture(scope="module", params=["conv", "mlp", "resnet20", "mobilenet_v2"])
def net(request, small):
    if request.param == "conv":
        return small.supernet()
    if request.param == "mlp":
        return nestling.Supernet(models.mlp(in_features=12, hidden=[16, 16]), torch.randn(2, 12))
    if request.param == "resnet20":
        return nestling.Supernet(models.resnet20(width=8), torch.randn(1, 3, 16, 16))
    return nestling.Supernet(models.mobilenet_v2(), torch.randn(1, 3, 32, 32))


def test_counts_equal_independent_ones(net):
    inputs, _ = net.signature.example(1, torch.device("cpu"))
    for spec in (net.space.uniform[0], net.space.uniform[-2], net.space.full):
        module = nestling.pack(net.subnet(spec)).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(*inputs)
        assert costs.macs(net.space, spec) == counter.get_total_flops() // 2
        assert costs.params(net.space, spec) == sum(p.numel() for p in module.parameters())
        tensors = [*module.parameters(), *module.buffers()]
        assert costs.bytes_(net.space, spec) == sum(t.numel() * t.element_size() for t in tensors)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_no_cost_falls_when_a_count_grows(net, data):
    axes = list(net.space.axes.values())
    counts = {axis.name: data.draw(st.sampled_from(axis.counts)) for axis in axes}
    axis = data.draw(st.sampled_from(axes))
    more = {**counts, axis.name: data.draw(st.sampled_from(axis.counts))}
    small, large = sorted(
        (net.space.spec(counts), net.space.spec(more)), key=lambda spec: spec[axis.name]
    )
    for cost in (costs.macs, costs.params, costs.bytes_):
        assert cost(net.space, small) <= cost(net.space, large)
