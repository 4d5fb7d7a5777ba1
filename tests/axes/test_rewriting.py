"""Literal sizes in the user's own code: found, proven, followed; refused where that is not sure."""

import copy
import functools
import gc
import json
import random
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import MethodType

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import nestling
from nestling import testing
from nestling.errors import FileError, ModelError
from nestling.header import space_from_json, space_to_json


class LeNet(nn.Module):
    """The classic: the flattened size is a number in the code."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 6, 5, padding=2)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 16, 5)
        self.hidden = nn.Linear(400, 48)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(48, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.first(x))), 2)
        x = F.max_pool2d(F.relu(self.second(x)), 2).view(-1, 16 * 5 * 5)
        return self.last(self.drop(F.relu(self.hidden(x))))


class Attention(nn.Module):
    """Heads, head size and width are numbers, in views, factories and slices."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(32, 96)
        self.out = nn.Linear(32, 32)

    def split(self, x):
        return x.view(x.shape[0], -1, 3, 8, 4).permute(2, 0, 3, 1, 4)

    def forward(self, x, mask=None, *, causal=False):
        q, k, v = self.split(self.qkv(x))
        weights = (q @ k.transpose(-1, -2) / 2).softmax(-1)
        if mask is not None:
            weights = weights + mask
        start = torch.zeros(x.shape[0], 8, 1, 4)
        mixed = (weights @ v + start).transpose(1, 2).reshape(x.shape[0], x.shape[1], 32)
        return self.out(F.dropout(mixed[..., :32], 0.1, training=self.training))


class Encoder(nn.Module):
    def __init__(self, layer=Attention, layers=2):
        super().__init__()
        self.embed = nn.Linear(7, 32)
        self.layers = nn.ModuleList(layer() for _ in range(layers))
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x.mean(1))


def encoded(forward):
    """An encoder whose attention runs another forward."""
    return Encoder(type("Attention", (Attention,), {"forward": forward}))


SEQUENCE = torch.randn(8, 5, 7)  # as many examples as heads
NETS = {"lenet": (LeNet, torch.randn(2, 1, 28, 28)), "attention": (Encoder, SEQUENCE)}


@pytest.mark.parametrize("name", NETS)
def test_literals_follow_the_axes(name):
    torch.manual_seed(0)
    build, x = NETS[name]
    net = nestling.Supernet(build(), x)
    assert net.space.rewrites
    assert net.space.elastic_share() > 0.99
    assert {row.reason.split(":")[0] for row in net.space.frozen} == {
        "size of an input",
        "size of the model's output",
    } - ({"size of an input"} if name == "lenet" else set())
    assert any("holds sizes as numbers" in note for note in net.space.notes)
    testing.check_supernet(net, x)


def test_a_hand_cut_net_computes_the_same():
    net = nestling.Supernet(LeNet(), torch.randn(2, 1, 28, 28))
    x = torch.randn(3, 1, 28, 28)
    subnet = net.subnet({"second": 8, "hidden": 16}).eval()
    net.recalibrate(subnet, [x])
    whole = net.model.eval()
    whole.norm.load_state_dict(subnet.norm.state_dict())
    y = F.max_pool2d(F.relu(whole.norm(whole.first(x))), 2)
    y = F.max_pool2d(F.relu(F.conv2d(y, whole.second.weight[:8], whole.second.bias[:8])), 2)
    y = y.reshape(3, 8 * 5 * 5)
    y = F.relu(F.linear(y, whole.hidden.weight[:16, :200], whole.hidden.bias[:16]))
    y = F.linear(y, whole.last.weight[:, :16], whole.last.bias)
    torch.testing.assert_close(subnet(x), y)


def test_modes_hooks_and_statistics_are_the_modules_own():
    torch.manual_seed(0)
    net = nestling.Supernet(LeNet(), torch.randn(2, 1, 28, 28))
    subnet = net.subnet({"second": 8})
    seen = []
    subnet.second.register_forward_hook(lambda *given: seen.append(given[-1].shape[1]))
    x = torch.randn(4, 1, 28, 28)
    before = subnet.norm.running_mean.clone()
    one, two = subnet.train()(x), subnet(x)
    assert not torch.equal(one, two), "dropout is off in training mode"
    assert not torch.equal(before, subnet.norm.running_mean)
    assert torch.equal(subnet.eval()(x), subnet(x))
    assert seen == [8] * 4
    fresh = net.recalibrate(net.subnet({"second": 8}), [x])
    torch.testing.assert_close(
        fresh.norm.running_mean, net.model.first(x).mean((0, 2, 3)), rtol=1e-4, atol=1e-5
    )


