"""Bits as axes: subnets in few bits are plain modules in every way: trained, packed, saved."""

from __future__ import annotations

import copy
import io
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from few_bits import WHOLE, clips_in, images, mixed, net_of
from small import ConvNet, Mlp, Skipping, seeded, supernet
from torch import nn

import nestling
from nestling import costs, models, quantize, rankers, testing
from nestling.bit_checks import check_bits
from nestling.bits import Bits
from nestling.coding import coded_layers
from nestling.compilation import Compilation
from nestling.costs.latency import Latency
from nestling.entry import names_for
from nestling.errors import ModelError, SpecError
from nestling.menu import menu_of
from nestling.narrowing import narrow
from nestling.offers import settle_offers
from nestling.quantize import FULL

pytestmark = pytest.mark.filterwarnings("ignore::nestling.errors.UncalibratedWarning")


@pytest.mark.parametrize("bits", [(2, 4, 8), WHOLE], ids=["weights", "all"])
def test_the_contract_of_bits_holds(bits):
    net = net_of(bits)
    testing.check_supernet(net, images())


def test_the_contract_notices_a_code_that_is_not_nested(monkeypatch):
    net = net_of()
    monkeypatch.setattr(quantize, "_places", _to_the_nearest)
    with pytest.raises(AssertionError, match=r"conv2 in .*top bits"):
        check_bits(net, images())


def _to_the_nearest(units, code):
    return torch.round(units * code.steps).clamp(code.least, code.most)


def test_the_full_net_is_the_users_own():
    net, model = net_of(WHOLE), seeded(lambda: ConvNet(16))
    full = net.subnet(net.space.full)
    assert list(full.state_dict()) == list(model.state_dict())
    assert torch.equal(full.eval()(images()), model.eval()(images()))
    assert type(full.conv2) is nn.Conv2d


def test_axes_say_which_layers_and_how_many_bits():
    net = net_of()
    assert [n for n, axis in net.space.axes.items() if axis.kind == "bits"] == ["conv2.bits"]
    axis = net.space.axes["conv2.bits"]
    assert axis.counts == (2, 4, 8, FULL)
    assert axis.ordered
    assert not axis.outer
    assert any("conv1, head keep floating-point weights" in note for note in net.space.notes)
    assert net.space.spec(width=0.5)["conv2.bits"] == FULL
    assert net.space.spec({"*.bits": 4})["conv2.bits"] == 4
    assert "the bits of a weight" in str(net.space)
    with pytest.raises(
        SpecError,
        match=r"cannot keep 3 of 32 bits: the net was made for others; choose one of .2, 4, 8, 32",
    ):
        net.subnet({"conv2.bits": 3})
    signs = {coding.module: coding.signed for coding in net_of(WHOLE).space.codings}
    assert signs == {"conv1": True, "conv2": False, "head": False}


def test_each_number_of_bits_has_a_clip_that_begins_as_fits_it():
    """Whatever other numbers there are; against rounding the inputs with clips near by."""
    net = nestling.Supernet(seeded(ConvNet), images(64), bits=Bits((2, 8), inputs=(2, 4, 8)))
    clips = {name: p.item() for name, p in net.named_parameters() if "input_clip" in name}
    assert list(clips) == [f"conv2.input_clip_{bits}" for bits in (2, 4, 8)]
    seen = []
    model = seeded(ConvNet).train()
    model.conv2.register_forward_pre_hook(lambda layer, args: seen.append(args[0].detach()))
    model(images(64))
    for bits, clip in zip((2, 4, 8), clips.values(), strict=True):
        errors = []
        for factor in (0.8, 1.0, 1.25):
            far = torch.tensor(clip * factor)
            rounded = quantize.quantised_inputs(seen[0], far, bits, signed=False)
            errors.append(float((rounded - seen[0]).abs().pow(3).mean()))
        assert errors[1] == min(errors), (bits, errors)
        one = nestling.Supernet(seeded(ConvNet), images(64), bits=Bits((2, 8), inputs=bits))
        alone = {n: p.item() for n, p in one.named_parameters() if "input_clip" in n}
        assert alone == {f"conv2.input_clip_{bits}": clip}
    assert clips["conv2.input_clip_2"] < clips["conv2.input_clip_4"] < clips["conv2.input_clip_8"]


