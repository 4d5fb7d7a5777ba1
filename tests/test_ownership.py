"""Norm weights that a live subnet has of its own."""

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nestling
from nestling import SpecError, pack
from nestling.binding import binding
from nestling.costs.latency import Ratio
from nestling.menu import menu_of
from nestling.narrowing import Comparison, Narrowing
from nestling.ownership import own_norms, take
from nestling.weights import cloned, tensors_of

GATHERED = pytest.mark.parametrize("kind", ["ConvNet", "Dense"])  # norms are views, or gathered
NORMS = {"norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"}


@pytest.fixture
def net(small):
    return small.supernet()


def half(net):
    return net.space.spec(width=0.5)


def shaken(subnet, by=0.5):
    """Own norms that differ from the shared ones."""
    own = own_norms(subnet)
    with torch.no_grad():
        for parameter in own.values():
            parameter.add_(by * torch.rand_like(parameter))
    return own


def pictures(small):
    return small.pictures(8)[0]


def test_they_start_as_copies_of_the_shared_ones(net, small):
    subnet, other = net.subnet(half(net)).train(), net.subnet(half(net)).train()
    expected = other(pictures(small))
    own = own_norms(subnet)
    assert own.keys() == NORMS
    assert torch.equal(subnet(pictures(small)), expected)
    assert own_norms(subnet) == own  # done once
    assert dict(subnet.named_parameters())["norm1.weight"] is own["norm1.weight"]
    assert [n for n, _ in subnet.named_parameters()] == [n for n, _ in net.named_parameters()]
    shared = dict(net.named_parameters())
    for name, parameter in own.items():
        assert parameter.untyped_storage().data_ptr() != shared[name].untyped_storage().data_ptr()


def test_the_full_net_and_what_stands_alone_keep_theirs(net):
    full, alone = net.subnet(net.space.full), pack(net.subnet(half(net)))
    before = list(alone.parameters())
    assert own_norms(full) == own_norms(alone) == {}
    assert all(one is other for one, other in zip(before, alone.parameters(), strict=True))
    shared = net.model.norm1.weight
    assert full.norm1.weight.data_ptr() == shared.data_ptr()


@GATHERED
def test_gradients_are_those_of_a_net_of_its_own(small, kind):
    net = small.supernet(small.seeded(getattr(small, kind)))
    images, labels = small.pictures(8)
    subnet = net.subnet(half(net)).train()
    cuts = {name: link.cut for name, link in binding(subnet).parameters.items()}
    own = shaken(subnet)
    assert any(cuts[name].gathered for name in own) == (kind == "Dense")
    assert len(own) == 2 * sum(isinstance(m, nn.BatchNorm2d) for m in subnet.modules())
    alone = pack(subnet).train()
    F.cross_entropy(subnet(images), labels).backward()
    F.cross_entropy(alone(images), labels).backward()
    shared = dict(net.named_parameters())
    for name, parameter in alone.named_parameters():
        if name in own:
            torch.testing.assert_close(own[name].grad, parameter.grad)
            assert shared[name].grad is None
        else:
            whole = torch.zeros_like(shared[name])
            cuts[name].put(whole, parameter.grad)
            torch.testing.assert_close(shared[name].grad, whole)


@GATHERED
def test_shared_weights_still_follow_and_norms_do_not(small, kind):
    net = small.supernet(small.seeded(getattr(small, kind)))
    subnet, plain = net.subnet(half(net)).train(), net.subnet(half(net)).train()
    own = cloned(shaken(subnet))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1)
    subnet(pictures(small)), plain(pictures(small))
    shared = dict(plain.named_parameters())
    for name, parameter in subnet.named_parameters():
        expected = own[name] if name in own else shared[name]
        assert torch.equal(parameter, expected), name
    assert own.keys() & dict(net.named_parameters()).keys() == own.keys()


