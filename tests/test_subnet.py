"""Subnets: views, gradients, gathers, copies. Each rule of the design's second idea."""

import contextlib
import copy
import gc
import io
import shutil
import threading
import time
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.utils import _pytree  # noqa: F401  (loaded before threads start)

from nestling import ModelError, SpecError, Supernet, models, pack
from nestling.binding import binding


class Mixed(nn.Module):
    """Views and gathered parameters (after the concatenation), a norm, a constant buffer."""

    def __init__(self):
        super().__init__()
        self.left = nn.Conv2d(3, 8, 3, padding=1)
        self.right = nn.Conv2d(3, 8, 1)
        self.norm = nn.GroupNorm(1, 8)
        self.mix = nn.Conv2d(16, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)
        self.register_buffer("scale", torch.rand(16, 1, 1) + 0.5, persistent=False)
        self.register_buffer("mean", torch.rand(3, 1, 1))
        self.watched = [self.mix]

    def forward(self, x):
        x = x - self.mean
        x = torch.cat([self.left(x), self.right(x)], 1) * self.scale
        return self.head(self.norm(self.watched[0](x)).relu().mean((2, 3)))


X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def make(model=None, x=X, **options):
    torch.manual_seed(0)
    return Supernet(Mixed() if model is None else model, x, **{"step": 2, **options})


def dense():
    torch.manual_seed(0)
    model = models.resnet20(num_classes=4, width=8, shortcut="zero_pad")
    return Supernet(model, torch.randn(2, 3, 8, 8), step=2)


@pytest.fixture(scope="module")
def shared():
    return make()


def specs(net):
    return [net.space.spec(width=w) for w in (0.25, 0.5, 0.75)] + [net.space.full]


def loss(subnet, x=X):
    return subnet(x).square().mean()


def alone(net, spec, x=X):
    """The gradients of a stand-alone net of the same shape, spread out to the full shapes."""
    subnet = net.subnet(spec)
    packed = pack(subnet)
    loss(packed, x).backward()
    found = {}
    for name, p in net.named_parameters():
        found[name] = torch.zeros_like(p)
        binding(subnet).parameters[name].cut.put(found[name], packed.get_parameter(name).grad)
    return found


def assert_gradients(net, *wanted):
    for name, p in net.named_parameters():
        expected = sum(each[name] for each in wanted)
        found = torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, msg=name)


# -- views -----------------------------------------------------------------------------------------


def test_parameters_and_gradients_are_views_of_the_shared_ones(shared):
    net = make()
    subnet = net.subnet(net.space.spec(width=0.5))
    loss(subnet).backward()
    kept = gathered = 0
    for name, p in net.named_parameters():
        link, leaf = binding(subnet).parameters[name], subnet.get_parameter(name)
        assert type(leaf) is nn.Parameter
        assert leaf.is_leaf
        if link.cut.gathered:
            gathered += 1
            assert leaf.grad is None
            continue
        kept += 1
        assert leaf.untyped_storage().data_ptr() == p.untyped_storage().data_ptr()
        assert leaf.grad.untyped_storage().data_ptr() == p.grad.untyped_storage().data_ptr()
        assert leaf._version == p._version
    assert (kept, gathered) == (9, 1)
    assert type(subnet) is Mixed
    assert subnet.watched[0] is subnet.mix
    assert subnet.mean is net.model.mean
    assert "Conv2d(8, 4, kernel_size=(3, 3)" in str(subnet)
    assert subnet.norm.num_channels == 4


def test_gradients_add_up_over_subnets_and_steps():
    net = make()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    own = [net.subnet(spec) for spec in specs(net)]
    for step in range(4):
        used = [0, 1, 2, 3] if step % 2 else [step, 3, step]
        wanted = [alone(net, specs(net)[i]) for i in used]
        for i in used:
            loss(own[i]).backward()
        assert_gradients(net, *wanted)
        before = loss(own[0]).item()
        optimizer.step()
        assert loss(own[0]).item() != before
        torch.testing.assert_close(own[1](X), pack(net.subnet(specs(net)[1]))(X))
        optimizer.zero_grad()


def none(net, subnet):
    for p in net.parameters():
        p.grad = None


def zero(net, subnet):
    for p in net.parameters():
        p.grad.zero_()


def assign(net, subnet):
    for p in net.parameters():
        p.grad = torch.zeros_like(p)