def test_the_functional_dropout_of_the_code_follows_the_mode():
    net = nestling.Supernet(Encoder(), SEQUENCE)
    subnet = net.subnet({name: axis.counts[0] for name, axis in net.space.axes.items()})
    assert torch.equal(subnet.eval()(SEQUENCE), subnet(SEQUENCE))
    assert not torch.equal(subnet.train()(SEQUENCE), subnet(SEQUENCE))


def test_copies_and_compiled_subnets_compute_the_same():
    net = nestling.Supernet(Encoder(), SEQUENCE)
    subnet = net.subnet({name: axis.counts[0] for name, axis in net.space.axes.items()}).eval()
    expected = subnet(SEQUENCE)
    packed = nestling.pack(subnet)
    for twin in (
        packed,
        copy.deepcopy(packed),
        torch.compile(packed, backend="aot_eager", fullgraph=True),
    ):
        torch.testing.assert_close(twin(SEQUENCE), expected)
    assert type(packed.layers[0]) is Attention
    assert packed.layers[0].forward.module() is packed.layers[0], "a copy runs other weights"
    with torch.no_grad():
        packed.layers[0].out.weight.zero_()
    assert not torch.equal(packed(SEQUENCE), expected)
    assert torch.equal(subnet(SEQUENCE), expected)


def test_a_packed_copy_survives_torch_save(tmp_path):
    net = nestling.Supernet(LeNet(), torch.randn(2, 1, 28, 28))
    packed = nestling.pack(net.subnet({"second": 8})).eval()
    torch.save(packed, tmp_path / "net.pt")
    again = torch.load(tmp_path / "net.pt", weights_only=False)
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(again(x), packed(x))


def test_the_header_keeps_them():
    space = nestling.Supernet(Encoder(), SEQUENCE).space
    again = space_from_json(json.loads(json.dumps(space_to_json(space))))
    assert tuple(again.rewrites) == tuple(space.rewrites) != ()


def test_another_code_than_when_it_was_proven_is_refused():
    first = nestling.Supernet(LeNet(), torch.randn(2, 1, 28, 28))

    class Changed(LeNet):
        def forward(self, x):
            x = F.max_pool2d(F.relu(self.norm(self.first(x))), 2)
            x = F.max_pool2d(F.relu(self.second(x)), 2).flatten(1)
            return self.last(self.drop(F.relu(self.hidden(x))))

    net = nestling.Supernet.restore(
        Changed(), first.space, first.orders, first.private, first.signature
    )
    with pytest.raises(ModelError, match="is not the one that the supernet was made from"):
        net.subnet({"second": 8})


def test_inputs_states_and_modes_stay_those_of_the_code():
    """Nothing is traced: other inputs and modes have the effect that they always had."""
    net = nestling.Supernet(Encoder(), SEQUENCE)
    subnet = net.subnet({name: axis.counts[0] for name, axis in net.space.axes.items()}).eval()
    layer = subnet.layers[0]
    x = torch.randn(2, 5, layer.qkv.in_features)
    plain = layer(x, mask=None, causal=False)
    assert torch.equal(layer(x, mask=torch.zeros(5, 5)), plain)
    assert not torch.equal(layer(x, mask=torch.rand(5, 5)), plain)


def test_threads_that_make_subnets_disturb_no_other():
    net = nestling.Supernet(Encoder(), SEQUENCE)
    other = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    spec = {name: axis.counts[0] for name, axis in net.space.axes.items()}
    call = nn.Module.__call__
    with ThreadPoolExecutor(3) as pool:
        made = [pool.submit(net.subnet, spec) for _ in range(20)]
        ran = [pool.submit(other, torch.zeros(1, 4)) for _ in range(200)]
        outputs = [future.result().eval()(SEQUENCE) for future in made]
        assert all(future.result().shape == (1, 4) for future in ran)
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    assert nn.Module.__call__ is call


def test_a_subnet_goes_when_nothing_holds_it():
    net = nestling.Supernet(LeNet(), torch.randn(2, 1, 28, 28))
    subnet = net.subnet({"second": 8})
    gone = weakref.ref(subnet)
    gc.collect()
    gc.disable()
    try:
        del subnet
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("strict", [True, False])
def test_a_packed_subnet_is_exported(strict):
    net = nestling.Supernet(LeNet(), torch.randn(2, 1, 28, 28))
    packed = nestling.pack(net.subnet({"second": 8})).eval()
    x = torch.randn(2, 1, 28, 28)
    exported = torch.export.export(packed, (x,), strict=strict).module()
    torch.testing.assert_close(exported(x), packed(x))


