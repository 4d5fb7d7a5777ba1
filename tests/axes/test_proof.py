"""The proof: bad models are refused in words, lower precision is told, nothing wrong passes."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nestling.axes.comparison import TOLERANCES, compare, difference, moved
from nestling.axes.discovery import discover
from nestling.axes.proof import Prover, double
from nestling.errors import ModelError
from nestling.extent import Along, Fixed
from nestling.supernet import Supernet

IMAGE = torch.randn(2, 3, 8, 8)
EXACT = TOLERANCES[torch.float64]


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head, self.calls = nn.Conv2d(3, 16, 3), nn.Linear(16, 5), 0

    def features(self, x):
        return F.relu(self.conv(x)).mean((2, 3))

    def forward(self, x):
        return self.head(self.features(x))


class Counting(Plain):
    def forward(self, x):
        self.calls += 1
        return super().forward(x) * self.calls


class Alternating(Plain):
    def forward(self, x):
        self.calls += 1
        y = self.features(x)
        return self.head(y.sin() if self.calls % 2 else y)


class Noisy(Plain):
    def forward(self, x):
        return self.head(self.features(x) + torch.randn(16))


class NotANumber(Plain):
    def forward(self, x):
        return super().forward(x) * float("nan")


class Failing(Plain):
    def forward(self, x):
        raise RuntimeError("boom")


class Nothing(Plain):
    def forward(self, x):
        return None


class DataDependent(Plain):
    def forward(self, x):
        y = self.features(x)
        return self.head(y.exp() if x.sum() > 0 else y)


class Positive(Plain):
    def forward(self, x):
        return self.head(self.features(x.log()))


class InFloat32(Plain):
    """Norm in float32, as language models do."""

    def forward(self, x):
        y = self.features(x).float()
        return self.head((y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-5)).to(x.dtype))


class HardFloat32(Plain):
    def forward(self, x):
        return self.head(self.features(x).float())


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.LazyConv2d(16, 3), nn.LazyLinear(5)

    def forward(self, x):
        return self.head(F.relu(self.conv(x)).mean((2, 3)))


class Attribute(Plain):
    def __init__(self):
        super().__init__()
        self.mask = torch.ones(16)

    def forward(self, x):
        return self.head(self.features(x) * self.mask)


REFUSED = {
    "counting": (Counting, "something else when it is called again"),
    "alternating": (Alternating, "called again"),
    "noisy": (Noisy, "called again"),
    "nan": (NotANumber, "returns NaN"),
    "failing": (Failing, "boom"),
    "nothing": (Nothing, "no tensor"),
    "meta": (lambda: Plain().to("meta"), "meta"),
    "compiled": (lambda: torch.compile(Plain(), backend="eager"), "_orig_mod"),
    "compiled part": (lambda: nn.Sequential(torch.compile(Plain(), backend="eager")), "module '0'"),
    "parallel": (lambda: nn.DataParallel(Plain()), "model.module"),
    "unregistered": (Attribute, "register it"),
    "nothing elastic": (lambda: nn.Conv2d(3, 4, 3), "nothing in Conv2d is elastic"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_bad_model_is_refused_in_words(name):
    make, words = REFUSED[name]
    with pytest.raises(ModelError, match=words):
        Supernet(make(), IMAGE)


def test_inference_mode_is_refused():
    model = Plain()
    with torch.inference_mode(), pytest.raises(ModelError, match="outside of it"):
        Supernet(model, IMAGE)


@pytest.mark.parametrize("make", [DataDependent, Positive])
def test_model_that_takes_no_random_inputs_is_proven_on_the_example(make):
    net = Supernet(make(), IMAGE.abs() + 0.1)
    assert list(net.space.axes) == ["conv"]


@pytest.mark.parametrize("make", [InFloat32, HardFloat32])
def test_float32_inside_is_proven_less_tightly_and_told(make):
    net = Supernet(make(), IMAGE)
    assert list(net.space.axes) == ["conv"]
    assert any("float32" in note for note in net.space.notes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_is_proven_in_float64(dtype):
    net = Supernet(Plain().to(dtype), IMAGE.to(dtype))
    assert list(net.space.axes) == ["conv"]
    assert not net.space.notes
    assert all(parameter.dtype is dtype for parameter in net.parameters())


def test_mode_hooks_and_inputs_are_left_alone():
    x = IMAGE.clone().requires_grad_()
    model = Plain().train()
    net = Supernet(model, x)
    assert model.training
    assert net.model.training
    assert x.grad is None
    assert torch.equal(x, IMAGE)


def test_lazy_modules_are_built():
    assert list(Supernet(Lazy(), IMAGE).space.axes) == ["conv"]


def proven(model: nn.Module):
    wide, (args, kwargs) = double(model, ((IMAGE,), {}))
    prover = Prover(wide, args, kwargs, discover(wide, args, kwargs), lambda out: out)
    return prover, prover.prove(prover.trials.discovery.space)


@pytest.mark.parametrize("make", [Plain, HardFloat32])
def test_wrong_layout_is_rejected_in_every_precision(make):
    prover, space = proven(make())
    assert prover.check(space, {"conv": 5}).holds
    for name, dim in space.touches("conv"):
        layout = space.layouts[name]
        dims = tuple(Fixed(e.size) if i == dim else e for i, e in enumerate(layout.extents))
        layouts = {**space.layouts, name: replace(layout, extents=dims)}
        assert not prover.check(replace(space, layouts=layouts), {"conv": 5}).holds


def test_wrong_mask_of_the_right_shape_is_rejected():
    """The subnet keeps other units than the reference: only the values can tell."""
    prover, space = proven(Plain())
    subnet = prover.trials.subnet

    def turned(space, counts):
        made = subnet(space, counts)
        with torch.no_grad():
            made.head.weight.copy_(made.head.weight.flip(1))
        return made

    before = copy.deepcopy(prover.trials.model.state_dict())
    prover.trials.subnet = turned
    assert not prover.check(space, {"conv": 5}).holds
    prover.trials.model.load_state_dict(before)


def test_attribute_is_found_and_the_decoy_is_not():
    class Net(Plain):
        def __init__(self):
            super().__init__()
            self.decoy, self.width = 16, 16

        def forward(self, x):
            y = F.relu(self.conv(x)).flatten(2).mean(2).reshape(-1, self.width)
            return self.head(y) / self.decoy

    _, space = proven(Net())
    own = [a for a in space.attributes if not a.module]
    assert [(a.name, a.extent) for a in own] == [("width", Along("conv", 16))]


def test_order_that_matters_freezes():
    class Net(Plain):
        def forward(self, x):
            y = self.features(x)
            return self.head(y + y.max(1, keepdim=True).indices)

    with pytest.raises(ModelError, match="order of its units matters"):
        Supernet(Net(), IMAGE)


def test_difference_treats_what_is_not_finite_rightly():
    nan, inf = float("nan"), float("inf")
    one = torch.tensor([1.0, nan, inf, -inf])
    assert difference(one, one.clone()) == 0
    assert difference(one, torch.tensor([1.0, 0.0, inf, -inf])) == inf
    assert difference(one, torch.tensor([1.0, nan, -inf, -inf])) == inf
    assert difference(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])) == 0.5
    assert difference(torch.zeros(0), torch.zeros(0)) == 0
    assert difference(torch.tensor([1j]), torch.tensor([2j])) == 0.5


def test_tolerances_leave_room_between_rounding_and_a_cut():
    for tolerance in TOLERANCES.values():
        assert tolerance.exact < tolerance.moved
    assert not compare([torch.zeros(2)], [torch.zeros(3)], EXACT).holds
    assert moved([torch.zeros(2)], [torch.zeros(3)], EXACT)


class Auxiliary(Plain):
    """Has a branch that only runs in training, and a norm that needs two examples for it."""

    def __init__(self):
        super().__init__()
        self.deep, self.norm = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm1d(16)
        self.aux = nn.Linear(16, 5)

    def forward(self, x):
        first = F.relu(self.conv(x))
        out = self.head(self.norm(F.relu(self.deep(first)).mean((2, 3))))
        return (out, self.aux(F.dropout(first.mean((2, 3))))) if self.training else out


@pytest.mark.parametrize("batch", [1, 2])
def test_what_training_alone_uses_goes_with_the_rest(batch):
    torch.manual_seed(0)
    model = Auxiliary().train()
    before = torch.get_rng_state(), {n: t.clone() for n, t in model.state_dict().items()}
    net = Supernet(model, torch.randn(batch, 3, 8, 8, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), before[0])
    for state in (model.state_dict(), net.state_dict()):
        assert all(torch.equal(tensor, before[1][name]) for name, tensor in state.items())
    assert list(net.space.axes) == ["conv", "deep"]
    subnet = net.subnet(net.space.spec(width=0.5)).train()
    sum(out.sum() for out in subnet(IMAGE)).backward()


class Untrainable(Plain):
    def forward(self, x):
        if self.training:
            raise RuntimeError("for evaluation only")
        return super().forward(x)


def test_a_model_that_never_runs_in_training_keeps_its_axes():
    assert list(Supernet(Untrainable(), IMAGE).space.axes) == ["conv"]


class Halved(nn.Module):
    """In training it returns something else than what it is given, plus a branch."""

    def __init__(self, share):
        super().__init__()
        self.share = share
        self.norm, self.up, self.down = nn.BatchNorm1d(8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        branch = self.drop(self.down(self.up(self.norm(x)).relu()))
        return branch + (self.share * x if self.training and self.share < 1 else x)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_blocks_are_passed_by_in_training_as_in_evaluation(share):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), *(Halved(share) for _ in range(3)), nn.Linear(8, 2))
    net = Supernet(model.eval(), torch.randn(3, 6))
    assert any(axis.kind == "depth" for axis in net.space.axes.values()) == (share == 1.0)
    assert ("1.depth is frozen: in training" in str(net.space)) == (share < 1.0), net.space
    assert int(model[1].norm.num_batches_tracked) == 0


def test_signal_passes_norms_whose_scales_start_near_zero():
    """Some libraries start them at random numbers of size 0.02."""
    torch.manual_seed(0)
    layers = [m for _ in range(8) for m in (nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.SiLU())]
    model = nn.Sequential(nn.Conv2d(3, 8, 1), *layers, nn.Flatten(), nn.Linear(32, 2))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 0, 0.02)
    net = Supernet(model.eval(), torch.randn(1, 3, 2, 2))
    assert len(net.space.axes) == 9, net.space