CLEARINGS = {
    "set_to_none": lambda net, subnet: torch.optim.SGD(net.parameters()).zero_grad(),
    "to_zero": lambda net, subnet: torch.optim.SGD(net.parameters()).zero_grad(set_to_none=False),
    "none": none,
    "zero_": zero,
    "assign": assign,
    "subnet": lambda net, subnet: subnet.zero_grad(),
    "subnet_zero": lambda net, subnet: subnet.zero_grad(set_to_none=False),
    "model": lambda net, subnet: net.model.zero_grad(),
}


@pytest.mark.parametrize("clear", CLEARINGS.values(), ids=CLEARINGS)
@pytest.mark.parametrize("which", [1, 3], ids=["part", "full"])
def test_every_way_of_clearing(clear, which):
    net = make()
    spec, other = specs(net)[which], specs(net)[0]
    subnet, small = net.subnet(spec), net.subnet(other)
    for _ in range(3):
        loss(subnet).backward()
        loss(small).backward()
        clear(net, subnet)
        assert_gradients(net, {n: torch.zeros_like(p) for n, p in net.named_parameters()})
        loss(small).backward()
        loss(subnet).backward()
        loss(subnet).backward()
        assert_gradients(net, alone(net, other), *2 * [alone(net, spec)])
        clear(net, subnet)


def test_clearing_one_parameter_of_a_subnet_by_hand():
    net = make()
    subnet = net.subnet(specs(net)[1])
    loss(subnet).backward()
    for leaf in subnet.parameters():
        leaf.grad = None
    subnet.mix.weight.grad = None
    for p in [binding(subnet).parameters["mix.weight"].source]:
        p.grad = None
    loss(subnet).backward()
    assert_gradients(net, alone(net, specs(net)[1]))


def test_replacing_a_subnets_gradient_by_hand():
    net = make()
    subnet = net.subnet(specs(net)[1])
    loss(subnet).backward()
    subnet.head.weight.grad = torch.ones_like(subnet.head.weight)
    loss(subnet).backward()
    wanted = alone(net, specs(net)[1])["head.weight"][:, :4] + 1
    torch.testing.assert_close(net.model.head.weight.grad[:, :4], wanted)


def test_assigned_gradients_are_added_to():
    net = make()
    subnet = net.subnet(specs(net)[1])
    loss(subnet).backward()
    ones = {n: torch.ones_like(p) for n, p in net.named_parameters()}
    for n, p in net.named_parameters():
        p.grad = ones[n].clone()
    loss(subnet).backward()
    assert_gradients(net, ones, alone(net, specs(net)[1]))


def test_at_most_one_old_gradient_buffer_is_kept_alive():
    net = make()
    idle, busy = net.subnet(specs(net)[0]), net.subnet(specs(net)[1])
    loss(idle).backward()
    old = []
    for _ in range(4):
        loss(busy).backward()
        old.append(weakref.ref(net.model.left.weight.grad))
        for p in net.parameters():
            p.grad = None
        storages = [ref for ref in old if ref() is not None]
        assert len(storages) <= 1
    loss(busy).backward()
    assert idle.left.weight.grad is None


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("gathering", [True, False], ids=["gathers", "views"])
def test_a_step_between_forward_and_backward_is_an_error(options, gathering):
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten())
    net = make() if gathering else make(nn.Sequential(plain, nn.Linear(32, 4)), freeze="0.1")
    tethers = binding(net.subnet(specs(net)[1])).gathers()
    assert any(True for _ in tethers) == gathering
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, **options)
    subnet, other = net.subnet(specs(net)[1]), net.subnet(specs(net)[2])
    value = loss(subnet)
    loss(other).backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_a_step_is_noticed_when_only_gathered_weights_could_tell():
    class Cat(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(torch.cat([self.a(x), self.b(x)], 1))

    net = make(Cat(), torch.randn(2, 3))
    subnet = net.subnet(net.space.spec(width=0.5))
    value = loss(subnet, torch.randn(2, 3))
    with torch.no_grad():
        net.model.head.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()
    value = loss(subnet, torch.randn(2, 3))
    with torch.no_grad():
        net.model.head.weight.mul_(2)
    with torch.inference_mode():
        subnet(torch.randn(2, 3))  # fills the copy again
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_create_graph_is_refused_but_input_gradients_are_not():
    net = make()
    subnet = net.subnet(specs(net)[1])
    with pytest.raises(ModelError, match="create_graph"):
        loss(subnet).backward(create_graph=True)
    none(net, subnet)
    x = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(subnet, x), x, create_graph=True)
    slope.square().sum().backward()
    packed = pack(subnet)
    (slope,) = torch.autograd.grad(loss(packed, x), x, create_graph=True)
    slope.square().sum().backward()
    torch.testing.assert_close(net.model.left.weight.grad[:4], packed.left.weight.grad)
    found = torch.autograd.grad(loss(subnet), list(subnet.parameters()))
    for one, other in zip(
        found, torch.autograd.grad(loss(packed), list(packed.parameters())), strict=True
    ):
        torch.testing.assert_close(one, other)