def test_one_step_of_an_optimiser_moves_both(net, small):
    images, labels = small.pictures(8)
    subnet = net.subnet(half(net)).train()
    own = own_norms(subnet)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    optimizer.add_param_group({"params": list(own.values())})
    before, own_before = cloned(dict(net.named_parameters())), cloned(own)
    F.cross_entropy(subnet(images), labels).backward()
    optimizer.step()
    after = dict(net.named_parameters())
    assert not torch.equal(before["conv1.weight"][:4], after["conv1.weight"][:4])
    assert torch.equal(before["conv1.weight"][4:], after["conv1.weight"][4:])
    for name in NORMS:
        assert torch.equal(before[name], after[name])
        assert not torch.equal(own_before[name], own[name])
    optimizer.zero_grad()
    assert all(p.grad is None for p in own.values())


def test_what_clears_gradients(net, small):
    images, labels = small.pictures(8)
    subnet = net.subnet(half(net)).train()
    own = own_norms(subnet)

    def backward():
        F.cross_entropy(subnet(images), labels).backward()

    backward()
    first = cloned({name: p.grad for name, p in own.items()})
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())
    backward()
    for name, parameter in own.items():  # they are not the supernet's
        torch.testing.assert_close(parameter.grad, 2 * first[name])
    subnet.zero_grad(set_to_none=False)
    assert not any(p.grad.any() for p in own.values())
    assert not net.model.conv1.weight.grad.any()
    backward()
    for name, parameter in own.items():
        torch.testing.assert_close(parameter.grad, first[name])
    subnet.zero_grad()
    assert all(p.grad is None for p in subnet.parameters())
    backward()
    for name, parameter in own.items():
        torch.testing.assert_close(parameter.grad, first[name])


@GATHERED
@pytest.mark.parametrize(
    "change", [{"dtype": torch.float64}, {"memory_format": torch.channels_last}], ids=str
)
def test_a_move_takes_them_along(small, change, kind):
    net = small.supernet(small.seeded(getattr(small, kind)))
    images, labels = small.pictures(8)
    subnet = net.subnet(half(net)).train()
    own = shaken(subnet)
    F.cross_entropy(subnet(images), labels).backward()
    values, gradients = cloned(own), cloned({name: p.grad for name, p in own.items()})
    net.to(**change)
    dtype = change.get("dtype", torch.float32)
    for name, parameter in own.items():
        assert dict(subnet.named_parameters())[name] is parameter
        assert parameter.dtype == parameter.grad.dtype == dtype
        assert torch.equal(parameter, values[name].to(dtype))
        assert torch.equal(parameter.grad, gradients[name].to(dtype))
    alone = pack(subnet)
    for module in (subnet, alone):
        module.train()
        F.cross_entropy(module(images.to(**change)), labels).backward()
    for name, parameter in own.items():
        torch.testing.assert_close(
            parameter.grad, gradients[name].to(dtype) + alone.get_parameter(name).grad,
            rtol=1e-4, atol=1e-5,
        )  # fmt: skip


def test_copies_and_states_hold_them(net, small):
    subnet = net.subnet(half(net)).eval()
    own = shaken(subnet)
    net.recalibrate(subnet, small.batches())
    expected = subnet(pictures(small))
    for twin in (pack(subnet), copy.deepcopy(subnet)):
        assert torch.equal(twin(pictures(small)), expected)
        assert torch.equal(twin.norm1.weight, own["norm1.weight"])
        assert twin.norm1.weight is not own["norm1.weight"]
    state = subnet.state_dict()
    assert torch.equal(state["norm2.bias"], own["norm2.bias"])
    other = net.subnet(half(net)).eval()
    own_norms(other)
    shared = cloned(tensors_of(net.model))
    other.load_state_dict(state)
    assert torch.equal(other(pictures(small)), expected)
    for name in NORMS:
        assert torch.equal(shared[name], tensors_of(net.model)[name])
    assert copy.deepcopy(net).subnet(half(net)).norm1.weight.equal(net.model.norm1.weight[:4])


