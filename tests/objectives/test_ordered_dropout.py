"""One drawn subnet a step."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nestling
from nestling import ModelError, SpecError
from nestling.binding import binding
from nestling.objectives import draws_of, ordered_dropout


@pytest.fixture
def net(small):
    return small.supernet()


def test_a_step_is_one_subnet_in_training_on_the_labels(net, small):
    torch.manual_seed(0)
    images, labels = small.pictures(8)
    seen = set()
    for _ in range(40):
        ((subnet, loss),) = ordered_dropout(net)
        assert subnet.training
        counts = binding(subnet).counts
        seen.add(tuple(counts.values()))
        outputs = subnet(images)
        assert loss(outputs, labels) == F.cross_entropy(outputs, labels)
        assert subnet.conv1.weight.shape[0] == counts["conv1"]  # smaller, not masked
    assert len(seen) > 8
    assert all(2 <= count <= 8 for counts in seen for count in counts)


def test_gradients_are_those_of_a_masked_net_and_none_outside(net, small):
    """Against the full model in training mode, whose dropped channels are masked to zero."""
    images, labels = small.pictures(16)
    model = copy.deepcopy(net.model).train()
    ((subnet, loss),) = ordered_dropout(net, generator=torch.Generator().manual_seed(4))
    counts = binding(subnet).counts
    assert counts["conv1"] < 8
    assert counts["conv2"] < 8
    net.zero_grad()
    loss(subnet(images), labels).backward()

    def masked(x, name):
        return x * (torch.arange(8) < counts[name]).view(1, -1, 1, 1)

    x = masked(F.relu(model.norm1(model.conv1(images))), "conv1")
    x = masked(F.relu(model.norm2(model.conv2(x))), "conv2")
    F.cross_entropy(model.head(x.mean((2, 3))), labels).backward()
    for (name, found), expected in zip(net.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_the_same_draw_is_the_same_module_and_a_loss_of_ones_own(net):
    draws = draws_of(net.space)
    (one, given), (other, _) = (
        next(ordered_dropout(net, draws, loss=F.mse_loss, generator=torch.Generator()))
        for _ in "ab"
    )
    assert one is other
    assert given is F.mse_loss


def test_shared_statistics_are_moved_where_a_subnet_has_units(net, small):
    """Against moving averages kept by hand."""
    images, _ = small.pictures(16)
    shared = {n: b for n, b in net.model.named_buffers() if n.endswith("running_mean")}
    expected = {name: torch.zeros(8) for name in shared}
    torch.manual_seed(3)
    for _ in range(6):
        (step,) = [ordered_dropout(net, statistics="shared")]
        subnet, _ = next(step)
        features = subnet.conv1(images)
        counts = binding(subnet).counts
        kept = expected["norm1.running_mean"][: counts["conv1"]]
        kept += 0.1 * (features.mean((0, 2, 3)).detach() - kept)
        hidden = subnet.conv2(F.relu(F.batch_norm(
            features, None, None, subnet.norm1.weight, subnet.norm1.bias, training=True
        )))  # fmt: skip
        kept = expected["norm2.running_mean"][: counts["conv2"]]
        kept += 0.1 * (hidden.mean((0, 2, 3)).detach() - kept)
        subnet(images)
        assert next(step, None) is None
        for name, buffer in shared.items():
            torch.testing.assert_close(buffer, expected[name], rtol=1e-4, atol=1e-5)
    assert len(net._pool) > 1


def test_own_statistics_leave_the_nets_alone(net, small):
    images, _ = small.pictures(16)
    before = {name: buffer.clone() for name, buffer in net.model.named_buffers()}
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        for subnet, _ in ordered_dropout(net, generator=generator):
            if not binding(subnet).full:
                subnet(images)
    for name, buffer in net.model.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_it_learns(small):
    """A prefix of every axis ends better than chance, though none was trained as such alone."""
    net = small.supernet(small.seeded(small.Mlp, 64, 16), torch.randn(2, 64), step=2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    torch.manual_seed(0)
    data = [(x.flatten(1), y) for x, y in small.batches(192, 32)]
    for _ in range(12):
        for images, labels in data:
            for subnet, loss in ordered_dropout(net):
                loss(subnet(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    held_out = [(x.flatten(1), y) for x, y in small.batches(96, 32, seed=7)]
    for width in (0.25, 0.5, 1.0):
        assert nestling.evaluate(net.subnet(net.space.spec(width=width)), held_out) > 0.75


def test_bad_calls(net):
    with pytest.raises(ModelError, match="takes a supernet"):
        next(ordered_dropout(nn.Linear(2, 2)))
    with pytest.raises(SpecError, match=r"statistics= is one of own, shared, not 'share'; did you"):
        next(ordered_dropout(net, statistics="share"))