# -- frozen parameters -----------------------------------------------------------------------------


def test_frozen_parameters():
    model = Mixed()
    model.left.requires_grad_(False)
    net = make(model)
    one, two = (net.subnet(specs(net)[1]) for _ in range(2))
    one.right.requires_grad_(False)
    loss(one).backward()
    assert net.model.left.weight.grad is None
    assert net.model.right.weight.grad is None
    assert two.right.weight.requires_grad
    assert net.model.right.weight.requires_grad
    loss(two).backward()
    assert net.model.right.weight.grad is not None
    one.left.requires_grad_(True)  # of one subnet only: the shared weight stays frozen
    loss(one).backward()
    assert net.model.left.weight.grad is None
    assert one.left.weight.grad.shape == one.left.weight.shape
    net.model.left.requires_grad_(True)  # thawed later: the hooks are there
    one.left.weight.grad = None
    loss(one).backward()
    assert net.model.left.weight.grad is not None
    torch.testing.assert_close(net.model.left.weight.grad, alone(net, specs(net)[1])["left.weight"])


# -- gathers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [make, dense])
def test_gathers_are_filled_again_whatever_changed_the_weights(make):
    net = make()
    x = X if make is not dense else torch.randn(2, 3, 8, 8)
    net.model.eval()
    spec = specs(net)[1]
    subnet = net.subnet(spec)

    def check():
        torch.testing.assert_close(subnet(x), pack(net.subnet(spec))(x))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for options in ({}, {"foreach": False}, {"fused": True}):
            loss(subnet, x).backward()
            torch.optim.Adam(net.parameters(), lr=0.1, **options).step()
            check()
        net.load_state_dict({n: t * 0.9 for n, t in net.state_dict().items()})
        if make is not dense:  # norm statistics are the subnet's own
            check()
            packed = pack(net.subnet(specs(net)[0]))
            with torch.no_grad():
                for p in packed.parameters():
                    p.mul_(1.5)
            net.absorb(specs(net)[0], packed)
            check()
            with torch.no_grad():
                net.model.mix.weight.mul_(2)
            out = subnet.mix(torch.ones(1, 8, 4, 4))  # a submodule called directly
            torch.testing.assert_close(out, pack(subnet).mix(torch.ones(1, 8, 4, 4)))
            with torch.no_grad():
                net.model.mix.weight.mul_(2)
            assert torch.equal(pack(subnet).mix.weight, pack(net.subnet(spec)).mix.weight)
            with torch.no_grad():
                net.model.mix.weight.mul_(2)
            assert torch.equal(subnet.state_dict()["mix.weight"], pack(subnet).mix.weight)
            with torch.inference_mode():
                subnet(x)


def test_writing_a_gathered_copy_is_an_error():
    net = make()
    subnet = net.subnet(specs(net)[1])
    with torch.no_grad():
        subnet.left.weight.mul_(2)  # a view: it writes through
    assert torch.equal(net.model.left.weight[:4], subnet.left.weight)
    subnet(X)
    with torch.no_grad():
        subnet.mix.weight.mul_(2)
    with pytest.raises(ModelError, match=r"net\.absorb"):
        subnet(X)


def test_replaced_shared_weights_are_noticed():
    net = make()
    subnet = net.subnet(specs(net)[1])
    net.model.to(memory_format=torch.channels_last)
    with pytest.raises(ModelError, match="no longer a view"):
        loss(subnet).backward()


