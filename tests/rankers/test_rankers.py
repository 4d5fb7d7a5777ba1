"""What holds for every ranker; each is found by its name."""

import copy
import json
from contextlib import nullcontext

import pytest
import torch

import nestling
from nestling import DataError, ModelError, rankers
from nestling.axes.tracer import trace
from nestling.header import space_from_json, space_to_json
from nestling.objectives.sandwich import task_loss
from nestling.testing import check_ranker
from nestling.training import Run
from nestling.weights import is_channels_last

TRAINED = ("bandit", "lasso", "noise", "slimming")
DATA = ("fisher", "taylor", *TRAINED)


def test_names_and_functions():
    assert {"l1", "l2", "scale", "taylor", "fisher", "noise", "lasso", "random"} <= set(
        rankers.names()
    )
    for name in rankers.names():
        ranker = rankers.find(name)
        assert ranker.__name__ == name.replace("-", "_")
        assert ranker.__doc__


@pytest.mark.parametrize("name", rankers.names())
def test_every_ranker_keeps_the_contract(ranked, name):
    net, batches = ranked
    check_ranker(rankers.find(name), net, batches, trains=name in TRAINED)


def test_contract_finds_what_is_wrong(nets):
    net, batches = nets("joined")
    right = rankers.find("l1")

    def check(ranker):
        check_ranker(ranker, net, batches)

    def forgets(run):
        return {name: score for name, score in right(run).items() if name != "left"}

    def writes(run):
        next(run.net.parameters()).data.add_(1)
        return right(run)

    calls = []

    def wavers(run):
        calls.append(None)
        return {name: len(calls) % 2 * score for name, score in right(run).items()}

    def backward(run):
        sum(p.sum() for p in run.net.parameters()).backward()
        return right(run)

    with pytest.raises(ModelError, match="'left' of 8 units got nothing"):
        check(forgets)
    with pytest.raises(AssertionError, match=r"ranking changed 'left\.weight'"):
        check(writes)
    with pytest.raises(AssertionError, match="other orders the second time"):
        check(wavers)
    with pytest.raises(AssertionError, match="left gradients"):
        check(backward)


@pytest.mark.parametrize("name", rankers.names())
def test_public_rank(nets, name, same):
    net, batches = nets("joined")
    before, random_state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    orders = nestling.rank(net, name, batches, epochs=1)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert same(net.state_dict(), before) == (name not in TRAINED)
    net.reorder(orders)
    assert net.orders["left"] == orders["left"]


@pytest.mark.parametrize("fails", ["in the ranker", "in its scores", ""])
def test_a_ranker_that_fails_after_its_training_leaves_the_layout(nets, monkeypatch, fails):
    net, batches = nets("residual")

    find = rankers.find

    def ranker(run):
        run.train_stage(lambda net: iter([(net.pooled(net.space.full).train(), task_loss)]))
        assert is_channels_last(net.parameters())
        if fails == "in the ranker":
            raise ZeroDivisionError
        return {} if fails else find("l1")(run)

    monkeypatch.setattr("nestling.rankers.find", lambda name: ranker)
    assert not is_channels_last(net.parameters())
    subnet = net.subnet(net.space.full).eval()
    with pytest.raises((ZeroDivisionError, ModelError)) if fails else nullcontext():
        nestling.rank(net, "own", batches, epochs=1, precision="float32-channels-last")
    assert is_channels_last(net.parameters()) == (not fails)
    assert is_channels_last(subnet.parameters()) == (not fails)


@pytest.mark.parametrize("name", DATA)
def test_data_is_asked_for(nets, name):
    net, _ = nets("joined")
    with pytest.raises((DataError, ModelError), match=r"give train="):
        nestling.rank(net, name)


def test_unknown_names_and_options(nets):
    net, batches = nets("joined")
    with pytest.raises(ModelError, match="unknown ranker 'tailor'; did you mean 'taylor'"):
        nestling.rank(net, "tailor")
    with pytest.raises(ModelError, match="no option 'directions'; did you mean 'direction'"):
        nestling.rank(net, "noise", batches, directions="ascending")
    with pytest.raises(ModelError, match="its options are none"):
        nestling.rank(net, "l1", batches=3)


def test_orders_are_stable_and_best_first(nets):
    net, _ = nets("joined")
    scores = {"left": torch.arange(8.0), "right": torch.zeros(4), "gated": torch.ones(8)}
    scores["right"][2] = 1
    found = rankers.orders(net.space, scores)
    assert found["left"] == (7, 6, 5, 4, 3, 2, 1, 0)
    assert found["right"] == (2, 0, 1, 3)
    assert found["gated"] == tuple(range(8))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"left": torch.zeros(7)}, r"'left' of 8 units got \(7,\) numbers"),
        ({"left": torch.full((8,), torch.nan)}, "finite"),
        ({"wrong": torch.zeros(3)}, "'wrong' of 0 units"),
    ],
)
def test_scores_that_are_none(nets, wrong, message):
    net, _ = nets("joined")
    scores = {axis.name: torch.zeros(axis.size) for axis in net.space.axes.values()}
    with pytest.raises(ModelError, match=message):
        rankers.orders(net.space, scores | wrong)


def test_ordered_axes_are_left_out():
    net = nestling.Supernet(nestling.models.resnet20(), torch.randn(1, 3, 16, 16))
    assert any(axis.ordered for axis in net.space.axes.values())
    found = nestling.rank(net, "l1")
    assert set(found) == {n for n, axis in net.space.axes.items() if not axis.ordered}