def test_inputs_that_training_mode_drops_are_seen_in_evaluation():
    class Dropping(nn.Module):
        def __init__(self, share):
            super().__init__()
            self.first, self.drop = nn.Linear(6, 16), nn.Dropout(share)
            self.second, self.last = nn.Linear(16, 16), nn.Linear(16, 4)

        def forward(self, x):
            return self.last(self.second(self.drop(self.first(x).relu())).relu())

    found = []
    for share in (0.0, 1.0):
        torch.manual_seed(0)
        model, x = Dropping(share), torch.randn(32, 6)
        net = nestling.Supernet(model, x, bits=Bits((2, 4), inputs=4))
        found.append(net.model.second.input_clip_4.item())
    assert found[0] == found[1]


@pytest.mark.parametrize("drawn", [4, 8])
def test_a_subnet_has_the_clip_of_its_bits_alone(drawn):
    """A view of the net's own; packed copies, too, and gradients touch no other."""
    net = net_of(WHOLE)
    subnet = net.subnet({"conv2.bits": 2, "conv2.input_bits": drawn})
    name, other = f"conv2.input_clip_{drawn}", f"conv2.input_clip_{12 - drawn}"
    assert clips_in(subnet) == [name]
    shared = net.model.get_parameter(name)
    assert subnet.get_parameter(name).data_ptr() == shared.data_ptr()
    assert shared.shape == ()
    before = subnet.eval()(images())
    with torch.no_grad():
        net.model.get_parameter(other).mul_(3)
    assert torch.equal(subnet(images()), before)
    with torch.no_grad():
        shared.mul_(0.5)
    assert not torch.equal(subnet(images()), before)
    subnet(images()).square().sum().backward()
    assert float(shared.grad.abs()) > 0
    assert net.model.get_parameter(other).grad is None
    assert clips_in(nestling.pack(subnet)) == [name]
    assert clips_in(nestling.pack(subnet, integers=True)) == []
    assert clips_in(net.subnet({"conv2.bits": 2})) == []
    assert clips_in(net.subnet(net.space.full)) == []


def test_a_single_number_of_input_bits_has_its_clip_where_the_weight_is_in_few():
    net = net_of(Bits((2, 4), inputs=8))
    assert clips_in(net.model) == clips_in(net.subnet({"conv2.bits": 2})) == ["conv2.input_clip_8"]
    assert clips_in(net.subnet({"conv1": 8})) == []


def test_an_exported_copy_has_its_clip():
    net = net_of(WHOLE)
    packed = nestling.pack(net.subnet(mixed(net)).eval())
    program = torch.export.export(packed, (images(),))
    clips = [name for name in program.state_dict if "input_clip" in name]
    assert clips == clips_in(packed)
    assert clips
    torch.testing.assert_close(program.module()(images()), packed(images()))


def test_a_coded_layer_is_an_ordinary_one_to_look_at():
    subnet = net_of(WHOLE).subnet({"conv2.bits": 2, "conv2.input_bits": 4})
    assert isinstance(subnet.conv2, nn.Conv2d)
    assert "bias=False, bits=2" in str(subnet.conv2)
    named = dict(subnet.named_parameters())
    assert {"conv2.weight", "conv2.weight_scale", "conv2.input_clip_4"} <= named.keys()
    assert "conv1.weight_scale" not in named
    assert subnet.conv2.weight.unique().numel() <= 4 * 16
    assert not torch.equal(subnet.conv2.weight, named["conv2.weight"])


