import io

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

import nestling
from nestling import DataError, ModelError
from nestling.precision import alternatives, choose, fast_bfloat16, tried
from nestling.progress import Reporter
from nestling.weights import cloned, tensors_of

CPU = torch.device("cpu")
CONV, LINEAR = nn.Conv2d(1, 1, 1), nn.Linear(1, 1)


def test_names():
    assert str(choose("float32", CPU, CONV)) == "float32"
    assert str(choose("float32-channels-last", CPU, CONV)) == "float32, channels-last"
    assert str(choose("bfloat16", CPU, LINEAR)) == "bfloat16"
    auto = choose("auto", CPU, LINEAR)
    assert auto.mixed == fast_bfloat16(CPU)
    for name in ("float23", 16, None):
        with pytest.raises(ModelError, match="precision="):
            choose(name, CPU, LINEAR)


def test_autocast_is_on_only_where_it_is_asked_for():
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with choose(name, CPU, LINEAR).autocast(CPU):
            assert LINEAR(torch.ones(1, 1)).dtype == dtype


def test_other_weights_train_in_their_own_dtype():
    double = nn.Linear(1, 1).double()
    assert choose("auto", CPU, double).dtype == torch.float64
    assert not choose("auto", CPU, double).mixed
    with pytest.raises(ModelError, match="float32 weights"):
        choose("bfloat16", CPU, double)


def test_volumes_stay_as_they_are():
    both = nn.Sequential(nn.Conv3d(1, 1, 1), nn.Conv2d(1, 1, 1))
    for name in ("float32-channels-last", "bfloat16"):
        assert choose(name, CPU, both).memory_format == torch.contiguous_format
        assert choose(name, CPU, CONV).memory_format == torch.channels_last


