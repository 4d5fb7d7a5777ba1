"""Supernets: contract checks over the builders, calibration, reordering, moving, absorbing."""

import copy
import gc
import inspect
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

import nestling
from nestling import ModelError, SpecError, Supernet, UncalibratedWarning, models, pack
from nestling.binding import binding, is_calibrated
from nestling.cut import Cut
from nestling.supernet import rearranged
from nestling.testing import check_full, check_masked, check_order, check_supernet
from nestling.weights import tensors_of

NARROW = {
    "num_classes": 4, "growth": 4, "hidden": (16, 16), "in_features": 3 * 32 * 32, "paths": 2,
    "path_width": 4,
}  # fmt: skip
CASES = [(name, {}) for name in models.names()] + [
    ("resnet20", {"shortcut": "zero_pad"}),
    ("resnet20", {"shortcut": "projection"}),
    ("mlp", {"norm": False}),
]
SIDES = {  # others need 32
    **dict.fromkeys(("densenet40", "digits_resnet", "preact_resnet20", "resnet20", "resnext29"), 8)
}
HEAVY = {"densenet121", "densenet40", "resnet56", "resnet50", "mobilenet_v2", "vgg19_bn"}


def narrow(name, **arguments):
    """A narrow configuration of a builder, and its inputs; finds new builders by itself."""
    known = inspect.signature(getattr(models, name)).parameters
    width = known.get("width")
    options = {k: v for k, v in NARROW.items() if k in known}
    if width is not None:
        options["width"] = 8 if isinstance(width.default, int) else 0.25
    torch.manual_seed(0)
    model = models.build(name, {**options, **arguments})
    channels = known["in_channels"].default if "in_channels" in known else 3
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
            norm.running_mean.uniform_(-0.3, 0.3)
            norm.running_var.uniform_(0.5, 2)
    side = SIDES.get(name, 32)
    return model, torch.randn(2, channels, side, side)


class Gathering(nn.Module):
    """A concatenation, a fused layer and a cut constant: parameters and a buffer are gathered."""

    def __init__(self, norm=True):
        super().__init__()
        self.left = nn.Conv2d(3, 8, 3, padding=1)
        self.right = nn.Conv2d(3, 8, 1)
        self.norm = nn.BatchNorm2d(16) if norm else nn.Identity()
        self.register_buffer("scale", torch.rand(16, 1, 1) + 0.5)
        self.mix = nn.Conv2d(16, 8, 3, padding=1, bias=False)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.cat([self.left(x), self.right(x)], 1)
        x = (self.norm(x) * self.scale).relu()
        return self.head(self.mix(x).relu().mean((2, 3)))


def make(model=None, **options):
    torch.manual_seed(0)
    model = Gathering() if model is None else model
    return Supernet(model, torch.randn(2, 3, 8, 8), **{"step": 2, **options})


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def half(net):
    return net.space.spec(width=0.5)


# -- the invariants, over every builder ------------------------------------------------------------


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=lambda case: str(case))
def test_contract(name, arguments):
    if name in HEAVY:
        pytest.skip("as another builder, larger")
    model, x = narrow(name, **arguments)
    net = Supernet(model, x, step=2)
    check_supernet(net, x)


def test_contract_of_gathers():
    net = make()
    assert any(net.space.gathers(name) for name in net.space.axes)
    check_supernet(net, X)


def test_contract_densenet():
    model, x = narrow("densenet40")
    net = Supernet(model, x, step=2)
    check_full(net, x)
    check_masked(net, x)


