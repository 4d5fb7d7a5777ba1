import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import nestling
from nestling import SpecError
from nestling.binding import binding
from nestling.objectives import listed
from nestling.objectives.listed import chances_of, drawn, largest_first


@pytest.fixture(scope="module")
def net(small):
    return small.supernet()


def members(net):
    """Five subnets, none of them uniform, out of order, one twice."""
    counts = [(2, 8), (4, 4), (8, 2), (6, 4), (6, 8), (4, 4)]
    return [net.space.spec({"conv1": one, "conv2": two}) for one, two in counts]


def specs_of(pairs):
    return [binding(subnet).counts for subnet, _ in pairs]


@given(draw=st.integers(0, 6), seed=st.integers(0, 99))
def test_a_step_has_the_full_net_some_members_and_the_smallest(net, draw, seed):
    listing = members(net)
    torch.manual_seed(seed)
    pairs = list(listed(net, listing, draw=draw))
    counts = specs_of(pairs)
    assert counts[0] == dict(net.space.full)
    smallest = min(listing, key=net.space.macs)
    assert counts[-1] == dict(smallest)
    between = counts[1:-1]
    rest = [dict(spec) for spec in set(listing) - {smallest}]
    assert len(between) == min(draw, len(rest))
    assert all(each in rest for each in between)
    assert len({tuple(each.items()) for each in between}) == len(between)  # none twice
    assert all(subnet.training for subnet, _ in pairs)


def test_members_are_drawn_evenly_over_the_cost(net):
    torch.manual_seed(0)
    listing = largest_first(net.space, members(net))
    chances = chances_of(net.space, listing)
    times = dict.fromkeys(listing, 0)
    for _ in range(2000):
        one, smallest = drawn(listing, chances, 1)
        assert smallest == listing[-1]
        times[one] += 1
    costs = [net.space.macs(spec) for spec in (net.space.full, *listing)]
    gaps = [costs[place] - costs[place + 2] for place in range(len(listing) - 1)]
    assert max(gaps) > 2 * min(gaps)  # the list is uneven
    for spec, gap in zip(listing, gaps, strict=False):
        assert abs(times[spec] - 2000 * gap / sum(gaps)) < 90  # four deviations
    assert times[listing[-1]] == 0


def test_members_of_equal_cost_can_all_be_drawn(net):
    spec = net.space.spec({"conv1": 4, "conv2": 4})
    listing = [spec] * 3 + members(net)[:1]
    chances = chances_of(net.space, listing)
    assert len(chances) == 3
    assert chances.min() > 0  # the middle one stands no way off its neighbours
    assert drawn(listing, chances, 3) == listing


def test_none_draws_all_and_the_full_net_once(net):
    listing = [*members(net), net.space.full]
    counts = specs_of(list(listed(net, listing, draw=None)))
    macs = [net.space.macs(each) for each in counts]
    assert len(counts) == 6
    assert macs == sorted(macs, reverse=True)
    assert macs[0] == net.space.macs(net.space.full)


def test_draws_repeat_under_a_seed(net):
    def draws(seed):
        torch.manual_seed(seed)
        return [specs_of(listed(net, members(net), draw=1)) for _ in range(8)]

    assert draws(3) == draws(3)
    assert draws(3) != draws(4)


def test_short_lists(net):
    (one, *_), full = members(net), net.space.full
    assert specs_of(listed(net, [one])) == [dict(full), dict(one)]
    assert specs_of(listed(net, [full])) == [dict(full)]
    assert specs_of(listed(net, [{"conv1": 2}])) == [dict(full), {"conv1": 2, "conv2": 8}]


@pytest.mark.parametrize("labels", [False, True], ids=["distilled", "labels"])
@pytest.mark.parametrize("draw", [2, None])
def test_losses_and_gradients_equal_an_independent_computation(net, small, draw, labels):
    """The sum over the passes, each on a net of its own, written out with logarithms."""

    def cross_entropy(outputs, targets):
        return -outputs.log_softmax(1)[torch.arange(len(targets)), targets].mean()

    images, targets = small.pictures(16)
    net.zero_grad()
    torch.manual_seed(5)
    found, counts = [], []
    for subnet, loss in listed(
        net, members(net), draw=draw, loss=cross_entropy if labels else None
    ):
        counts.append(dict(binding(subnet).counts))
        found.append(loss(subnet(images), targets))
        found[-1].backward()

    total = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    teacher = None
    for value, spec in zip(found, counts, strict=True):
        alone = nestling.pack(net.subnet(spec)).train()
        logits = alone(images)
        log = logits - logits.exp().sum(1, keepdim=True).log()
        if teacher is None or labels:
            expected = -log[torch.arange(16), targets].mean()
            teacher = log.detach().exp()
        else:
            expected = -(teacher * log).sum(1).mean()
        torch.testing.assert_close(value, expected)
        expected.backward()
        for name, p in alone.named_parameters():
            total[name][tuple(slice(n) for n in p.shape)] += p.grad
    assert len(found) == (4 if draw else 6)
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.grad, total[name], rtol=1e-4, atol=1e-6)


def test_distillation_with_a_loss_of_its_own(net):
    seen = []

    def distill(outputs, teacher):
        seen.append(teacher)
        return outputs.mean()

    def loss(outputs, targets):
        return outputs.sum()

    outputs = torch.ones(2, 3, requires_grad=True)
    pairs = listed(net, members(net), draw=0, loss=loss, distill=distill)
    assert [float(learn(outputs, None).detach()) for _, learn in pairs] == [6.0, 1.0]
    assert torch.equal(seen[0], outputs)
    assert not seen[0].requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draw": -1}, "draw= is a whole number of at least 0, or None"),
        ({"draw": 1.5}, "draw="),
        ({"draw": True}, "draw="),
        ({"draw": "2"}, "draw="),
        ({"members": []}, "members= lists at least one spec"),
        ({"members": [{"conv9": 2}]}, "unknown axis 'conv9'"),
        ({"members": [{"conv1": 3}]}, "cannot keep 3"),
    ],
)
def test_bad_lists_and_draws(net, options, message):
    with pytest.raises(SpecError, match=message):
        list(listed(net, options.pop("members", members(net)), **options))


def test_only_a_supernet_has_lists(small):
    with pytest.raises(nestling.ModelError, match="listed takes a supernet"):
        list(listed(small.ConvNet(), [{}]))
