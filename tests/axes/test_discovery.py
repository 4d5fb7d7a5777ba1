"""Discovery: names, kinds, attributes, work and what is frozen."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import nestling
from nestling.axes.discovery import discover
from nestling.axes.structure import tensors_in
from nestling.extent import Along, Fixed, Product
from nestling.spec import Attribute


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.block = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16 * 16, 5)
        self.unused = nn.Linear(4, 4)

    def forward(self, x):
        x = self.stem(x)
        return self.head((x + self.block(x)).flatten(1))


def found(model: nn.Module, *args, **options):
    return discover(model.eval(), args, {}, **options)


def test_space_of_a_small_net():
    space = found(Small(), torch.randn(2, 3, 4, 4)).space
    assert list(space.axes) == ["stem.0"]
    assert space.axes["stem.0"].counts == (8, 16)
    assert space.layouts["head.weight"].extents == (
        Fixed(5),
        Product((Along("stem.0", 16), Fixed(16))),
    )
    assert space.layouts["stem.1.running_var"].extents == (Along("stem.0", 16),)
    assert not space.layouts["stem.1.running_var"].parameter
    assert space.layouts["stem.1.num_batches_tracked"].extents == ()


def test_attributes_of_torchs_layers_follow():
    attributes = found(Small(), torch.randn(2, 3, 4, 4)).space.attributes
    channels = Along("stem.0", 16)
    assert Attribute("stem.0", "out_channels", None, channels) in attributes
    assert Attribute("stem.1", "num_features", None, channels) in attributes
    assert Attribute("head", "in_features", None, Product((channels, Fixed(16)))) in attributes
    assert not [a for a in attributes if a.module == "unused"]


def test_frozen_dimensions_say_why():
    space = found(Small(), torch.randn(2, 3, 4, 4)).space
    reasons = {(row.parameter, row.dim): row.reason for row in space.frozen}
    assert reasons["stem.0.weight", 1] == "size of an input"
    assert reasons["head.weight", 0] == "size of the model's output"
    assert reasons["unused.weight", 0] == "not used in the forward run"
    assert ("stem.0.weight", 2) not in reasons  # nobody asks for kernel sizes


def test_work_is_for_one_example_whatever_the_batch():
    one = found(Small(), torch.randn(1, 3, 4, 4)).space
    many = found(Small(), torch.randn(8, 3, 4, 4)).space
    by_hand = 16 * 16 * 3 * 9 + 16 * 16 * 16 * 9 + 256 * 5
    assert one.macs(one.full) == many.macs(many.full) == by_hand


def test_step_for_all_axes_or_by_name():
    x = torch.randn(2, 3, 4, 4)
    assert found(Small(), x, step=5).space.axes["stem.0"].counts == (5, 10, 15, 16)
    assert found(Small(), x, step={"stem.0": 4}).space.axes["stem.0"].counts == (4, 8, 12, 16)


def test_outputs_that_are_not_needed_keep_no_size():
    class Both(Small):
        def forward(self, x):
            features = self.stem(x)
            return super().forward(x), features

    x = torch.randn(2, 3, 4, 4)
    assert not found(Both(), x).space.axes
    assert found(Both(), x, outputs=lambda out: out[0]).space.axes


def test_discovery_changes_nothing_of_the_model():
    model = Small().eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found(model, torch.randn(2, 3, 4, 4))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_forward_that_fails_leaves_no_hooks():
    model = Small().eval()
    with pytest.raises(RuntimeError):
        found(model, torch.randn(2, 4, 4, 4))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_tensors_are_found_in_odd_structures():
    @dataclass
    class Out:
        logits: object
        rest: object = None

    one, two = torch.zeros(1), torch.zeros(2)
    assert tensors_in({"a": [Out(one), None], "b": (3, {"c": Out(None, [two])})}) == [one, two]
    loop = Out(one)
    loop.rest = loop
    assert tensors_in(loop) == [one]
    assert tensors_in(None) == []


class Factored(nn.Module):
    """Two weights are multiplied once, for all examples; a query is repeated for each of them."""

    def __init__(self):
        super().__init__()
        self.u, self.v = nn.Parameter(torch.randn(32, 64)), nn.Parameter(torch.randn(64, 24))
        self.query = nn.Parameter(torch.randn(24))
        self.one, self.two = nn.Linear(24, 16), nn.Linear(16, 4)

    def forward(self, x):
        query = self.one(self.query.repeat(x.shape[0], 1))
        x = torch.nn.functional.linear(x, (self.u @ self.v).T)
        return self.two((self.one(x) + query).relu())


def test_work_does_not_depend_on_the_example_batch():
    by_hand = 32 * 64 * 24 + 32 * 24 + 2 * 24 * 16 + 16 * 4
    for batch in (1, 2, 8, 24, 64):
        space = found(Factored(), torch.randn(batch, 32)).space
        assert space.macs(space.full) == by_hand


class EightAtATime(Factored):
    def forward(self, x):
        return super().forward(x.view(8, 32))


def test_work_of_a_model_that_takes_one_batch_only():
    space = found(EightAtATime(), torch.randn(8, 32)).space
    assert space.macs(space.full) == 32 * 64 * 24 // 8 + 32 * 24 + 2 * 24 * 16 + 16 * 4


class TrainedToken(nn.Module):
    """A mask token and an auxiliary head that only training uses."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(6, 16)
        self.token = nn.Parameter(torch.randn(16))
        self.body = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
        self.helper = nn.Linear(32, 4)
        self.head = nn.Linear(16, 4)
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        x = self.stem(x)
        if self.training:
            x = torch.cat([x[:1], self.token.expand_as(x[1:])])
        hidden = self.body[1](self.body[0](x))
        scores = self.head(self.body[2](hidden))
        return (scores, self.helper(hidden)) if self.training else scores


def test_what_only_training_uses_goes_with_the_rest():
    model, x = TrainedToken().eval(), torch.randn(2, 6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    net = nestling.Supernet(model, x)
    assert set(net.space.axes) == {"stem", "body.0", "body.2"}
    subnet = net.subnet({"stem": 8, "body.0": 8}).train()
    assert subnet.token.shape == (8,)
    assert subnet.helper.weight.shape == (4, 8)
    scores, helped = subnet(x)
    assert scores.shape == helped.shape == (2, 4)
    assert {row.reason for row in net.space.frozen if row.parameter.startswith("unused")} == {
        "not used in the forward run"
    }
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not model.training