@pytest.mark.parametrize("bits", [(2, 4, 8), WHOLE], ids=["weights", "all"])
def test_gradients_of_several_subnets_add_up_in_the_shared_ones(bits):
    net = net_of(bits)
    specs = [mixed(net), net.space.full, net.space.spec({"conv2.bits": 2})]
    wanted = {}
    for spec in specs:
        net.zero_grad()
        net.subnet(spec).eval()(images()).square().sum().backward()
        for name, parameter in net.named_parameters():
            if parameter.grad is not None:
                wanted[name] = wanted.get(name, 0) + parameter.grad.clone()
    net.zero_grad()
    for spec in specs:
        net.subnet(spec).eval()(images()).square().sum().backward()
    found = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    assert "conv2.weight_scale" in found
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], msg=name)
    cut = found["conv2.weight_scale"] if bits == (2, 4, 8) else found["conv1.weight_scale"]
    assert bool((cut != 0).any())


def test_the_gradient_of_a_weight_goes_straight_through():
    net = net_of()
    with torch.no_grad():  # a few weights beyond the code's range
        net.model.conv2.weight[0, 0] = 5.0
    subnet = net.subnet({"conv2.bits": 2}).eval()
    subnet(images()).square().sum().backward()
    plain = nestling.pack(subnet)
    plain(images()).square().sum().backward()
    gradient = net.model.conv2.weight.grad
    beyond = net.model.conv2.weight.abs() > net.model.conv2.weight_scale.view(-1, 1, 1, 1)
    assert bool(beyond.any())
    assert bool((gradient[beyond] == 0).all())
    torch.testing.assert_close(gradient[~beyond], plain.conv2.weight.grad[~beyond])