MADE = {
    "residual": {
        "stem": [("stem.weight", 0), ("two.weight", 0)],
        "one": [("one.weight", 0)],
        "wide": [("wide.weight", 0), ("shortcut.weight", 0)],
    },
    "grouped": {
        "stem.paths": [("stem.weight", 0), ("grouped.weight", 0)],
        "stem": [("stem.weight", 0)],
        "grouped": [("grouped.weight", 0)],
        "point": [("point.weight", 0)],
        "up": [("up.weight", 1)],
    },
    "joined": {n: [(f"{n}.weight", 0)] for n in ("left", "right", "gated")},
    "attention": {
        "embedding": [("embedding.weight", 1), ("out.weight", 0), ("down.weight", 0)],
        "qkv.heads": [("qkv.weight", 0)],
        "qkv.head_size": [("qkv.weight", 0)],
        "up": [("up.weight", 0)],
    },
}


@pytest.mark.parametrize("name", MADE)
def test_what_makes_the_units(nets, name):
    space = nets(name)[0].space
    assert {axis: space.made_by(axis) for axis in space.axes} == MADE[name]
    again = space_from_json(json.loads(json.dumps(space_to_json(space))))
    assert {axis: again.made_by(axis) for axis in again.axes} == MADE[name]


@pytest.mark.parametrize(
    "place", [["stem.weight", 4], ["no.weight", 0], ["stem.weight", -1], [[], 0]]
)
def test_a_header_with_wrong_producers_is_refused(nets, place):
    value = json.loads(json.dumps(space_to_json(nets("residual")[0].space)))
    value["producers"] = [place]
    with pytest.raises((ValueError, TypeError)):
        space_from_json(value)


def test_a_header_without_producers_finds_first_dimensions(nets):
    value = json.loads(json.dumps(space_to_json(nets("residual")[0].space)))
    del value["producers"]
    assert space_from_json(value).made_by("stem") == MADE["residual"]["stem"]


def test_weights_in_other_forms_make_units_too():
    class Forms(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.right = torch.nn.Parameter(torch.randn(5, 6))  # x @ right
            self.split = torch.nn.Parameter(torch.randn(2, 4, 6))  # viewed as (8, 6)
            self.left = torch.nn.Parameter(torch.randn(10, 8))  # left @ x.T
            self.normed = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(10, 4))
            self.lstm = torch.nn.LSTM(4, 6, batch_first=True)
            self.head = torch.nn.Linear(6, 3)

        def forward(self, x):
            x = torch.relu(x @ self.right)
            x = torch.relu(x @ self.split.view(8, 6).t())
            x = torch.relu((self.left @ x.t()).t())
            x, _ = self.lstm(torch.relu(self.normed(x))[:, None])
            return self.head(x[:, 0])

    torch.manual_seed(0)
    space = nestling.Supernet(Forms(), torch.randn(3, 5), step=1).space
    made = [space.made_by(name) for name, axis in space.axes.items()]
    assert [("right", 1)] in made
    assert [("left", 0)] in made
    assert ("left", 0) in space.producers
    assert any(("split", 0) in places or ("split", 1) in places for places in made)
    assert [
        ("normed.parametrizations.weight.original0", 0),
        ("normed.parametrizations.weight.original1", 0),
    ] in made
    assert [("lstm.weight_ih_l0", 0), ("lstm.weight_hh_l0", 0)] in made


def test_weights_in_one_storage_are_told_apart():
    """As the weights of recurrent layers lie on a GPU."""

    class Shared(torch.nn.Module):
        def __init__(self):
            super().__init__()
            whole = torch.randn(6 * 5 + 4 * 6)
            self.two = torch.nn.Parameter(whole[30:].view(4, 6))
            self.one = torch.nn.Parameter(whole[:30].view(6, 5))
            self.head = torch.nn.Linear(4, 3)

        def forward(self, x):
            x = torch.relu(torch.nn.functional.linear(x, self.one))
            return self.head(torch.relu(torch.nn.functional.linear(x, self.two)))

    model = Shared()
    record, _, _ = trace(model.eval(), (torch.randn(2, 5),), {})
    assert list(record.producers) == [("one", 0), ("two", 0), ("head.weight", 0)]


def test_ties_keep_what_makes_the_units(nets):
    net, _ = nets("residual")
    tied = nestling.Supernet(net.model, torch.randn(2, 1, 8, 8), step=1, freeze=["one"])
    assert tied.space.made_by("stem") == MADE["residual"]["stem"]
    space = nets("joined")[0].space.tied(["left", "gated"])
    assert space.made_by("left") == [("left.weight", 0), ("gated.weight", 0)]


def test_scores_are_recalled_after_a_resume(nets, tmp_path):
    """The weights that were ranked are gone by then."""
    net, batches = nets("joined")
    run = Run(net, batches, 1, precision="float32", checkpoint=tmp_path / "state")
    first = rankers.scores(run, "l1")
    run.reorder(rankers.orders(net.space, first))

    def objective(own):
        yield own.pooled(own.space.full).train(), torch.nn.functional.cross_entropy

    run.train_stage(objective)
    other, _ = nets("joined")
    again = Run(other, batches, 1, precision="float32", checkpoint=tmp_path / "state")
    again.resume()
    second = rankers.scores(again, "l1")
    again.reorder(rankers.orders(other.space, second))
    again.train_stage(objective)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert other.orders == net.orders
    assert all(
        torch.equal(one, two) for one, two in zip(net.parameters(), other.parameters(), strict=True)
    )