class Features(nn.Module):
    """Returns hidden features beside its scores."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        hidden = torch.relu(self.one(x))
        features = self.two(hidden)
        return {"scores": self.head(torch.relu(features)), "features": features}


def test_contract_where_not_every_output_is_needed(monkeypatch):
    """An axis that comes out beside what is needed is masked too, and no check passes it over."""
    x = torch.randn(4, 6)
    net = Supernet(Features(), x, outputs="scores", step=2)
    assert set(net.space.axes) == {"one", "two"}
    check_supernet(net, x, outputs="scores")
    with pytest.raises(AssertionError, match="reordering"):
        check_order(net, x)
    with pytest.raises(AssertionError, match=r"axis 'two' .* is none of its model.*outputs="):
        check_masked(net, x)
    monkeypatch.setattr(Cut, "view", lambda self, t, view=Cut.view: view(self, t.flip(0)))
    with pytest.raises(AssertionError, match="differs from the masked model"):
        check_masked(net, x, outputs="scores")


def test_the_checks_see_what_is_wrong(monkeypatch):
    net = make()
    monkeypatch.setattr(Cut, "add", lambda self, shared, part: None)
    with pytest.raises(AssertionError, match="gradients"):
        check_masked(net, X)
    monkeypatch.undo()
    monkeypatch.setattr(Cut, "view", lambda self, t, view=Cut.view: view(self, t.flip(0)))
    with pytest.raises(AssertionError, match="differs from the masked model"):
        check_masked(net, X)
    monkeypatch.undo()
    monkeypatch.setattr("nestling.extent.permuted", lambda extent, orders: range(extent.size)[::-1])
    with pytest.raises(AssertionError, match="reordering"):
        check_order(net, X)


# -- calibration -----------------------------------------------------------------------------------


def test_uncalibrated_warns_once():
    net = make()
    subnet = net.subnet(half(net)).eval()
    with pytest.warns(UncalibratedWarning) as caught:
        subnet(X)
    assert caught[0].filename == __file__
    subnet(X)  # warnings are errors


def test_no_warning_after_training_or_for_the_full_net_or_without_norms():
    net = make()
    subnet = net.subnet(half(net)).train()
    subnet(X)
    subnet.eval()(X)
    net.subnet(net.space.full).eval()(X)
    plain = make(Gathering(norm=False))
    assert is_calibrated(plain.subnet(half(plain)))
    plain.subnet(half(plain)).eval()(X)


def test_a_training_forward_without_effect_still_warns():
    net = make()
    subnet = net.subnet(half(net)).train()
    subnet.norm.eval()
    subnet(X)
    with pytest.warns(UncalibratedWarning):
        subnet.eval()(X)


def test_recalibration_is_the_plain_mean():
    net = make()
    spec = half(net)
    subnet = net.subnet(spec).train()
    subnet.head.eval()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    batches = [(torch.randn(5, 3, 8, 8), None) for _ in range(3)]
    seen = []
    packed = pack(subnet)
    packed.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    for x, _ in batches:
        packed(x)
    modes = [m.training for m in subnet.modules()]
    with torch.inference_mode():
        assert net.recalibrate(subnet, batches) is subnet
    mean = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    var = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in seen]).mean(0)
    torch.testing.assert_close(subnet.norm.running_mean, mean)
    torch.testing.assert_close(subnet.norm.running_var, var)
    assert [m.training for m in subnet.modules()] == modes
    assert subnet.norm.momentum == 0.1
    assert all(torch.equal(before[n], p) for n, p in net.named_parameters())
    subnet.eval()(X)  # no warning


@pytest.mark.parametrize("batches", [[], [X, "broken"]])
def test_a_failed_recalibration_leaves_everything_as_it_was(batches):
    net = make()
    subnet = net.subnet(half(net)).train()
    before = {n: b.clone() for n, b in subnet.named_buffers()}
    with pytest.raises((ModelError, TypeError)):
        net.recalibrate(subnet, batches)
    assert all(torch.equal(before[n], b) for n, b in subnet.named_buffers())
    assert all(m.training for m in subnet.modules())
    assert subnet.norm.momentum == 0.1
    with pytest.warns(UncalibratedWarning):
        subnet.eval()(X)


def test_recalibration_of_instance_norm_and_of_a_norm_written_by_hand():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(8))
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))

        def forward(self, x):
            if self.training:
                self.calls += 1
                with torch.no_grad():
                    self.mean.lerp_(x.mean((0, 2, 3)), 1 / self.calls.float())
            return x - self.mean[:, None, None]

    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, track_running_stats=True), Own())
    model = nn.Sequential(body, nn.Dropout(0.9), nn.Flatten(), nn.Linear(8 * 36, 2))
    net = make(model)
    assert {"0.2.mean", "0.2.calls", "0.1.running_mean"} <= net.private
    subnet = net.subnet(half(net)).eval()
    net.recalibrate(subnet, [X, X + 1])
    assert subnet[0][1].running_mean.abs().sum() > 0
    assert subnet[0][1].momentum == 0.1
    assert subnet[0][2].calls == 2
    assert net.model[0][2].calls == 0
    subnet(X)


def test_a_counter_is_private_but_no_statistic():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(4, 8)
            self.two = nn.Linear(8, 2)
            self.register_buffer("steps", torch.zeros(()))

        def forward(self, x):
            if self.training:
                self.steps += 1
            return self.two(self.one(x).relu())

    net = Supernet(Counting(), torch.randn(2, 4), step=2)
    a, b = net.subnet(half(net)).train(), net.subnet(half(net)).train()
    a(torch.randn(2, 4))
    assert (a.steps, b.steps, net.model.steps) == (1, 0, 0)
    b.eval()(torch.randn(2, 4))


# -- reorder ---------------------------------------------------------------------------------------


def shuffled(net, seed):
    generator = torch.Generator().manual_seed(seed)
    loose = {name: axis.size for name, axis in net.space.axes.items() if not axis.ordered}
    return {name: torch.randperm(n, generator=generator).tolist() for name, n in loose.items()}


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=0.01),
        lambda p: torch.optim.Adafactor(p, lr=0.01),
    ],
    ids=["sgd", "adamw", "adafactor"],
)
def test_training_goes_on_as_before_after_a_reorder(optimizer):
    one, two = make(), make()
    optimizers = [optimizer(net.parameters()) for net in (one, two)]

    def step(net, own):
        net.subnet(net.space.full).train()(X).square().mean().backward()
        own.step()
        own.zero_grad()

    for net, own in zip((one, two), optimizers, strict=True):
        step(net, own)
        net.subnet(net.space.full).train()(X).square().mean().backward()
    first, second = shuffled(two, 1), shuffled(two, 2)
    two.reorder(first, optimizers[1])
    two.reorder(second, optimizers[1])
    assert two.orders == {n: tuple(first[n][i] for i in second[n]) for n in first}
    for net, own in zip((one, two), optimizers, strict=True):
        own.step()
        own.zero_grad()
        step(net, own)
    full = [net.subnet(net.space.full).eval()(X) for net in (one, two)]
    torch.testing.assert_close(*full, rtol=1e-3, atol=1e-3)


def test_older_subnets_refuse_to_run():
    net = make()
    subnet = net.subnet(half(net)).eval()
    packed = pack(subnet)
    pooled = net.pooled(half(net))
    first = shuffled(net, 1)
    net.reorder({n: list(range(a.size)) for n, a in net.space.axes.items()})
    assert net.order == 0
    subnet.train()(X)  # nothing has changed
    net.reorder(first)
    for call in (lambda: subnet(X), lambda: subnet.mix(X), lambda: pack(subnet)):
        with pytest.raises(SpecError, match="reordered"):
            call()
    assert net.pooled(half(net)) is not pooled
    with pytest.raises(SpecError, match="another order"):
        net.absorb(half(net), packed)
    back = {n: torch.tensor(order).argsort().tolist() for n, order in first.items()}
    assert net.order != 0
    net.reorder(back)
    assert net.order == 0
    net.absorb(half(net), packed)


def test_a_reorder_that_cannot_be_done_changes_nothing():
    net = make()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    last = list(net.parameters())[-2]
    optimizer.state[last] = {"basis": torch.zeros(3, 3, 3)}
    name = next(iter(net.space.axes))
    for orders, error in (
        ({name: [0] * net.space.axes[name].size}, SpecError),
        ({"lefft": [0]}, SpecError),
        (shuffled(net, 1), ModelError),
    ):
        with pytest.raises(error):
            net.reorder(orders, optimizer)
    assert all(torch.equal(before[n], p) for n, p in net.named_parameters())
    assert net.order == 0


@pytest.mark.parametrize("gathers", [True, False])
def test_rearranged_tensors_are_those_after_a_reorder(gathers):
    model, x = (Gathering(), X) if gathers else narrow("digits_resnet")
    net = make(model) if gathers else Supernet(model, x[..., ::4, ::4], step=2)
    before = {n: t.clone() for n, t in tensors_of(net.model).items()}
    first, second = shuffled(net, 1), shuffled(net, 2)
    found = rearranged(net.space, rearranged(net.space, before, first), second)
    assert any(not torch.equal(found[name], before[name]) for name in before)
    some = dict(list(second.items())[:1])
    partly = rearranged(net.space, before, some)
    twin = copy.deepcopy(net)
    twin.reorder(some)
    net.reorder(first)
    net.reorder(second)
    for expected, own in ((found, net), (partly, twin)):
        after = tensors_of(own.model)
        assert expected.keys() == after.keys()
        assert all(torch.equal(expected[name], after[name]) for name in after)
    assert (
        rearranged(net.space, before, {})["head.weight" if gathers else "conv1.weight"]
        is (before["head.weight" if gathers else "conv1.weight"])
    )


# -- to, absorb, pool, state ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", [{"dtype": torch.float64}, {"memory_format": torch.channels_last}], ids=str
)
def test_to_takes_live_subnets_along(change):
    net = make()
    subnet, full = net.pooled(half(net)).train(), net.subnet(net.space.full).train()
    leaves = list(subnet.parameters())
    subnet(X).sum().backward()
    expected = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    bytes_before = net.space.bytes(net.space.full)
    assert net.to(**change) is net
    assert net.pooled(half(net)) is subnet
    assert all(a is b for a, b in zip(leaves, subnet.parameters(), strict=True))
    x = X.to(**change)
    torch.testing.assert_close(subnet.eval()(x), pack(subnet)(x))
    assert full.norm.running_mean is net.model.norm.running_mean
    assert subnet.norm.running_mean.dtype == net.model.norm.running_mean.dtype
    assert full.scale is net.model.scale
    for old, p in zip(expected, net.parameters(), strict=True):
        torch.testing.assert_close(p.grad, old.to(p.dtype))
    for name, link in binding(subnet).parameters.items():
        p, leaf = dict(net.named_parameters())[name], dict(subnet.named_parameters())[name]
        assert leaf.dtype == p.dtype
        if not link.cut.gathered:
            assert leaf.untyped_storage().data_ptr() == p.untyped_storage().data_ptr()
            assert leaf.grad.untyped_storage().data_ptr() == p.grad.untyped_storage().data_ptr()
        elif p.dim() == 4 and "memory_format" in change:
            assert leaf.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)
    torch.testing.assert_close(subnet(x), pack(subnet)(x))
    subnet(x).sum().backward()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)
    if "dtype" in change:
        assert net.space.bytes(net.space.full) > 1.9 * bytes_before
    out = subnet(x).sum()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        out.backward()


def test_gathered_buffers_follow_after_a_move():
    net = make(Gathering(norm=False))
    subnet = net.subnet(half(net)).eval()
    assert binding(subnet).buffers
    for dtype in (torch.float64, torch.float32):
        net.to(dtype)
        with torch.no_grad():
            net.model.scale.mul_(2)
        subnet(X.to(dtype))
        assert torch.equal(subnet.scale, net.subnet(half(net)).scale)
    assert torch.equal(subnet.state_dict()["scale"], net.subnet(half(net)).scale)


def test_to_keeps_a_subnet_uncalibrated():
    net = make()
    subnet = net.subnet(half(net)).eval()
    net.to(torch.float64)
    with pytest.warns(UncalibratedWarning):
        subnet(X.double())


def test_absorb_round_trip():
    net = make()
    spec = half(net)
    packed = pack(net.subnet(spec)).train()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    optimizer = torch.optim.SGD(packed.parameters(), lr=0.1)
    packed(X).square().mean().backward()
    optimizer.step()
    other = net.subnet(spec).train()
    subnet = net.absorb(spec, packed).eval()
    assert torch.equal(subnet(X), packed.eval()(X))
    other.norm.load_state_dict(packed.norm.state_dict())
    with pytest.raises(ModelError, match="written in place"):
        other.eval()(X)  # the gathered norm was written directly
    again = pack(subnet)
    for name, p in again.named_parameters():
        assert torch.equal(p, packed.get_parameter(name))
    for name, link in binding(subnet).parameters.items():
        kept = torch.zeros_like(before[name])
        link.cut.put(kept, torch.ones_like(again.get_parameter(name)))
        same = torch.equal(before[name][kept == 0], dict(net.named_parameters())[name][kept == 0])
        assert same, name


def test_absorb_checks_before_it_writes():
    net = make()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    with pytest.raises(SpecError, match="must have the shape"):
        net.absorb(net.space.full, pack(net.subnet(half(net))))
    with pytest.raises(SpecError, match="missing"):
        net.absorb(half(net), nn.Linear(2, 2))
    assert all(torch.equal(before[n], p) for n, p in net.named_parameters())


def test_the_pool_follows_freezing():
    net = make()
    subnet = net.pooled(half(net))
    assert net.pooled(dict(half(net))) is subnet
    net.model.left.requires_grad_(False)
    frozen = net.pooled(half(net))
    assert not frozen.left.weight.requires_grad
    subnet.train()(X).sum().backward()
    assert net.model.left.weight.grad is None
    assert net.model.head.weight.grad is not None
    net.model.left.requires_grad_(True)
    net.pooled(half(net)).train()(X).sum().backward()
    assert net.model.left.weight.grad is not None


def test_load_state_dict_reaches_live_subnets():
    net, other = make(), make(Gathering())
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1)
        other.model.scale.add_(1)
    subnet = net.subnet(half(net)).train()
    expected = other.subnet(half(other)).train()
    net.load_state_dict(other.state_dict())
    torch.testing.assert_close(subnet(X), expected(X))
    state = subnet.state_dict()
    for name, p in expected.named_parameters():
        assert torch.equal(state[name], p)


def test_the_user_s_model_is_not_touched_nor_the_random_state():
    torch.manual_seed(0)
    model = Gathering().train()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    net = Supernet(model, X, step=2)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert model.training
    assert net.subnet(half(net)).training
    assert all(a is not b for a, b in zip(model.parameters(), net.parameters(), strict=True))


# -- freeze, tie, step -----------------------------------------------------------------------------


def test_freeze():
    net = make(freeze=["mix"])
    assert "mix" not in net.space.axes
    assert "left" in net.space.axes
    assert any("freeze='mix'" in row.reason for row in net.space.frozen)
    assert set(make(freeze="r*t").space.axes) == {"left", "mix"}
    assert set(make(freeze=["mix", "mix.weight", "m*"]).space.axes) == {"left", "right"}
    assert "mix" not in make(freeze="head").space.axes  # it makes no axis of its own
    with pytest.raises(SpecError, match="did you mean 'right'"):
        make(freeze=["rigth"])
    layers = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))
    with pytest.raises(SpecError, match=r"write 0\.weight or the pattern \*\.weight"):
        Supernet(layers, torch.ones(1, 4), freeze="0-1.weight")
    with pytest.raises(SpecError, match=r"write 0 or the pattern \*$|write 0 or the pattern \*;"):
        Supernet(layers, torch.ones(1, 4), tie="0-1")


def test_tie():
    net = make(tie=[("left", "right")])
    assert set(net.space.axes) == {"left", "mix"}
    check_supernet(net, X)
    with pytest.raises(SpecError, match="did you mean 'left'"):
        make(tie=[("lefft", "right")])
    for single in (["left", "right"], [("left",)], ["le*"], "left", [()]):
        with pytest.raises(SpecError, match="groups of at least two axes"):
            make(tie=single)
    assert set(make(tie="*t").space.axes) == {"left", "mix"}  # one pattern, not its characters


def test_step():
    net = make(step={"left": 4})
    assert net.space.axes["left"].counts == (4, 8)
    assert make(step=3).space.axes["mix"].counts == (3, 6, 8)
    for step in (0, -1, True, "2", {"left": 0}):
        with pytest.raises(SpecError, match="step="):
            make(step=step)
    with pytest.raises(SpecError, match="did you mean 'left'"):
        make(step={"lefft": 2})


def test_a_step_that_leaves_only_the_full_size_freezes():
    net = make(step={"left": 64})
    assert set(net.space.axes) == {"right", "mix"}
    reasons = {row.parameter: row.reason for row in net.space.frozen}
    assert reasons["left.weight"] == "step=64 leaves only the full size"
    check_supernet(net, X)
    with pytest.raises(ModelError, match=r"elastic: .*step=64 leaves only the full size"):
        make(step=64)


def test_tied_axes_keep_to_the_steps_of_all():
    tie = [("left", "right")]
    assert make(tie=tie, step={"right": 4}).space.axes["left"].counts == (4, 8)
    assert make(tie=tie, step={"right": 1}).space.axes["left"].counts == tuple(range(1, 9))
    assert make(tie=tie, step={"left": 2, "right": 3}).space.axes["left"].counts == (6, 8)
    net = make(tie=tie, step={"left": 5, "right": 3})
    reasons = {row.parameter: row.reason for row in net.space.frozen}
    assert reasons["right.weight"] == "the steps of the axes tied to it leave only the full size"


# -- what is not done with it ----------------------------------------------------------------------


def test_a_supernet_is_neither_pickled_nor_called():
    net = make()
    for save in (pickle.dumps, lambda net: torch.save(net, io.BytesIO())):
        with pytest.raises(ModelError, match=r"menu\.save, or net\.state_dict"):
            save(net)
    with pytest.raises(ModelError, match=r"net\.subnet\(net\.space\.full\)"):
        net(X)


def test_a_deep_copy_is_a_supernet_of_its_own():
    net = make()
    net.reorder({"left": [*range(7, -1, -1)]})
    net.pooled(half(net))
    twin = copy.deepcopy(net)
    assert (twin.orders, twin.order, twin.space) == (net.orders, net.order, net.space)
    twin.pooled(half(twin)).train()(X).sum().backward()
    assert all(p.grad is None for p in net.parameters())
    assert all(p.grad is not None for p in twin.parameters())
    torch.optim.SGD(twin.parameters(), lr=0.1).step()
    assert not torch.equal(twin.model.mix.weight, net.model.mix.weight)
    check_supernet(twin, X)


def test_zero_grad():
    net = make()
    subnet = net.subnet(half(net)).train()
    subnet(X).sum().backward()
    net.zero_grad(set_to_none=False)
    assert not any(p.grad.any() for p in net.parameters())
    assert not subnet.left.weight.grad.any()
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())


def test_compiled_copies_are_taken_back_and_recalibrated():
    net = make()
    packed = nestling.pack(net.subnet(half(net)))
    with torch.no_grad():
        packed.left.weight.mul_(2)
    compiled = torch.compile(packed, backend="eager")
    assert net.recalibrate(compiled, [X]) is compiled
    assert packed.norm.num_batches_tracked == 1
    subnet = net.absorb(half(net), compiled)
    assert torch.equal(subnet.left.weight, packed.left.weight)
    assert torch.equal(subnet.norm.running_mean, packed.norm.running_mean)


# -- memory ----------------------------------------------------------------------------------------


def test_many_short_lived_subnets_leave_nothing_behind():
    net = make()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(60):
        net.subnet(half(net)).train()(X).sum().backward()
        optimizer.zero_grad(set_to_none=False)
    assert max(len(shared.users) for shared in net._gradients.values()) <= 17
    gc.collect()
    assert len(net._live) == 0


def test_a_spec_of_another_net_is_checked():
    wide, thin = make(step=2), make(step=4)
    with pytest.raises(SpecError, match="cannot keep 2 of 8"):
        thin.subnet(wide.space.spec({"left": 2}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert nestling.Spec(thin.space, {"left": 4})["mix"] == 8


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((2, 8), r"torch\.randn\(2, 8\)"),
        ({"x": X}, r"keyword inputs go into kwargs="),
        (X.numpy(), r"torch\.from_numpy"),
        ("text", r"inputs that the model accepts$"),
    ],
)
def test_inputs_of_another_kind(given, said):
    with pytest.raises(ModelError, match=said) as found:
        Supernet(torch.nn.Linear(8, 8), given)
    assert "\n" not in str(found.value)