@pytest.mark.parametrize("swap", [False, True], ids=["copy", "replace"])
def test_writes_through_data_are_seen(swap):
    net = make()
    spec = specs(net)[1]
    subnet = net.subnet(spec)

    def write():
        for p in net.parameters():
            if swap:
                p.data = p.data * 1.5
            else:
                p.data.copy_(p.data * 1.5)

    def check(run):
        torch.testing.assert_close(run(), pack(net.subnet(spec))(X))

    write()
    net.refresh()
    check(lambda: subnet.eval()(X))
    write()
    if swap:
        subnet.mix(torch.ones(1, 8, 4, 4))  # a gathered weight; views need the call
        assert torch.equal(subnet.mix.weight, pack(net.subnet(spec)).mix.weight)
    else:
        check(lambda: subnet.train()(X))
    write()
    state = net.subnet(spec).state_dict()
    assert torch.equal(pack(subnet).mix.weight, state["mix.weight"])
    write()
    assert torch.equal(subnet.state_dict()["mix.weight"], net.subnet(spec).mix.weight)
    net.refresh()
    loss(subnet).backward()
    assert_gradients(net, alone(net, spec))


def test_two_training_runs_may_come_before_one_backward():
    net = make()
    subnet = net.subnet(specs(net)[1]).train()
    (loss(subnet) + loss(subnet)).backward()
    wanted = alone(net, specs(net)[1])
    assert_gradients(net, wanted, wanted)


# -- copies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", [lambda m: m.double(), lambda m: m.half(), lambda m: m.to(torch.bfloat16)]
)
def test_moving_a_subnet_gives_a_stand_alone_copy(shared, change):
    subnet = shared.subnet(specs(shared)[1])
    with pytest.warns(UserWarning, match="stand-alone copy") as caught:
        moved = change(subnet)
    assert caught[0].filename == __file__
    assert moved is not subnet
    assert binding(moved) is None
    assert subnet.left.weight.dtype == torch.float32
    assert moved.left.weight.dtype != torch.float32
    moved.float()  # no warning


def test_deep_copies_are_stand_alone(shared):
    subnet = shared.subnet(specs(shared)[1])
    outer = nn.Sequential(subnet, nn.Linear(4, 2))
    for twin in (copy.deepcopy(subnet), copy.deepcopy(outer)[0]):
        assert binding(twin) is None
        assert type(twin) is Mixed
        torch.testing.assert_close(twin(X), subnet(X))
        twin.double()
        assert twin.left.weight.data_ptr() != subnet.left.weight.data_ptr()
    part = copy.deepcopy(subnet.mix).double()
    assert part.weight.data_ptr() != subnet.mix.weight.data_ptr()
    assert torch.equal(part.weight.float(), subnet.mix.weight)
    part(torch.ones(1, 8, 4, 4, dtype=torch.float64))


def test_pack(shared):
    subnet = shared.subnet(specs(shared)[1])
    calls = []
    subnet.mix.register_forward_hook(lambda *given: calls.append(1))
    subnet.left.eval()
    subnet.right.requires_grad_(False)
    packed = pack(subnet)
    assert type(packed) is Mixed
    assert all(
        p.is_contiguous() and p.is_leaf and p._backward_hooks is None for p in packed.parameters()
    )
    assert [m.training for m in packed.modules()] == [m.training for m in subnet.modules()]
    assert not packed.right.weight.requires_grad
    for module in packed.modules():
        assert not module._forward_pre_hooks
        assert not module._state_dict_pre_hooks
        assert type(module._forward_hooks).__name__ == "OrderedDict"
    torch.testing.assert_close(packed(X), subnet(X))
    assert len(calls) == 2
    assert set(vars(packed)) == {*vars(shared.model), "nestling_order"}
    with torch.no_grad():
        packed.left.weight.add_(1)
    assert not torch.equal(packed.left.weight, subnet.left.weight)
    assert packed.watched[0] is packed.mix
    with torch.inference_mode():
        assert not pack(subnet).left.weight.is_inference()


def test_pack_keeps_channels_last():
    net = make().to(memory_format=torch.channels_last)
    packed = pack(net.subnet(specs(net)[1]))
    for p in (packed.left.weight, packed.mix.weight):
        assert p.is_contiguous(memory_format=torch.channels_last)
        assert not p.is_contiguous()


def saved(thing):
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getbuffer().nbytes