def test_training_in_few_bits_learns():
    net = net_of(Bits((1, 2, 8), inputs=4, first=(2,), last=(2,)))
    labels = torch.arange(4) % 3
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    spec = net.space.spec({name: 2 for name in net.space.axes if name.endswith(".bits")})
    subnet, losses = net.subnet(spec).train(), []
    for _ in range(30):
        loss = F.cross_entropy(subnet(images()), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    changed = net_of(Bits((1, 2, 8), inputs=4, first=(2,), last=(2,)))
    for name in ("conv2.weight_scale", "conv2.input_clip_4", "conv2.weight"):
        before, after = changed.model.get_parameter(name), net.model.get_parameter(name)
        assert not torch.equal(before, after), name


@pytest.mark.parametrize("bits", [(2, 4, 8), WHOLE], ids=["weights", "all"])
def test_a_packed_copy_holds_the_rounded_numbers(bits):
    net = net_of(bits)
    subnet = net.subnet(mixed(net)).eval()
    packed = nestling.pack(subnet)
    assert type(packed.conv2) is nn.Conv2d
    assert not any("weight_scale" in name for name, _ in packed.named_parameters())
    assert torch.equal(packed(images()), subnet(images()))
    assert torch.equal(packed.conv2.weight, subnet.conv2.weight)
    assert not list(coded_layers(packed))
    assert list(coded_layers(subnet))
    buffer = io.BytesIO()
    torch.save(subnet, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    assert torch.equal(again(images()), subnet(images()))
    part = copy.deepcopy(subnet.conv2)
    assert torch.equal(part.weight, subnet.conv2.weight)


def test_absorbing_an_untouched_copy_changes_nothing():
    net = net_of(WHOLE)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.absorb(mixed(net), nestling.pack(net.subnet(mixed(net))))
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_absorbing_a_tuned_copy_keeps_the_bits_of_what_was_not_tuned():
    net = net_of()
    spec = net.space.spec({"conv2.bits": 4})
    packed = nestling.pack(net.subnet(spec))
    before = net.model.conv2.weight.detach().clone()
    with torch.no_grad():
        packed.conv2.weight[0] *= -1
    live = net.absorb(spec, packed)
    assert torch.equal(net.model.conv2.weight[1:], before[1:])
    torch.testing.assert_close(live.conv2.weight, packed.conv2.weight)
    packed.conv2.weight = nn.Parameter(packed.conv2.weight[:8].clone())
    with pytest.raises(SpecError, match=r"conv2.weight"):
        net.absorb(spec, packed)


def test_reordering_moves_the_scales_along():
    net = net_of(WHOLE)
    spec = net.space.spec({"conv2.bits": 2, "conv2.input_bits": 8})
    before = nestling.pack(net.subnet(spec)).double().eval()(images().double())
    net.reorder({"conv2": list(range(16))[::-1], "conv1": [*range(8, 16), *range(8)]})
    after = nestling.pack(net.subnet(spec)).double().eval()(images().double())
    torch.testing.assert_close(after, before)


def test_a_move_takes_bits_along():
    net = net_of()
    subnet = net.subnet({"conv2.bits": 4}).eval()
    net.to(torch.float64)
    assert subnet.conv2.weight.dtype == torch.float64
    check_bits(net, images().double())


# The compiler makes an instance of every autograd function, which torch itself warns of.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_it_computes_the_same():
    net = net_of(WHOLE)
    subnet = net.subnet(mixed(net)).train()
    run = Compilation("eager", print)
    run(subnet, images()).square().sum().backward()
    assert not run.state["failure"]
    found = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    subnet(images()).square().sum().backward()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, net.model.get_parameter(name).grad, msg=name)


def test_costs_follow_the_bits():
    net = net_of(WHOLE)
    space, full = net.space, net.space.full
    weights = {"conv1": 16 * 9, "conv2": 16 * 16 * 9, "head": 16 * 3}
    macs = {"conv1": 64 * 144, "conv2": 64 * 2304, "head": 48}
    four = space.spec({"conv2.bits": 4, "conv2.input_bits": 8})
    assert space.macs(four) == space.macs(full)
    assert costs.params(space, four) == sum(p.numel() for p in ConvNet(16).parameters())
    saved = costs.bytes_(space, full) - costs.bytes_(space, four)
    assert saved == weights["conv2"] * 4 - weights["conv2"] // 2 - 4 * 16
    wanted = 1024 * (macs["conv1"] + macs["head"]) + 32 * macs["conv2"]
    assert costs.bitops(space, four) == wanted
    assert costs.bitops(space, full) == 1024 * space.macs(full)
    for cost in (costs.params, costs.bytes_, costs.bitops):
        for name, axis in space.axes.items():
            rising = [cost(space, {name: count}) for count in axis.counts]
            assert rising == sorted(rising), (cost, name)


def test_bytes_are_those_of_the_packed_integers():
    net = net_of(Bits((3,)))
    spec = net.space.spec({"conv1": 8, "conv2": 8, "conv2.bits": 3})
    subnet = net.subnet(spec)
    stored = 0
    for name, tensor in subnet.state_dict().items():
        bits = 3 if name == "conv2.weight" else 8 * tensor.element_size()
        stored += math.ceil(tensor.numel() * bits / 8)
    assert net.space.bytes(spec) == stored


def test_a_menu_names_bits_and_offers_them_for_their_size():
    net = net_of()
    specs = [net.space.spec({"conv2.bits": 4}), net.space.spec({"conv1": 8, "conv2.bits": 2})]
    assert list(names_for(net.space, specs)) == ["m100-b4", "m50-b2"]
    data = [(images(8), torch.zeros(8, dtype=torch.long))]
    menu = nestling.make_menu(net, specs, data, calibrate=[images(8)])
    assert [entry.name for entry in menu] == ["full", "m100-b4", "m50-b2"]
    assert all(entry.offered for entry in menu)
    full, four, two = (replace(entry, accuracy=0.9, scored=None) for entry in menu)
    again = replace(four, name="again")
    times = {"full": 1.0, four.name: 2.0, two.name: 3.0, "again": 4.0}
    table = {name: Latency(time, time, time, 50) for name, time in times.items()}
    settled = settle_offers([full, four, two, again], table)
    assert [each.offered for each in settled] == [True, True, True, False]
    assert settled[-1].reason.startswith(f"slower than {four.name}")
    found = narrow(net.space, specs, _never, seconds=0)
    assert found.used(specs[0]) == dict(specs[0])


def _never(*given):
    raise AssertionError("bits are not timed")


@pytest.mark.usefixtures("unmeasured")
def test_methods_train_nets_with_bits_as_any_other():
    net = net_of((2, 8))
    labels = torch.arange(8) % 3
    data = [(images(8), labels)] * 2
    menu = nestling.fit(net, data, data, method="uniform", epochs=1, progress=False)
    assert len(menu) > 1
    spec = net.space.spec({"conv2.bits": 2})
    with pytest.raises(SpecError, match="stand-alone net has floating-point weights"):
        nestling.fit(net, data, data, method="individual", epochs=1, specs=[spec], progress=False)
    with pytest.raises(SpecError, match="stand-alone"):
        menu_of(net, {"a": (spec, nestling.pack(net.subnet(spec)))}, None, calibrate=None)


def test_rankers_leave_bits_alone():
    data = [(images(8), torch.arange(8) % 3)] * 2
    testing.check_ranker(rankers.find("l1"), net_of(WHOLE), data)


def test_weights_of_before_get_scales_of_their_own():
    net = net_of()
    model = ConvNet(16)
    with torch.no_grad():
        model.conv2.weight.mul_(100)
    before = net.model.conv2.weight_scale.detach().clone()
    net.load_state_dict(model.state_dict())
    ratio = net.model.conv2.weight_scale.detach() / before
    assert float(ratio.min()) > 5
    net.load_state_dict(net.state_dict())
    with pytest.raises(RuntimeError, match="Missing"):
        net.load_state_dict({"conv2.weight_scale": before})


# -- what cannot be ---------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [(0, 4), (9,), (4.0,), True, "48", (True,), 4], ids=repr)
def test_numbers_of_bits_are_checked(bits):
    with pytest.raises(SpecError, match="from 1 to 8"):
        supernet(bits=bits)


def test_a_sign_and_a_zero_take_more_than_a_bit():
    with pytest.raises(SpecError, match=r"inputs of 'conv1' may be negative.*2 and more"):
        supernet(bits=Bits((8,), inputs=(1, 8), first=(8,)))
    net = net_of(Bits((8,), inputs=(1, 8)))
    check_bits(net, images())


def test_no_bits_at_all_are_refused():
    with pytest.raises(SpecError, match="at least one number of bits"):
        supernet(bits=())


def test_a_layer_that_cannot_be_quantised_is_named_with_the_reason():
    with pytest.raises(ModelError, match="'norm1' cannot be quantised: a BatchNorm2d is neither"):
        supernet(bits=Bits(layers=("conv*", "norm1")))
    model = ConvNet()
    model.conv2.input_clip_3 = 1.0
    with pytest.raises(ModelError, match="has a 'input_clip_3' of its own"):
        supernet(model, bits=Bits(layers="conv2"))
    with pytest.raises(SpecError, match=r"layers= of Bits names 'conv3'.*did you mean 'conv"):
        supernet(bits=Bits(layers="conv3"))


def test_weights_that_are_no_numbers_are_refused():
    model = ConvNet()
    with torch.no_grad():
        model.conv2.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="NaN"):
        supernet(model, bits=(4,))
    net = net_of()
    with torch.no_grad():
        net.model.conv2.weight[0] = float("inf")
    with pytest.raises(ModelError, match=r"'conv2'.*NaN or infinite.*diverged"):
        nestling.pack(net.subnet({"conv2.bits": 4}))