def test_a_file_keeps_them_and_refuses_other_code(tmp_path):
    x = torch.randn(2, 1, 28, 28)
    net = nestling.Supernet(LeNet(), x)
    data = [(x, torch.zeros(2).long())]
    menu = nestling.make_menu(net, [{"second": 8}], data, calibrate=data, measure=False)
    path = menu.save(tmp_path / "net.nest")
    name = menu.entries[0].name
    loaded = nestling.load(path, model=LeNet())
    torch.testing.assert_close(loaded.subnet(name)(x), menu.module(name)(x))

    class Changed(LeNet):
        def forward(self, x):
            x = F.max_pool2d(F.relu(self.norm(self.first(x))), 2)
            x = F.max_pool2d(F.relu(self.second(x)), 2).flatten(1)
            return self.last(self.drop(F.relu(self.hidden(x))))

    with pytest.raises(FileError, match="is not the one that the supernet was made from"):
        nestling.load(path, model=Changed())


def scaled(forward):
    @functools.wraps(forward)
    def wrapper(self, x):
        return 2 * forward(self, x)

    return wrapper


decorated = scaled(Attention.forward)


def writes(self, x):
    self.last = x.shape
    self.seen = [*getattr(self, "seen", ()), x.shape[-1]][-3:]
    mixed = self.split(self.qkv(x)).prod(0).transpose(1, 2)
    return self.out(mixed.reshape(x.shape[0], x.shape[1], 32))


def draws(self, x):
    if self.training and random.random() + torch.rand(1).item() < 0.5:
        return x
    y = self.qkv(x).view(x.shape[0], -1, 3, 8, 4)[:, :, 0]
    return self.out(y.reshape(-1, x.shape[1], 32))


def branches(self, x):
    scale = 1.0 if x.abs().sum() > 0 else 0.5
    y = self.qkv(x).view(x.shape[0], -1, 3, 8, 4)[:, :, 0]
    return self.out(scale * y.reshape(-1, x.shape[1], 32))


def named(self, x):
    heads, size = 8, 4
    y = self.qkv(x).unflatten(-1, (3, heads, size))[:, :, 0]
    return self.out(y.flatten(2))


def sliced(self, x):
    q, k, v = self.qkv(x)[..., :32], self.qkv(x)[..., 32:64], self.qkv(x)[..., 64:]
    return self.out(torch.tanh(q) * k + v)


def parted(self, x):
    q, k, v = self.qkv(x).split(32, dim=-1)
    q, k, v = (part.reshape(len(x), -1, 8, 4).transpose(1, 2) for part in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v)
    return self.out(mixed.transpose(1, 2).reshape(len(x), -1, 32))


@pytest.mark.parametrize("forward", [writes, draws, branches, named, sliced])
def test_code_of_every_kind_keeps_doing_what_it_does(forward):
    state = random.getstate()
    net = nestling.Supernet(encoded(forward), SEQUENCE)
    assert random.getstate() == state
    assert net.space.rewrites
    assert net.space.elastic_share() > 0.99
    testing.check_full(net, SEQUENCE)
    testing.check_order(net, SEQUENCE)
    testing.check_masked(net, SEQUENCE)


def test_random_choices_of_training_stay_random():
    net = nestling.Supernet(encoded(draws), SEQUENCE)
    subnet = net.subnet({name: axis.counts[0] for name, axis in net.space.axes.items()}).train()
    found = {tuple(subnet(SEQUENCE).flatten().tolist()) for _ in range(30)}
    assert len(found) > 1


@pytest.mark.parametrize("forward", [decorated, parted])
def test_code_that_is_out_of_reach_is_left_alone(forward):
    """Numbers in other functions: then axes are frozen, with the reason; what remains is right."""
    net = nestling.Supernet(encoded(forward), SEQUENCE)
    assert any("the code needs the full size" in row.reason for row in net.space.frozen)
    testing.check_supernet(net, SEQUENCE)


def test_a_module_with_a_forward_of_its_own():
    model = Encoder(layers=1)
    own = model.layers[0]
    own.forward = MethodType(lambda self, x: 2 * Attention.forward(self, x), own)
    net = nestling.Supernet(model, SEQUENCE)
    assert "forward" in vars(model.layers[0])
    testing.check_supernet(net, SEQUENCE)


def test_a_packed_subnet_is_a_model_again():
    net = nestling.Supernet(LeNet(), torch.randn(2, 1, 28, 28))
    packed = nestling.pack(net.subnet({"second": 8}))
    again = nestling.Supernet(packed, torch.randn(2, 1, 28, 28))
    testing.check_supernet(again, torch.randn(2, 1, 28, 28))


def test_a_module_that_is_called_twice():
    class Twice(Encoder):
        def forward(self, x):
            x = self.embed(x)
            x = x + self.layers[0](x)
            return self.head((x + self.layers[0](x)).mean(1))

    net = nestling.Supernet(Twice(layers=1), SEQUENCE)
    assert net.space.elastic_share() > 0.99
    testing.check_supernet(net, SEQUENCE)
