"""The rivals in few bits: their quantisers against the papers' formulas, and what nets share."""

import copy
import itertools
import math
import re

import pytest
import torch
from comparison import protocols, recipes
from comparison.rivals import adabits, any_precision, layers
from made_results import TINY
from torch import nn

import nestling
from nestling.errors import ModelError
from nestling.training import Run


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    every = (1, 2, 4)
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(96, 3)),
    )
    bits = nestling.Bits(every, inputs=every, first=every, last=every, layers="3")
    return nestling.Supernet(model, torch.randn(4, 1, 8, 8), bits=bits)


def steps(value, count):
    """The nearest of so many even steps from 0 to 1, halves to even as Python rounds."""
    return round(value * count) / count


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_dorefa_is_the_papers(bits):
    torch.manual_seed(1)
    layer = any_precision.DoReFa(nn.Conv2d(2, 3, 3), bits)
    weight = layer.layer.weight
    most = max(math.tanh(abs(w)) for w in weight.flatten().tolist())
    mean = sum(abs(w) for w in weight.flatten().tolist()) / weight.numel()
    wanted = [
        mean * (2 * steps(math.tanh(w) / (2 * most) + 0.5, 2**bits - 1) - 1)
        for w in weight.flatten().tolist()
    ]
    torch.testing.assert_close(layer.weights(weight).flatten(), torch.tensor(wanted))
    assert layer.weights(weight).unique().numel() <= 2**bits
    x = torch.tensor([-0.5, 0.0, 0.41, 0.87, 3.0])
    given = [steps(min(max(v, 0.0), 1.0), 2**bits - 1) for v in x.tolist()]
    torch.testing.assert_close(layer.inputs(x), torch.tensor(given))


def test_dorefa_in_floating_point_leaves_inputs_and_bounds_weights():
    layer = any_precision.DoReFa(nn.Conv2d(2, 3, 3), 32)
    weight = layer.layer.weight
    bounded = weight.tanh() / weight.tanh().abs().max() * weight.abs().mean()
    torch.testing.assert_close(layer.weights(weight), bounded)
    x = torch.tensor([-2.0, 5.0])
    assert layer.inputs(x) is x


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_adabits_rounds_down_and_adjusts_the_scale(bits):
    torch.manual_seed(1)
    layer = adabits.ScaleAdjusted(nn.Conv2d(2, 5, 3), bits)
    weight = layer.layer.weight
    found = layer.weights(weight)
    most = max(math.tanh(abs(w)) for w in weight.flatten().tolist())
    codes = [
        min(math.floor((math.tanh(w) / most + 1) / 2 * 2**bits), 2**bits - 1)
        for w in weight.flatten().tolist()
    ]
    plain = torch.tensor([2 * (code + 0.5) / 2**bits - 1 for code in codes])
    deviation = 1 / math.sqrt(5 * 9)  # of 5 output channels of 3 x 3
    torch.testing.assert_close(found.flatten(), plain * deviation / plain.std())
    assert found.std().item() == pytest.approx(deviation)
    with torch.no_grad():
        layer.clip.fill_(-2.0)  # its sign does not matter
    x = torch.tensor([-1.0, 0.5, 1.7, 9.0])
    given = [2 * steps(min(max(v / 2, 0.0), 1.0), 2**bits - 1) for v in x.tolist()]
    torch.testing.assert_close(layer.inputs(x), torch.tensor(given))


@pytest.mark.parametrize("kind", [adabits.ScaleAdjusted, any_precision.DoReFa])
def test_gradients_of_a_deep_net_do_not_grow_as_bits_fall(kind):
    """They did, to infinity, where weights rounded down kept their negative mean."""
    torch.manual_seed(0)
    model = nestling.models.resnet20(num_classes=10)
    paths = [name for name, _ in model.named_modules() if re.match(r"layer.*conv[12]$", name)]
    trained = layers.Joint(model, paths, [8, 2], kind)
    x = nn.functional.interpolate(torch.randn(16, 3, 4, 4), size=16, mode="bilinear")  # smooth
    targets = torch.randint(0, 10, (16,))
    sizes = {}
    for count in (8, 2):
        trained.zero_grad()
        nn.functional.cross_entropy(trained.at(count).train()(x), targets).backward()
        found = [p.grad.norm() for p in trained.at(count).parameters()]
        sizes[count] = torch.stack(found).norm().item()
    assert 0.1 < sizes[2] / sizes[8] < 10