def test_saved_files_are_as_small_as_the_subnet():
    net = make(
        nn.Sequential(
            nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 4)
        ),
        torch.randn(2, 16),
    )
    spec = net.space.spec(width=0.25)
    share = net.space.bytes(spec) / net.space.bytes(net.space.full)
    subnet = net.subnet(spec)
    whole = saved(pack(net.subnet(net.space.full)))
    for thing in (pack(subnet), pack(subnet).state_dict(), subnet):
        assert saved(thing) < share * whole + 8000
    buffer = io.BytesIO()
    torch.save(subnet, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    assert torch.equal(again(torch.ones(1, 16)), pack(subnet)(torch.ones(1, 16)))


# -- life ----------------------------------------------------------------------------------------


def test_a_deleted_subnet_is_freed_at_once():
    net = make()
    subnet = net.subnet(specs(net)[1])
    loss(subnet).backward()
    gc.collect()
    gc.disable()
    try:
        refs = [weakref.ref(subnet), weakref.ref(subnet.left.weight), weakref.ref(subnet.mix)]
        del subnet
        assert [ref() for ref in refs] == [None] * 3
    finally:
        gc.enable()


class Saved(nn.Module):
    """Has the method of libraries that save a model as weights and a config."""

    def __init__(self):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.down(self.norm(self.up(x)).relu())

    def save_pretrained(self, path):
        torch.save({n: t.clone() for n, t in self.state_dict().items()}, path)
        assert binding(self) is None  # it is packed


@pytest.mark.filterwarnings("ignore:the config that is saved")  # there is none
def test_a_subnet_that_can_save_itself_is_freed_at_once(tmp_path):
    net = make(Saved(), torch.randn(4, 6))
    subnet = net.subnet(specs(net)[1]).train()
    for _ in range(2):
        subnet(torch.randn(4, 6)).sum().backward()
    statistics = subnet.norm.running_mean.clone()
    saver = subnet.save_pretrained
    saver(tmp_path / "alive.pt")
    gc.collect()
    gc.disable()
    try:
        refs = [weakref.ref(subnet), weakref.ref(subnet.up.weight)]
        unused = net.subnet(specs(net)[1]).eval()
        refs += [weakref.ref(unused), weakref.ref(unused.norm.running_mean)]
        del subnet, unused
        assert [ref() for ref in refs] == [None] * 4
    finally:
        gc.enable()
    saver(tmp_path / "gone.pt")
    alive, gone = (torch.load(tmp_path / f"{name}.pt") for name in ("alive", "gone"))
    assert alive.keys() == gone.keys()
    assert all(torch.equal(alive[name], gone[name]) for name in alive)
    assert torch.equal(gone["norm.running_mean"], statistics)
    net.subnet(net.space.full).save_pretrained(tmp_path / "full.pt")
    full = torch.load(tmp_path / "full.pt")
    assert all(torch.equal(full[name], t) for name, t in net.state_dict().items())
    net.reorder({name: range(axis.size)[::-1] for name, axis in net.space.axes.items()})
    with pytest.raises(SpecError, match="before the supernet's units were reordered"):
        saver(tmp_path / "other.pt")


def test_threads(shared):
    own = [shared.subnet(spec) for spec in specs(shared) * 2]
    expected = [pack(subnet)(X) for subnet in own]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            for found, wanted in zip(pool.map(lambda s: s(X), own), expected, strict=True):
                torch.testing.assert_close(found, wanted)


def test_threads_share_a_gathered_subnet_after_a_change(monkeypatch):
    net = make()
    subnet = net.subnet(specs(net)[1])
    gather = binding(subnet).parameters["mix.weight"]
    met = threading.Barrier(2, timeout=1)
    settle = type(gather).settle

    def late(self, leaf):  # the other thread looks between the write and its note
        if self is gather:
            with contextlib.suppress(threading.BrokenBarrierError):
                met.wait()
            time.sleep(0.05)
        settle(self, leaf)

    monkeypatch.setattr(type(gather), "settle", late)
    with torch.no_grad():
        net.model.mix.weight.mul_(2)

    def second():
        with contextlib.suppress(threading.BrokenBarrierError):
            met.wait()
        return subnet.mix(torch.ones(1, 8, 4, 4))

    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(lambda: subnet.mix(torch.ones(1, 8, 4, 4))), pool.submit(second)]
        one, two = [run.result() for run in runs]
    assert torch.equal(one, two)
    assert torch.equal(subnet.mix.weight, net.subnet(specs(net)[1]).mix.weight)