@GATHERED
@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pack, nn.DataParallel])
def test_absorbing_a_packed_copy_leaves_them_to_the_subnet(small, kind, again):
    net = small.supernet(small.seeded(getattr(small, kind)))
    subnet = net.subnet(half(net))
    own = shaken(subnet)
    packed = pack(subnet).eval()
    with torch.no_grad():
        for parameter in packed.parameters():  # as if it had been tuned
            parameter.mul_(1.5)
    before = cloned(dict(net.named_parameters()))
    absorbed = net.absorb(half(net), again(packed)).eval()
    assert torch.equal(absorbed(pictures(small)), packed(pictures(small)))
    assert binding(absorbed).own.keys() == own.keys()
    for name, tuned in packed.named_parameters():
        assert torch.equal(absorbed.get_parameter(name), tuned)
    for name, parameter in net.named_parameters():
        assert torch.equal(before[name], parameter) == (name in own), name
    absorbed.train()(pictures(small)).sum().backward()
    shared = dict(net.named_parameters())
    assert {name for name in shared if shared[name].grad is None} == own.keys()


def test_what_knows_nothing_of_own_norms_is_absorbed_whole(net, small):
    subnet = net.subnet(half(net))
    own = shaken(subnet)
    plain = pack(net.subnet(half(net)))
    plain.load_state_dict(subnet.state_dict())
    absorbed = net.absorb(half(net), plain)
    assert torch.equal(net.model.norm1.weight[:4], own["norm1.weight"])
    assert not binding(absorbed).own


def test_after_a_reorder_they_refuse_to_run(net, small):
    subnet = net.subnet(half(net))
    own_norms(subnet)
    net.reorder(small.shuffled(net.space))
    for call in (lambda: subnet(pictures(small)), lambda: pack(subnet)):
        with pytest.raises(SpecError, match="reordered"):
            call()


