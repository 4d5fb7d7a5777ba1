import io

import pytest
import torch
from rich.console import Console

import nestling
from nestling import ModelError, SpecError, methods
from nestling.models import initialize
from nestling.objectives.sandwich import task_loss
from nestling.progress import Reporter
from nestling.training import Run

pytestmark = pytest.mark.usefixtures("unmeasured")


def test_names_and_recipes():
    assert {"uniform", "individual"} <= set(methods.names())
    for name in methods.names():
        recipe = methods.find(name)
        assert recipe.__name__ == name.replace("-", "_")
        assert recipe.__doc__
        assert methods.options(recipe)


@pytest.mark.parametrize(
    ("name", "message"),
    [("unifrom", "did you mean 'uniform'"), ("xyz", "the methods are"), (3, "unknown method 3")],
)
def test_unknown_methods(small, name, message):
    with pytest.raises(ModelError, match=message):
        nestling.fit(small.supernet(), small.batches(), method=name, progress=False)


@pytest.mark.parametrize("name", methods.names())
def test_unknown_options_name_the_allowed_ones(small, name):
    with pytest.raises(ModelError, match=r"no option 'fraction'; did you mean 'fractions'.*are"):
        nestling.fit(small.supernet(), small.batches(), method=name, fraction=1, progress=False)


@pytest.mark.parametrize("options", [{"fractions": []}, {"fractions": (2,)}, {"low": 3}])
def test_bad_options_are_refused_before_training(small, options):
    net = small.supernet()
    with pytest.raises(SpecError):
        nestling.fit(net, small.batches(), epochs=1, progress=False, **options)
    assert torch.equal(net.state_dict()["head.weight"], small.seeded(small.ConvNet).head.weight)


@pytest.mark.parametrize("name", methods.names())
def test_every_method_makes_a_menu(small, name):
    """The contract of a method: named subnets of the space, the full net first, calibrated."""
    net = small.supernet()
    menu = nestling.fit(
        net, small.batches(), small.batches(16), method=name, epochs=1, progress=False
    )
    assert len(menu) >= 3
    assert menu.entries[0].spec == net.space.full
    for entry in menu:
        assert entry.macs == net.space.macs(entry.spec)
        assert 0 <= entry.accuracy <= 1
        module = menu.module(entry.name)
        assert not module.training
        assert module(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


def test_individual_nets_can_start_from_what_their_subnets_have(small):
    starts = {}
    for start in ("fresh", "given"):
        net = small.supernet()
        spec = net.space.spec(width=0.5)
        run = Run(net, small.batches(), 1, precision="float32")
        seen = []
        run.train_stage = lambda objective, alone, **_: seen.append(alone)
        methods.find("individual")(run, specs=[spec], start=start)
        starts[start] = seen[0].state_dict()
    given = nestling.pack(net.subnet(spec)).state_dict()
    assert starts["given"].keys() == given.keys()
    assert all(torch.equal(starts["given"][name], given[name]) for name in given)
    assert not torch.equal(starts["fresh"]["conv1.weight"], given["conv1.weight"])


def test_individual_nets_are_their_own(small):
    net = small.supernet()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    spec = net.space.spec(width=0.5)
    menu = nestling.fit(
        net, small.batches(), small.batches(16), method="individual", epochs=1, specs=[spec],
        progress=False,
    )  # fmt: skip
    assert all(torch.equal(before[name], p) for name, p in net.named_parameters())
    (entry,) = menu
    module = menu.module(entry.name)
    start = initialize(nestling.pack(net.subnet(spec)), seed=0)
    shapes = {name: p.shape for name, p in module.named_parameters()}
    assert shapes == {name: p.shape for name, p in start.named_parameters()}
    assert not torch.equal(module.conv1.weight, start.conv1.weight)
    module.conv1.weight.data.zero_()
    assert menu.module(entry.name).conv1.weight.any()
    with pytest.raises(SpecError, match="specs="):
        nestling.fit(net, small.batches(), method="individual", specs=[], progress=False)


def test_uniform_learns_from_the_labels_first(small, monkeypatch):
    """In the first half all subnets learn the labels; then the narrower ones the full net."""
    seen = []

    def spy(net, **options):
        seen.append(options["loss"])
        return nestling.sandwich(net, **options)

    monkeypatch.setattr("nestling.methods.uniform.sandwich", spy)
    batches = small.batches()
    nestling.fit(small.supernet(), batches, epochs=2, labels_first=0.5, progress=False)
    hard = task_loss
    assert seen == [hard] * len(batches) + [None] * len(batches)


def test_uniform_refuses_a_share_above_one(small):
    with pytest.raises(ModelError, match="share from 0 to 1, but it is 2"):
        nestling.fit(small.supernet(), small.batches(), labels_first=2, progress=False)


def wide(small):
    """The cost of this net falls with its width, not with the square of it."""
    net = nestling.Supernet(
        nestling.models.mlp(64, (256,), num_classes=10), torch.randn(2, 64), step=8
    )
    data = [(torch.randn(8, 64), torch.randint(10, (8,)))]
    return net, data


def test_uniform_trains_all_that_it_offers(small, monkeypatch):
    trained = []

    def spy(net, **options):
        trained.append(net.space.spec(width=options["low"]))
        return nestling.sandwich(net, **options)

    monkeypatch.setattr("nestling.methods.uniform.sandwich", spy)
    net, data = wide(small)
    menu = nestling.fit(net, data, epochs=2, progress=False)
    narrowest = min((entry.spec for entry in menu), key=net.space.macs)
    assert net.space.macs(narrowest) < net.space.macs(net.space.spec(width=0.25))
    assert trained == [narrowest] * 2


def test_uniform_offers_nothing_below_low(small):
    out = io.StringIO()
    reporter = Reporter(console=Console(file=out, width=200))
    net, data = wide(small)
    menu = nestling.fit(net, data, epochs=1, low=0.25, progress=reporter)
    least = net.space.spec(width=0.25)
    assert all(entry.spec[axis] >= least[axis] for entry in menu for axis in least)
    assert len(menu) >= 3
    assert "fractions 0.15, 0.1 are left out" in out.getvalue()
    with pytest.raises(SpecError, match="lower low="):
        nestling.fit(net, data, epochs=1, low=0.5, fractions=(0.1,), progress=False)


@pytest.mark.parametrize("loss", [None, torch.nn.functional.cross_entropy])
def test_uniform_distils_with_a_loss_of_its_own(small, loss):
    """After the labels-first share, the narrower ones learn from the full net's outputs."""
    seen = []

    def distill(outputs, teacher):
        seen.append(teacher.requires_grad)
        return torch.nn.functional.mse_loss(outputs, teacher)

    batches = small.batches()
    nestling.fit(
        small.supernet(), batches, epochs=2, random=1, loss=loss, distill=distill, progress=False
    )
    assert seen == [False] * (2 * len(batches))