def test_user_hooks(shared):
    subnet, other = (shared.subnet(specs(shared)[1]) for _ in range(2))
    calls = []
    subnet.register_forward_pre_hook(lambda *a: calls.append("pre"), prepend=True)
    handle = subnet.left.register_forward_hook(lambda *a: calls.append("post"))
    subnet.register_forward_hook(lambda *a, **k: calls.append("kw"), with_kwargs=True)
    subnet.left.register_full_backward_hook(lambda *a: calls.append("back"))
    subnet.left.weight.register_hook(lambda g: calls.append("leaf"))
    loss(subnet, X.clone().requires_grad_()).backward()
    loss(other).backward()
    assert sorted(calls) == ["back", "kw", "leaf", "post", "pre"]
    handle.remove()
    subnet(X)
    assert calls.count("post") == 1


def test_hooks_can_be_put_first():
    net = dense()
    subnet = net.subnet(specs(net)[1]).train()
    calls = []
    for number in range(3):
        subnet[0].register_forward_pre_hook(
            lambda *a, number=number: calls.append(number), prepend=True
        )
    subnet(torch.randn(2, 3, 8, 8))
    assert calls == [2, 1, 0]


# -- unusual models --------------------------------------------------------------------------------


class Unusual(nn.Module):
    """Tied weights, parameters in lists, an init of its own, shared plain attributes."""

    def __init__(self, width, *, depth):
        super().__init__()
        self.inner = nn.Linear(width, width, bias=False)
        self.start = nn.Linear(3, width)
        self.again = nn.Linear(width, width, bias=False)
        self.again.weight = self.inner.weight
        self.gains = nn.ParameterList([torch.rand(width) + 0.5 for _ in range(depth)])
        self.cache = {}
        self.same = self.cache
        self.table = torch.rand(3)
        self.end = nn.Linear(width, 2)

    def forward(self, x):
        x = self.start(x * self.table)
        for gain in self.gains:
            x = x + torch.relu(self.again(self.inner(x * gain)))
        return self.end(x)


def test_tied_weights_parameter_lists_and_attributes():
    x = torch.randn(4, 3)
    net = make(Unusual(8, depth=2), x)
    subnet = net.subnet(specs(net)[1])
    assert subnet.inner.weight is subnet.again.weight
    assert subnet.same is subnet.cache
    assert subnet.cache is not net.model.cache
    assert subnet.table is net.model.table
    assert [tuple(g.shape) for g in subnet.gains] == [(4,), (4,)]
    loss(subnet, x).backward()
    assert_gradients(net, alone(net, specs(net)[1], x))
    packed = pack(subnet)
    assert packed.inner.weight is packed.again.weight
    assert packed.table is not net.model.table
    assert net.absorb(specs(net)[1], packed).inner.weight.shape == (4, 4)
    again = Supernet(subnet, x, step=2)  # a subnet is a model like any other
    assert again.space.axes[next(iter(again.space.axes))].size == 4
    net.to(torch.float64)
    assert subnet.gains[1].dtype == torch.float64
    assert subnet.inner.weight is subnet.again.weight


def test_a_recurrent_net_follows_moves():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(3, 8)
            self.lstm = nn.LSTM(8, 6, batch_first=True)
            self.head = nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.lstm(self.embed(x))[0])

    x = torch.randn(2, 5, 3)
    net = make(Recurrent(), x)
    subnet = net.subnet(specs(net)[1])
    loss(subnet, x).backward()
    assert_gradients(net, alone(net, specs(net)[1], x))
    net.to(torch.float64)
    assert subnet.lstm._flat_weights[0] is subnet.lstm.weight_ih_l0
    torch.testing.assert_close(subnet(x.double()), pack(subnet)(x.double()))


def test_export_of_a_packed_subnet(shared):
    packed = pack(shared.subnet(specs(shared)[1])).eval()
    exported = torch.export.export(packed, (X,)).module()
    torch.testing.assert_close(exported(X), packed(X))


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_compile():
    net = make()
    subnet = net.subnet(specs(net)[1])
    compiled = torch.compile(subnet, backend="aot_eager")
    warnings.simplefilter("ignore")  # the compiler looks at the gradients of parameters in its way
    for _ in range(2):
        for p in net.parameters():
            p.grad = None
        torch.testing.assert_close(compiled(X), pack(subnet)(X))
        compiled(X).square().mean().backward()
        assert_gradients(net, alone(net, specs(net)[1]))
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(0.9)


def test_only_the_full_net_remembers_its_builder():
    net = dense()
    assert models.built(pack(net.subnet(net.space.full))) == models.built(net.model)
    assert models.built(net.model) is not None
    narrow = net.subnet(specs(net)[1])
    assert models.built(narrow) is models.built(pack(narrow)) is None