class Shared(nn.Module):
    """Two norms of one weight, a norm used twice, and one that a library might have written."""

    class RmsNorm(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.weight = nn.Parameter(torch.rand(width) + 0.5)

        def forward(self, x):
            return self.weight * x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()

    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(6, 8)
        self.first, self.second = nn.LayerNorm(8), nn.LayerNorm(8)
        self.second.weight = self.first.weight
        self.again = self.first
        self.last = self.RmsNorm(8)
        self.leave = nn.Linear(8, 3)

    def forward(self, x):
        x = self.second(self.first(self.enter(x)).relu())
        return self.leave(self.last(self.again(x)))


def test_tied_norms_and_those_of_libraries(tmp_path):
    torch.manual_seed(0)
    net = nestling.Supernet(Shared(), torch.randn(2, 6), step=2)
    subnet = net.subnet(half(net))
    own = shaken(subnet)
    assert own.keys() == {"first.weight", "first.bias", "second.bias", "last.weight"}
    assert subnet.second.weight is subnet.first.weight is subnet.again.weight
    alone = pack(subnet)
    x = torch.randn(4, 6)
    subnet(x).square().sum().backward(), alone(x).square().sum().backward()
    for name, parameter in own.items():
        torch.testing.assert_close(parameter.grad, alone.get_parameter(name).grad)
    menu = menu_of(net, {"half": (half(net), subnet)}, None, calibrate=None, measure=False)
    loaded = nestling.load(menu.save(tmp_path / "own.nest"), model=Shared())
    assert torch.equal(loaded(x, subnet="half"), alone(x))


def test_parameters_keep_their_class_and_whether_they_train(net):
    net.model.norm1.weight.requires_grad_(False)
    net.model.norm2.bias.mark = "kept"
    subnet = net.subnet(half(net))
    own = own_norms(subnet)
    assert [name for name, p in own.items() if not p.requires_grad] == ["norm1.weight"]
    assert own["norm2.bias"].mark == "kept"
    take(subnet, {"conv1.weight": torch.zeros(4, 1, 3, 3, dtype=torch.float64)})
    assert subnet.conv1.weight.dtype == torch.float32
    assert not subnet.conv1.weight.any()
    assert net.model.conv1.weight.any()


@pytest.mark.filterwarnings("ignore:the config that is saved")
def test_a_library_saves_them_also_when_the_subnet_is_gone(small, tmp_path):
    class Saved(small.ConvNet):
        def save_pretrained(self, path):
            torch.save(self.state_dict(), path)

    net = small.supernet(small.seeded(Saved))
    subnet = net.subnet(half(net))
    shaken(subnet)
    expected, save = cloned(subnet.state_dict()), subnet.save_pretrained
    save(tmp_path / "one")
    del subnet
    gc.collect()
    save(tmp_path / "two")
    for name in ("one", "two"):
        found = torch.load(tmp_path / name)
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_no_norm_no_weight(small):
    net = nestling.Supernet(small.seeded(small.Mlp), torch.randn(2, 6), step=2)
    assert own_norms(net.subnet(half(net))) == {}


def test_they_are_gone_with_the_subnet(net):
    own = own_norms(net.subnet(half(net)))
    gc.collect()
    net.to(torch.float64)  # reaches live subnets alone
    assert own["norm1.weight"].dtype == torch.float32


# -- in a menu --------------------------------------------------------------------------------


@pytest.fixture(params=["ConvNet", "Dense"])
def offer(request, small):
    """A menu of the full net and of two subnets with norms of their own; pictures to run it on."""
    net = small.supernet(small.seeded(getattr(small, request.param)))
    specs = {"full": net.space.full, "half": half(net), "least": net.space.spec(width=0.25)}
    subnets = {name: (spec, net.subnet(spec)) for name, spec in specs.items()}
    for _, subnet in subnets.values():
        shaken(subnet)
    menu = menu_of(net, subnets, small.batches(16), calibrate=small.batches(), measure=False)
    return menu, subnets


def test_a_menu_holds_them(offer, small):
    menu, subnets = offer
    images = pictures(small)
    for name, (_, subnet) in subnets.items():
        expected = subnet.eval()(images)
        assert torch.equal(menu.module(name)(images), expected)
        assert torch.equal(menu.module(name, packed=True)(images), expected)
        own = menu[name].private.keys() & dict(subnet.named_parameters()).keys()
        assert own == set(binding(subnet).own)
    assert menu["full"].private == {}
    assert copy.deepcopy(menu).identity() == menu.identity()
    with torch.no_grad():
        next(iter(binding(subnets["half"][1]).own.values())).add_(1)
    assert torch.equal(menu.module("least")(images), subnets["least"][1](images))


@pytest.mark.parametrize("packed", [False, True], ids=["live", "packed"])
def test_a_menu_file_brings_them_back_bit_for_bit(offer, small, tmp_path, packed):
    menu, subnets = offer
    path = menu.save(tmp_path / "own.nest")
    model = type(menu.net.model)()
    loaded = nestling.load(path, model=model, packed=packed)
    assert loaded.menu.identity() == menu.identity()
    for name, (_, subnet) in subnets.items():
        assert torch.equal(loaded(pictures(small), subnet=name), subnet.eval()(pictures(small)))
        one, other = menu[name].private, loaded.menu[name].private
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    again = loaded.menu.save(tmp_path / "again.nest")
    assert again.read_bytes() == path.read_bytes()


def test_a_subnet_with_norms_of_its_own_gives_way_to_none(net, small):
    """A larger one without them was never trained."""
    subnets = {"full": (net.space.full, net.subnet(net.space.full))}
    for name, width in (("half", 0.5), ("least", 0.25)):
        spec = net.space.spec(width=width)
        subnets[name] = spec, net.subnet(spec)
    shaken(subnets["half"][1])
    ratio = Ratio(1.0, 0.99, 1.01, 9)
    slow = [
        Comparison(dict(spec), dict(net.space.full), 0.5, ratio) for spec, _ in subnets.values()
    ]
    menu = menu_of(
        net, subnets, None, calibrate=small.batches(), measure=False,
        narrowing=Narrowing(specs=tuple(slow[1:])),
    )  # fmt: skip
    assert [entry.name for entry in menu] == ["full", "half"]
    assert "norm1.weight" in menu["half"].private