def test_weights_beyond_their_scale_are_refused():
    net = net_of()
    weights = {name: t for name, t in net.state_dict().items() if "scale" not in name}
    with torch.no_grad():
        net.model.conv2.weight_scale.mul_(1e-6)
    with pytest.raises(ModelError, match=r"100% of the weights of 'conv2' lie beyond"):
        nestling.pack(net.subnet({"conv2.bits": 4}))
    net.load_state_dict(weights)
    nestling.pack(net.subnet({"conv2.bits": 4}))


def test_a_net_of_first_and_last_layers_alone_says_so():
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    with pytest.raises(ModelError, match=r"only 0, 2 can be quantised.*first="):
        supernet(model, torch.randn(2, 6), bits=(4,))
    with pytest.raises(ModelError, match=r"no layer of .* can be quantised"):
        supernet(_Bare(), torch.randn(2, 6), bits=(4,))


class _Bare(nn.Module):
    """Without a layer of torch's."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.randn(16, 6))
        self.two = nn.Parameter(torch.randn(3, 16))

    def forward(self, x):
        return F.linear(F.relu(F.linear(x, self.one)), self.two)


class _Tied(nn.Module):
    """Two layers of one weight, a transposed convolution, and a layer with a computed weight."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.left = nn.Conv2d(8, 8, 3, padding=1)
        self.right = nn.Conv2d(8, 8, 3, padding=1)
        self.right.weight = self.left.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))
        self.up = nn.ConvTranspose2d(8, 8, 1)
        self.good = nn.Conv2d(8, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 1, groups=8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.left(F.relu(self.stem(x)))) + self.right(x.expand(-1, 8, -1, -1))
        x = self.good(self.up(self.normed(F.relu(x))))
        return self.head(self.depthwise(x).mean((2, 3)))