def test_weights_of_adabits_keep_their_mean_of_zero():
    torch.manual_seed(1)
    layer = adabits.ScaleAdjusted(nn.Conv2d(16, 16, 3), 2)
    found = layer.weights(nn.init.normal_(layer.layer.weight))
    assert abs(found.mean()) < 0.05 * found.std()


def test_bits_of_adabits_are_nested():
    """Fewer bits are the top ones of more."""
    unit = torch.rand(1000)
    more, fewer = (layers.rounded(unit, bits, down=True) * 2**bits for bits in (4, 2))
    assert torch.equal((more / 4).floor(), fewer)


def test_gradients_go_straight_through_and_to_the_clip():
    layer = adabits.ScaleAdjusted(nn.Conv2d(1, 1, 1), 2)
    with torch.no_grad():
        layer.clip.fill_(2.0)
    x = torch.tensor([-1.0, 0.5, 1.7, 9.0], requires_grad=True)
    layer.inputs(x).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]
    # d/dc of c * Q(x / c), straight through: Q - x / c within the range, and 1 beyond it.
    places = [steps(v / 2, 3) - v / 2 for v in (0.5, 1.7)]
    assert layer.clip.grad.item() == pytest.approx(1 + sum(places), abs=1e-5)


def test_nets_share_all_but_norms_and_clips(net):
    trained = layers.joint(net, [4, 2], adabits.ScaleAdjusted)
    four, two = trained.at(4), trained.at(2)
    assert trained.bits == [4, 2]
    assert isinstance(four[3], adabits.ScaleAdjusted)
    assert type(four[0]) is nn.Conv2d
    assert four[3].layer.weight is two[3].layer.weight
    assert four[0].weight is two[0].weight
    assert four[7].bias is two[7].bias
    assert four[4].weight is not two[4].weight
    assert four[3].clip is not two[3].clip
    x = torch.randn(8, 1, 8, 8)
    before = copy.deepcopy(two[4].running_mean)
    four.train()(x)
    assert torch.equal(two[4].running_mean, before)
    own = {id(p) for p in net.parameters()}
    assert not any(id(p) in own for p in trained.parameters())


def test_each_learns_from_the_one_above(net):
    trained = layers.joint(net, [4, 2, 1], any_precision.DoReFa)
    x, targets = torch.randn(8, 1, 8, 8), torch.randint(0, 3, (8,))
    outputs, values = [], []
    for module, loss in any_precision.taught(trained, None, net):
        outputs.append(module(x))
        values.append(loss(outputs[-1], targets).item())
    logs = [each.log_softmax(1) for each in outputs]
    wanted = [-logs[0].gather(1, targets[:, None]).mean().item()]
    wanted += [-(above.exp() * own).sum(1).mean().item() for above, own in itertools.pairwise(logs)]
    assert values == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("adabits", {}),
        ("any-precision", {}),
        ("any-precision", {"adam": False}),
        ("few-bits", {"bits": 2}),
    ],
)
def test_the_loss_of_every_one_falls(net, method, options):
    torch.manual_seed(2)
    x = torch.randn(96, 1, 8, 8)
    targets = x.flatten(1)[:, :3].argmax(1)
    batches = list(zip(x.split(32), targets.split(32), strict=True))
    run = Run(copy.deepcopy(net), batches, epochs=4, optimizer=protocols.optimizer(TINY))
    recipes.find(method)(run, **options)
    losses = [row["loss"] for row in run.log]
    assert losses[-1] < losses[0] - 0.05


def test_adabits_is_for_two_bits_and_more(net, monkeypatch):
    run = Run(copy.deepcopy(net), [(torch.randn(8, 1, 8, 8), torch.zeros(8).long())], epochs=1)
    assert set(adabits.adabits(run)) == {"4 bits", "2 bits"}
    monkeypatch.setattr(adabits, "counts_of", lambda space: [32, 1])
    with pytest.raises(ModelError, match=r"AdaBits is for 2 bits and more.* have \[32, 1\]"):
        adabits.adabits(run)


def test_decay_of_adabits_is_the_authors():
    made = adabits._decaying(
        protocols.optimizer(TINY), [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))]
    )
    assert [(g["weight_decay"], g["lr"]) for g in made.param_groups] == [(4e-5, 0.1), (0.0, 0.1)]


def test_recipes_are_found_by_name():
    assert recipes.find("any-precision") is any_precision.any_precision
    assert recipes.find("nested").__wrapped__ is nestling.methods.find("nested").__wrapped__
    assert recipes.is_rival("few-bits")
    assert not recipes.is_rival("layers")
    with pytest.raises(ModelError, match="unknown method 'adabit'"):
        recipes.find("adabit")
