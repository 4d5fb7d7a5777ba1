"""Joint training of a list, as a stage of a run."""

import pytest
import torch
import torch.nn.functional as F

from nestling import ModelError, SpecError
from nestling.binding import binding
from nestling.joint import Joint, check_start, weights_of
from nestling.spec import Space
from nestling.training import Run
from nestling.weights import cloned, tensors_of


def run_of(small, net=None, **options):
    settings = {"optimizer": small.sgd, "precision": "float32", **options}
    return Run(net or small.supernet(), small.batches(), 2, **settings)


def members(net):
    counts = [(2, 8), (4, 4), (8, 2), (6, 4), (6, 8)]
    return [net.space.spec({"conv1": one, "conv2": two}) for one, two in counts]


@pytest.mark.parametrize("own_norms", [False, True])
def test_the_trained_subnets_are_those_of_the_list(small, own_norms):
    run = run_of(small)
    listing = members(run.net)
    found = Joint(own_norms=own_norms).train(run, listing)
    assert list(found) == listing
    for spec, subnet in found.items():
        assert binding(subnet).counts == dict(spec)
        assert bool(binding(subnet).own) == own_norms
        same = torch.equal(subnet.norm1.weight, run.net.model.norm1.weight[: spec["conv1"]])
        assert same != own_norms
        assert subnet.conv1.weight.data_ptr() == run.net.model.conv1.weight.data_ptr()
    full = run.net.space.full
    (whole,) = Joint(own_norms=own_norms).train(run_of(small), [full]).values()
    assert not binding(whole).own


def test_all_learn_the_labels_first_and_then_the_full_net(small):
    seen = []

    def loss(outputs, targets):
        seen.append("labels")
        return F.cross_entropy(outputs, targets)

    def distill(outputs, teacher):
        seen.append("full net")
        return F.mse_loss(outputs, teacher)

    run = run_of(small, loss=loss)
    Joint(draw=1, labels_first=0.5, distill=distill).train(run, members(run.net))
    early = ["labels"] * 3  # passes a step: full, one drawn, smallest
    assert seen == early * 3 + ["labels", "full net", "full net"] * 3
    seen.clear()
    Joint(draw=0, labels_first=0.0, distill=distill).train(run_of(small, loss=loss), listing(run))
    assert seen == ["labels", "full net"] * 6
    with pytest.raises(ModelError, match=r"labels_first=0.5 lets subnets .* give distill= too"):
        Joint(draw=0, labels_first=0.5).train(run_of(small, loss=loss), listing(run))


def test_without_a_share_labels_teach_throughout_or_in_the_first_half(small):
    seen = []

    def loss(outputs, targets):
        seen.append("labels")
        return F.cross_entropy(outputs, targets)

    def distill(outputs, teacher):
        seen.append("full net")
        return F.mse_loss(outputs, teacher)

    Joint(draw=0).train(run_of(small, loss=loss), listing(run_of(small)))
    assert seen == ["labels"] * 12
    seen.clear()
    Joint(draw=0, distill=distill).train(run_of(small, loss=loss), listing(run_of(small)))
    assert seen == ["labels"] * 6 + ["labels", "full net"] * 3


def listing(run):
    return members(run.net)


def test_draws_follow_the_seed(small):
    def trained(seed):
        run = run_of(small, seed=seed)
        Joint(draw=1).train(run, members(run.net))
        return cloned(tensors_of(run.net.model))["conv1.weight"]

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


def test_the_order_and_repeats_of_the_list_change_nothing(small):
    weights = []
    for change in (lambda each: each, lambda each: [*each[::-1], each[0]]):
        run = run_of(small)
        Joint(draw=1).train(run, change(members(run.net)))
        weights.append(cloned(tensors_of(run.net.model)))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_costs_are_counted_once_not_in_every_step(small, monkeypatch):
    run = run_of(small)
    counted, macs = [], Space.macs
    monkeypatch.setattr(
        Space, "macs", lambda space, spec: counted.append(spec) or macs(space, spec)
    )
    monkeypatch.setattr(
        run, "train_stage", lambda objective, **_: counted.clear() or list(objective(0))
    )
    Joint(draw=1).train(run, members(run.net))
    assert counted == []


def test_data_and_epochs_of_its_own(small):
    class Seen(list):
        times = 0

        def __iter__(self):
            self.times += 1
            return super().__iter__()

    more, run = Seen(small.batches(64)), run_of(small)
    Joint(data=more, epochs=3).train(run, members(run.net))
    assert more.times == 3
    assert [row["epoch"] for row in run.log] == [1, 2, 3]
    assert run.done == pytest.approx(11 / 12)  # before the last of 3 x 4 steps


def test_more_members_than_the_pool_holds_are_made_once(small, monkeypatch):
    net = small.supernet(step=1)
    made, build = [], net.subnet
    monkeypatch.setattr(net, "subnet", lambda spec: made.append(spec) or build(spec))
    every = [net.space.spec({"conv1": n, "conv2": m}) for n in range(1, 9) for m in range(1, 9)]
    Joint(draw=3).train(run_of(small, net), [*every, every[0]])
    assert len(made) == 64 + 65  # to train, and what is returned


def test_weights_are_copied_once(small):
    run = run_of(small)
    kept = weights_of(run)
    before = cloned(kept)
    run.train_stage(lambda net: iter([(net.pooled(net.space.full).train(), F.cross_entropy)]))
    assert all(torch.equal(kept[name], before[name]) for name in before)
    assert not torch.equal(kept["conv1.weight"], run.net.model.conv1.weight)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), "x", True])
def test_labels_first_is_a_share(share):
    with pytest.raises(ModelError, match="labels_first= is a share from 0 to 1"):
        Joint(labels_first=share)


def test_other_mistakes(small):
    with pytest.raises(SpecError, match="draw="):
        Joint(draw=1.0)
    with pytest.raises(ModelError, match="start= is one of given, ranked"):
        check_start("random")
    run = run_of(small)
    with pytest.raises(SpecError, match="at least one spec"):
        Joint().train(run, [])
