"""Channel execution as a method: what its menu holds, and in which order it leaves the net."""

import pytest
import torch
import torch.nn.functional as F

import nestling
from nestling.binding import binding

pytestmark = pytest.mark.usefixtures("unmeasured")


def fit(small, net=None, **options):
    net = net or small.supernet()
    options = {"epochs": 4, "progress": False, "precision": "float32", **options}
    return net, nestling.fit(
        net, small.batches(96, 16), small.batches(32), method="channel-execution", **options
    )


def test_the_menu_has_the_full_net_the_executed_counts_and_cuts(small):
    net, menu = fit(small, fractions=(1.0, 0.6, 0.1))
    space = net.space
    assert [list(entry.spec.values()) for entry in menu] == [[8, 8], [6, 6], [4, 4], [2, 2]]
    shares = [entry.macs / space.macs(space.full) for entry in menu]
    assert shares[0] == 1
    assert shares[1] <= 0.6
    assert shares[3] <= 0.1
    assert sorted(shares, reverse=True) == shares
    assert net.order != 0


def test_the_executed_counts_are_a_prefix_of_the_net(small, same):
    net, menu = fit(small)
    entry = next(e for e in menu if dict(e.spec) == {"conv1": 4, "conv2": 4})
    alone = nestling.pack(menu.module(entry.name))
    subnet = nestling.pack(net.subnet(entry.spec))
    assert same(dict(alone.named_parameters()), dict(subnet.named_parameters()))
    assert entry.accuracy > 0.6
    other = next(e for e in menu if dict(e.spec) == {"conv1": 2, "conv2": 2})
    tuned = dict(menu.module(other.name).named_parameters())
    shared = dict(net.subnet(other.spec).named_parameters())
    assert not torch.equal(tuned["conv1.weight"], shared["conv1.weight"])


def test_cuts_without_tuning_are_subnets_of_the_net(small, same):
    net, menu = fit(small, tune=0.0, fractions=(0.1,))
    assert len(menu) == 2
    for entry in menu:
        shared = net.subnet(entry.spec)
        assert same(
            dict(menu.module(entry.name).named_parameters()), dict(shared.named_parameters())
        )
        assert binding(shared) is not None


def test_cuts_are_tuned_at_a_tenth_of_the_rate(small):
    rates = []

    def sgd(parameters):
        made = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
        rates.append(made)
        return made

    seen = []
    step = torch.optim.SGD.step

    def spy(optimizer, *args):
        if optimizer in rates:
            seen.append((rates.index(optimizer), optimizer.param_groups[0]["lr"]))
        return step(optimizer, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", spy)
        fit(small, optimizer=sgd, fractions=(0.1,))
    assert {number for number, _ in seen} == {1}
    assert max(rate for _, rate in seen) == pytest.approx(0.005)
    assert len(seen) == 6


def test_the_full_entry_has_statistics_of_the_full_net(small):
    net, menu = fit(small)
    model = net.model.eval()
    seen = []
    handle = model.norm1.register_forward_pre_hook(lambda m, given: seen.append(given[0]))
    with torch.no_grad():
        for images, _ in small.batches(96, 16):
            model(images)
    handle.remove()
    mean = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    assert torch.allclose(model.norm1.running_mean, mean, atol=1e-5)
    assert menu.entries[0].spec == net.space.full


def test_counts_by_the_whole_net(small):
    net, menu = fit(small, net=small.supernet(step=1), scope="net", fractions=(0.2,))
    limit = net.space.macs(net.space.spec({"conv1": 4, "conv2": 4}))
    assert len(menu) == 2
    assert menu.entries[0].macs <= limit
    assert menu.entries[1].macs <= 0.2 * net.space.macs(net.space.full)


def test_other_methods_go_on_from_the_net(small):
    net, _ = fit(small)
    order = net.order
    menu = nestling.fit(net, small.batches(), small.batches(16), epochs=1, progress=False)
    assert net.order == order
    assert menu.entries[0].spec == net.space.full


def test_the_ranker_orders_the_net(small):
    net = small.supernet()
    orders = nestling.rank(net, "bandit", small.batches(96, 16), epochs=3, keep=0.5)
    net.reorder(orders)
    assert set(orders) == {"conv1", "conv2"}
    with pytest.raises(nestling.ModelError, match="at least 1 epoch"):
        nestling.rank(small.supernet(), "bandit", small.batches(), epochs=0)


def test_units_that_matter_are_found(small):
    """Half of the units are cut off from the classes: the bandit plays the others."""

    class Half(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one = torch.nn.Linear(6, 16)
            self.two = torch.nn.Linear(16, 3)
            self.register_buffer("gain", torch.tensor([1.0, 0.05] * 8))

        def forward(self, x):
            return self.two(F.relu(self.one(x)) * self.gain)

    torch.manual_seed(0)
    net = nestling.Supernet(Half(), torch.randn(2, 6), step=1)
    centres = 2 * torch.randn(3, 6)
    labels = torch.randint(3, (20, 32))
    data = [(torch.randn(32, 6) + centres[y], y) for y in labels]
    _, menu = (
        None,
        nestling.fit(
            net, data, data, method="channel-execution", epochs=10, progress=False, fractions=()
        ),
    )
    kept = set(net.orders["one"][:8])
    assert len(kept & set(range(0, 16, 2))) >= 7
    assert len(menu) == 1
    assert menu.entries[0].accuracy > 0.9