def test_layers_that_cannot_be_quantised_keep_floating_point_and_a_note_says_why():
    net = net_of((2, 8), _Tied, images())
    assert [coding.module for coding in net.space.codings] == ["good"]
    notes = "\n".join(net.space.notes)
    for text in (
        "left cannot be quantised: its weight is shared with other modules",
        "normed cannot be quantised: its weight is no parameter of its own",
        "up cannot be quantised: a ConvTranspose2d",
        "depthwise cannot be quantised: it has one weight a channel",
    ):
        assert text in notes
    check_bits(net, images())


class _Caching(nn.Conv2d):
    """Does not read its weight when it runs, but what it noted of it."""

    def forward(self, x):
        return F.conv2d(x, self._parameters["weight"], self.bias, padding=1)


def test_the_proof_takes_inputs_in_any_memory_format():
    """Sums in another order differ in the last digits, which is no fault of the model."""
    torch.manual_seed(0)
    pictures = torch.randn(16, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    model = seeded(models.resnet20, width=8)
    net = nestling.Supernet(model, pictures, bits=Bits((2, 4), inputs=(2, 4)))
    assert len(net.space.codings) > 15


def test_a_layer_that_does_not_run_on_its_weight_is_let_go():
    def model():
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            _Caching(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 2, 1),
        )

    net = net_of((2, 8), model, images())
    assert [coding.module for coding in net.space.codings] == ["4"]
    assert any(note.startswith("2 stays in floating point") for note in net.space.notes)
    assert "2.weight_scale" not in dict(net.named_parameters())
    check_bits(net, images())


@pytest.mark.parametrize("kind", ["residual", "attention", "mlp"])
def test_depth_heads_and_bits_mix(kind):
    net, inputs = {"residual": _residual, "attention": _attention, "mlp": _mlp}[kind]()
    kinds = {axis.kind for axis in net.space.axes.values()}
    assert "bits" in kinds
    assert len(kinds) > 1
    check_bits(net, inputs)
    testing.check_full(net, inputs)


def _residual():
    x = images(2)
    return supernet(seeded(Skipping), x, bits=Bits((1, 4), inputs=4)), x


def _attention():
    layer = seeded(nn.TransformerEncoderLayer, 16, 4, 32, batch_first=True, dropout=0.0)
    model = nn.Sequential(nn.Linear(6, 16), layer, nn.Linear(16, 3))
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    return nestling.Supernet(model, x, bits=Bits((2, 8), inputs=8)), x


def _mlp():
    x = torch.randn(3, 6)
    return supernet(seeded(Mlp, width=16), x, bits=Bits((3,), first=(8,), last=(8,))), x
