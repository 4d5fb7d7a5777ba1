import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nestling
from nestling import DataError
from nestling.evaluation import accuracy
from nestling.search import Scorer
from nestling.weights import cloned


def test_every_example_counts_the_same(small):
    images, labels = small.pictures(50)
    model = small.seeded(small.ConvNet).eval()
    expected = (model(images).argmax(1) == labels).double().mean().item()
    for size in (50, 16, 7, 1):
        data = list(zip(images.split(size), labels.split(size), strict=True))
        assert nestling.evaluate(model, data) == pytest.approx(expected)


def test_modes_are_restored(small):
    model = small.seeded(small.ConvNet, dropout=0.5)
    model.train()
    model.norm1.eval()
    modes = [module.training for module in model.modules()]
    before = model.norm2.running_mean.clone()
    first = nestling.evaluate(model, small.batches())
    assert nestling.evaluate(model, small.batches()) == first
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model.norm2.running_mean, before)
    with pytest.raises(DataError):
        nestling.evaluate(model, [3])
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes(small, dtype):
    net = small.supernet(small.seeded(small.ConvNet).to(dtype), torch.randn(2, 1, 8, 8).to(dtype))
    data = [(images.to(dtype), labels) for images, labels in small.batches()]
    subnet = net.subnet(net.space.uniform[0])
    modes = [module.training for module in subnet.modules()]
    net.recalibrate(subnet, data)
    assert [module.training for module in subnet.modules()] == modes
    assert 0 <= nestling.evaluate(subnet, data) <= 1
    with pytest.raises(DataError, match="the model must accept"):
        nestling.evaluate(subnet, small.batches())


def test_other_metrics(small):
    model = nn.Linear(2, 1)
    data = [(torch.randn(4, 2), torch.randn(4, 1)), (torch.randn(2, 2), torch.randn(2, 1))]
    found = nestling.evaluate(model, data, lambda o, t: -((o - t) ** 2).mean())
    whole = [torch.cat(parts) for parts in zip(*data, strict=True)]
    assert found == pytest.approx(-((model(whole[0]) - whole[1]) ** 2).mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("data", "metric", "message"),
    [
        ([], accuracy, "at least one batch"),
        ([(torch.full((1, 2), torch.nan), torch.zeros(1))], accuracy, "NaN"),
        ([(torch.zeros(1, 3), torch.zeros(1))], accuracy, "must accept"),
        ([(torch.zeros(1, 2), torch.zeros(1))], lambda o, t: o[0], "one number"),
        ([(torch.zeros(1, 2), torch.zeros(1))], lambda o, t: float("nan"), "must be finite"),
    ],
)
def test_bad_data(data, metric, message):
    with pytest.raises(DataError, match=message):
        nestling.evaluate(nn.Linear(2, 2), data, metric)


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (torch.randn(4, 10), torch.randn(4, 10)),
        (torch.randn(4, 1), torch.randn(4, 1)),
        (torch.randn(4, 1), torch.randn(4)),
        (torch.randn(4), torch.randn(4)),
        (torch.randn(4), torch.ones(4).long()),
        (torch.randn(4, 1), torch.tensor([0.0, 1.0, 1.0, 0.0])),  # one logit: yes or no
        (torch.randn(4, 1), torch.tensor([[0.0], [1.0], [1.0], [0.0]])),
        (torch.randn(4, 1), torch.tensor([0, 1, 1, 0])),
        (torch.randn(4, 1, 2, 2), torch.zeros(4, 2, 2)),
        (torch.randn(4, 10), torch.ones(4, 1).long()),  # would be compared each with each
        (torch.randn(4, 10), torch.ones(1).long()),
        (torch.randn(4, 4), torch.eye(4).long()),
    ],
)
def test_accuracy_of_another_task_asks_for_a_metric(outputs, targets):
    with pytest.raises(DataError, match="pass metric="):
        nestling.evaluate(nn.Identity(), [(outputs, targets)])


def test_the_metric_that_is_proposed_for_one_logit_is_right():
    logits, targets = torch.tensor([[2.0], [-1.0], [0.5], [-3.0]]), torch.tensor([1.0, 0, 0, 1])
    with pytest.raises(DataError) as caught:
        nestling.evaluate(nn.Identity(), [(logits, targets)])
    proposed = re.search(r"metric=(lambda .*) \(larger", str(caught.value)).group(1)
    for shape in ((4,), (4, 1)):
        data = [(logits, targets.reshape(shape))]
        assert nestling.evaluate(nn.Identity(), data, eval(proposed)) == 0.5


def test_a_net_with_one_logit_is_refused_before_its_training(small):
    net = small.supernet(small.seeded(small.Mlp, outputs=1), torch.randn(2, 6))
    data = [(torch.randn(8, 6), (torch.arange(8) % 2).float()[:, None])] * 2
    before = cloned(net.state_dict())
    options = {"epochs": 1, "progress": False, "precision": "float32"}
    yes_or_no = F.binary_cross_entropy_with_logits
    with pytest.raises(DataError, match=r"two classes or more.*pass metric="):
        nestling.fit(net, data, data, loss=yes_or_no, **options)
    with pytest.raises(DataError, match=r"two classes or more.*pass metric="):
        Scorer(net, data)(net.space.full)
    with pytest.raises(DataError, match=r"one class alone.*give loss="):
        nestling.fit(net, data, **options)  # its cross-entropy is always 0
    assert all(torch.equal(before[name], each) for name, each in net.state_dict().items())


def test_accuracy_takes_class_numbers_that_are_floats():
    scores = torch.eye(3)
    found = nestling.evaluate(nn.Identity(), [(scores, torch.tensor([0.0, 1.0, 0.0]))])
    assert found == pytest.approx(2 / 3)
