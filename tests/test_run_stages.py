"""What a run keeps beside weights: extra parameters, what was made once, orders; also stopped."""

import os
import signal

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nestling import FileError, container, rankers
from nestling.interruption import Interrupted
from nestling.optimizers import add_group
from nestling.training import Run

EPOCHS = 2
STEPS = {"l1": 0, "noise": 6, "lasso": 6}  # that the ranker makes in 2 epochs of 3 batches


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.01)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1)


def method(run, by):
    """Rank, put in order, train, and do it again."""
    found = []
    for _ in range(2):
        scores = rankers.scores(run, by)
        found.append(scores)
        run.reorder(rankers.orders(run.net.space, scores))
        run.train_stage(lambda net: full(net, run.loss))
    return found


def full(net, loss):
    yield net.pooled(net.space.full).train(), loss


def start(small, path, by, optimizer, kill=None):
    calls = []

    def loss(outputs, targets):
        calls.append(None)
        if len(calls) == kill:
            os.kill(os.getpid(), signal.SIGTERM)
        return F.cross_entropy(outputs, targets)

    net = small.supernet(small.seeded(small.ConvNet, dropout=0.3))
    run = Run(
        net, small.batches(), EPOCHS, loss=loss, optimizer=optimizer, precision="float32",
        checkpoint=path,
    )  # fmt: skip
    return net, run


@pytest.mark.parametrize("optimizer", [sgd, adamw])
@pytest.mark.parametrize("by", STEPS)
def test_a_stop_anywhere_changes_nothing(small, same, tmp_path, by, optimizer):
    whole, run = start(small, tmp_path / "whole", by, optimizer)
    expected = method(run, by)
    ranking = STEPS[by]
    places = {1, ranking, ranking + 1, ranking + 6, 2 * ranking + 6, 2 * ranking + 7} - {0}
    for kill in sorted(places):
        path = tmp_path / f"{kill}"
        net, run = start(small, path, by, optimizer, kill=kill)
        with pytest.raises(Interrupted):
            method(run, by)
        net, run = start(small, path, by, optimizer)
        run.resume()
        found = method(run, by)
        assert same(net.state_dict(), whole.state_dict()), f"stopped in step {kill}"
        assert net.orders == whole.orders
        for one, other in zip(found, expected, strict=True):
            assert same(one, other)


class Extra(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(2))
        self.register_buffer("count", torch.zeros(()))


def test_extra_parameters_are_trained_without_decay(small):
    _, run = start(small, None, "l1", sgd)
    extra = Extra()

    def objective(own):
        extra.count += 1
        yield (
            own.pooled(own.space.full).train(),
            lambda out, y: F.cross_entropy(out, y) + extra.gain[0],
        )

    run.train_stage(objective, extra=extra, epochs=1)
    assert extra.count == 3
    assert extra.gain[0] < 0.95
    assert extra.gain[1] == 1  # no gradient, no decay


def test_an_extra_that_is_not_finite_is_divergence(small):
    _, run = start(small, None, "l1", sgd)
    extra = Extra()

    def objective(own):
        extra.gain.data[1] = float("nan")
        yield own.pooled(own.space.full).train(), F.cross_entropy

    with pytest.raises(Exception, match="diverged"):
        run.train_stage(objective, extra=extra)


def test_group_of_an_optimizer_without_decay():
    optimizer = torch.optim.Rprop([nn.Parameter(torch.ones(2))], lr=0.3)
    add_group(optimizer, nn.Linear(2, 2))
    assert len(optimizer.param_groups) == 2
    assert optimizer.param_groups[1]["lr"] == 0.3
    add_group(optimizer, nn.ReLU())
    assert len(optimizer.param_groups) == 2
    decaying = sgd([nn.Parameter(torch.ones(2))])
    add_group(decaying, nn.Linear(2, 2))
    assert [group["weight_decay"] for group in decaying.param_groups] == [0.1, 0.0]


def test_once_makes_once_and_keeps_copies(small):
    _, run = start(small, None, "l1", sgd)
    own = torch.ones(2)
    found = run.once(lambda: {"axis": own})
    own.zero_()
    assert found["axis"].tolist() == [1, 1]
    assert run.once(lambda: {"axis": own})["axis"].tolist() == [0, 0]


@pytest.mark.parametrize("orders", [{"conv1": [0]}, {"conv1": ["a"]}, {"nothing": [0]}, 3])
def test_a_checkpoint_of_wrong_orders_is_refused(small, tmp_path, orders):
    path = tmp_path / "state"
    _, run = start(small, path, "l1", sgd)
    method(run, "l1")
    header, tensors = container.read(path)
    header["run"]["orders"] = orders
    container.write(path, header, tensors)
    _, again = start(small, path, "l1", sgd)
    with pytest.raises(FileError):
        again.resume()