class Viewing(nn.Module):
    """Takes no channels-last pictures: its view needs them in the order of the channels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 4 * 4, 3)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).relu().view(-1, 8 * 4 * 4))


class Indexed(Viewing):
    """Takes no bf16: sums over indices want one dtype."""

    def forward(self, x):
        x = self.fc(self.norm(self.conv(x)).relu().flatten(1))
        zeros = torch.zeros(len(x), 3, dtype=self.fc.weight.dtype)
        return zeros.index_add(0, torch.arange(len(x)), x)


class Convolved(Viewing):
    """Takes any layout."""

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).relu().flatten(1))


IMAGES, LABELS = torch.randn(8, 3, 8, 8), torch.arange(8) % 3
BATCHES = [(IMAGES, LABELS)] * 2


def net_of(kind, channels_last=False):
    torch.manual_seed(0)
    net = nestling.Supernet(kind(), IMAGES[:2])
    return net.to(memory_format=torch.channels_last) if channels_last else net


def is_plain(net):
    return net.model.conv.weight.is_contiguous()


def fit(net, **options):
    lines = io.StringIO()
    reporter = Reporter(console=Console(file=lines, width=400))
    given = {"epochs": 1, "optimizer": lambda p: torch.optim.SGD(p, lr=0.01)} | options
    menu = nestling.fit(net, BATCHES, BATCHES, progress=reporter, **given)
    return menu, lines.getvalue()


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("name", ["auto", "bfloat16", "float32-channels-last"])
@pytest.mark.parametrize("method", ["uniform", "individual"])
def test_a_model_that_takes_no_channels_last_trains_without(name, method):
    net = net_of(Viewing)
    menu, said = fit(net, precision=name, method=method, epochs=2)
    assert "channels-last" not in menu.facts["precision"]
    assert said.count("does not take") == 1
    assert "view" in said
    assert is_plain(net)
    for entry in menu:
        menu.module(entry.name)(IMAGES)


@pytest.mark.usefixtures("unmeasured")
def test_float32_is_plain():
    net = net_of(Convolved)
    menu, said = fit(net, precision="float32")
    assert menu.facts["precision"] == "float32"
    assert "does not take" not in said
    assert is_plain(net)
    fit(net, precision="float32-channels-last")
    assert not is_plain(net)


@pytest.mark.usefixtures("unmeasured")
def test_a_model_without_bf16_trains_in_float32(monkeypatch):
    monkeypatch.setattr("nestling.precision.fast_bfloat16", lambda device: True)
    menu, said = fit(net_of(Indexed))
    assert menu.facts["precision"] == "float32, channels-last"
    assert said.count("does not take bfloat16, channels-last") == 1
    with pytest.raises(DataError, match="accept"):
        fit(net_of(Indexed), precision="bfloat16")  # asked for by name


def test_a_trial_changes_nothing(same):
    net = net_of(Convolved)
    before, state = cloned(tensors_of(net.model)), torch.get_rng_state()
    wanted = alternatives("auto", choose("float32-channels-last", CPU, net.model))
    assert tried(wanted, net, IMAGES, LABELS, F.cross_entropy) == (wanted[0], "")
    assert same(before, tensors_of(net.model))
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert is_plain(net)


def test_what_fails_in_every_precision_is_not_blamed_on_it():
    net = net_of(Convolved)
    wanted = alternatives("bfloat16", choose("bfloat16", CPU, net.model))
    assert len(wanted) == 2
    assert tried(wanted, net, IMAGES[:, :2], LABELS, F.cross_entropy) == (wanted[0], "")
    net = net_of(Viewing)
    assert tried(wanted, net, IMAGES, LABELS, F.cross_entropy)[0] == wanted[1]
    found, why = tried(wanted, net, IMAGES, LABELS, lambda out, _: out.sum().nothing())
    assert (found, why) == (wanted[0], "")


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("failing", ["optimizer", "loss", "metric"])
def test_a_failed_fit_leaves_the_layout(channels_last, failing):
    net = net_of(Convolved, channels_last)
    subnet = net.subnet(net.space.spec(width=0.5))
    calls = []

    def fail(*_):
        calls.append(0)
        if len(calls) > (20 if failing == "loss" else 1):
            raise ArithmeticError("spoiled")
        return F.cross_entropy(*_)

    given = torch.optim.Adam(net.parameters()) if failing == "optimizer" else fail
    precision = "float32" if channels_last else "float32-channels-last"
    with pytest.raises((ModelError, DataError)):
        fit(net, precision=precision, epochs=9, **{failing: given})
    assert is_plain(net) is not channels_last
    subnet(IMAGES)
    for name, tensor in subnet.named_parameters():  # it follows the net
        if tensor.dim() == 4:
            shared = dict(net.named_parameters())[name]
            assert tensor.untyped_storage().data_ptr() == shared.untyped_storage().data_ptr()


@pytest.mark.parametrize("given", [torch.optim.Adam(LINEAR.parameters()), "sgd", 0.1, {"lr": 0.1}])
def test_an_optimizer_is_made_by_a_function(given):
    with pytest.raises(ModelError, match=r"function from parameters.*optimizer=lambda p"):
        fit(net_of(Convolved), optimizer=given)


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("kind", [Viewing, Convolved])
def test_a_resumed_training_keeps_what_was_found(kind, tmp_path, same):
    def interrupted(epoch_lines):
        def loss(outputs, targets):
            if len(epoch_lines) >= 20:
                raise ArithmeticError
            epoch_lines.append(0)
            return F.cross_entropy(outputs, targets)

        return loss

    given = {"precision": "bfloat16", "epochs": 3}
    whole = net_of(kind)
    expected, _ = fit(whole, loss=F.cross_entropy, **given)
    state = tmp_path / "state"
    with pytest.raises(DataError):
        fit(net_of(kind), loss=interrupted([]), checkpoint=state, **given)
    again = net_of(kind)
    given |= {"loss": F.cross_entropy, "checkpoint": state, "resume": True}
    for net in (again, net_of(kind)):  # the second has nothing left to train
        menu, _ = fit(net, **given)
        assert menu.facts == expected.facts
        assert is_plain(net) == is_plain(whole)
        assert same(tensors_of(whole.model), tensors_of(net.model))


def test_a_trial_of_a_module_alone_changes_nothing(same):
    net, alone = net_of(Viewing), Viewing()
    before = cloned(tensors_of(alone))
    wanted = alternatives("bfloat16", choose("bfloat16", CPU, net.model))
    found, why = tried(wanted, net, IMAGES, LABELS, F.cross_entropy, alone)
    assert found == wanted[1]
    assert "view" in why
    assert same(before, tensors_of(alone))
    assert all(p.grad is None for p in alone.parameters())
    assert alone.training
    assert alone.conv.weight.is_contiguous()
