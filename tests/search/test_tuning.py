"""Selective fine-tuning."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import nestling
from nestling import DataError, ModelError
from nestling.search import Scorer, Tuner
from nestling.weights import cloned, fill, tensors_of


@pytest.fixture
def net(small):
    return small.supernet()


def scorer(net, small):
    return Scorer(net, small.batches(64, 16, seed=5), calibrate=small.batches(64))


def test_only_the_slices_of_the_spec_change(net, small):
    before = cloned(tensors_of(net.model))
    spec = net.space.spec({"conv1": 4, "conv2": 6})
    score = scorer(net, small)
    reached = Tuner(net, small.batches(64), score, rate=0.1)(spec, 1.1, 2)
    assert reached == score(spec)
    after = tensors_of(net.model)
    moved = {name: (before[name] != after[name]) for name in before}
    assert moved["conv1.weight"][:4].any()
    assert not moved["conv1.weight"][4:].any()
    assert moved["conv2.weight"][:6, :4].any()
    assert not moved["conv2.weight"][6:].any()
    assert not moved["conv2.weight"][:, 4:].any()
    assert moved["head.weight"][:, :6].any()
    assert not moved["head.weight"][:, 6:].any()
    assert not moved["norm1.weight"][4:].any()
    assert not any(moved[name].any() for name in net.private)  # the full net's statistics
    assert all(parameter.grad is None for parameter in net.parameters())


def test_it_is_plain_sgd_on_the_subnet(net, small):
    """Against a loop of its own, on a packed copy."""
    spec, data = net.space.spec({"conv1": 4}), small.batches(64)
    own = nestling.pack(net.subnet(spec)).train()
    optimizer = torch.optim.SGD(own.parameters(), lr=0.01)
    for images, labels in data * 3:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(own(images), labels).backward()
        optimizer.step()
    Tuner(net, data, lambda spec: 0.0)(spec, 0.5, 3)
    tuned = dict(net.subnet(spec).named_parameters())
    for name, parameter in own.named_parameters():
        assert torch.allclose(tuned[name], parameter, atol=1e-6), name


def test_it_stops_when_the_accuracy_is_back(net, small):
    looks = []

    def score(spec):
        looks.append(spec)
        return 0.1 * len(looks)

    data = small.batches(128, 16)  # 8 batches, looked at every second one
    tuner = Tuner(net, data, score)
    before = cloned(tensors_of(net.model))
    assert tuner(net.space.full, 0.1, 5) == 0.1
    assert all(torch.equal(before[name], each) for name, each in tensors_of(net.model).items())
    looks.clear()
    assert tuner(net.space.full, 0.25, 5) == pytest.approx(0.3)
    assert len(looks) == 3
    looks.clear()
    assert tuner(net.space.full, 2.0, 2) == pytest.approx(0.9)  # the cap: 1 + 2 * 4 looks
    looks.clear()
    assert Tuner(net, data[:1], score)(net.space.full, 2.0, 2) == pytest.approx(0.3)


def test_it_raises_the_accuracy_of_a_cut_subnet(digits):
    net, train, held_out = digits
    before = cloned(tensors_of(net.model))
    score = Scorer(net, held_out, calibrate=train)
    spec = net.space.spec({"layer3.0.conv1": 8, "layer2.1.conv1": 4, "layer1.0.conv1": 4})
    start = score(spec)
    reached = Tuner(net, train, score)(spec, start + 0.02, 6)
    assert reached >= start + 0.02
    assert reached == score(spec)
    fill(net.model, before)


@pytest.mark.parametrize("own", [False, True])
def test_it_depends_on_the_global_seed_alone(net, small, own):
    generator = torch.Generator() if own else None
    data = DataLoader(
        TensorDataset(*small.pictures()), batch_size=16, shuffle=True, generator=generator
    )
    start, results = cloned(tensors_of(net.model)), []
    for seed in (1, 1, 2):
        list(data)  # moves its generator on
        fill(net.model, start)
        torch.manual_seed(seed)
        Tuner(net, data, lambda spec: 0.0)(net.space.full, 0.5, 1)
        results.append(net.model.conv1.weight.detach().clone())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_it_refuses_what_cannot_be_trained(net, small):
    for data in ([], iter(small.batches())):
        with pytest.raises(DataError, match="with a length"):
            Tuner(net, data, lambda spec: 0.0)
    diverging = Tuner(net, small.batches(), lambda spec: 0.0, rate=1e20)
    with pytest.raises(ModelError, match="must converge"):
        diverging(net.space.full, 0.5, 5)
