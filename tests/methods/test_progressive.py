"""Rank, search, train a list together."""

import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import nestling
from nestling import BudgetError, DataError, ModelError, SpecError
from nestling.binding import binding
from nestling.joint import Joint
from nestling.methods.progressive import offered, progressive
from nestling.objectives import soft_cross_entropy
from nestling.search import stage
from nestling.supernet import rearranged
from nestling.training import Run
from nestling.weights import cloned, tensors_of

QUICK = {"search_options": {"groups": 2}}


def places(losses, scores):
    """In both epochs of 3 steps of the ranking, in the search, in both joint epochs; crashes."""
    ranking, middle = 6, (losses + 6) // 2
    return [
        (2, 0), (-6, 0), (6, 0), (0, 1), (0, -(scores // 2)), (0, scores), (-ranking - 1, 0),
        (middle, 0), (losses, 0),
    ]  # fmt: skip


def fewer(losses, scores):
    return [(4, 0), (0, scores - 1), (losses - 1, 0), (-losses, 0)]


@pytest.mark.parametrize(
    ("stops", "options"),
    [
        (places, {"own_norms": True, "rank_by": "noise", "start": "given"}),
        (fewer, {"start": "ranked", "draw": None, "kind": "Dense", "search": "progressive"}),
    ],
    ids=["given", "ranked"],
)
def test_a_stop_anywhere_changes_nothing(story, tmp_path, stops, options):
    fit = story("progressive", distill=soft_cross_entropy, **{**QUICK, **options})
    fit.goes_on_everywhere(tmp_path, stops)


@pytest.mark.parametrize("rank_by", ["l1", None])
def test_a_search_before_the_first_checkpoint_goes_on_from_its_log(story, tmp_path, rank_by):
    fit = story("progressive", rank_by=rank_by, rank_epochs=0, start="ranked", epochs=1, **QUICK)
    _, menu = fit(tmp_path / "whole")
    scores = fit.scores
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "state", stop=(0, scores - 1))
    assert not (tmp_path / "state").exists()
    assert (tmp_path / "state.search.jsonl").exists()
    other = fit(tmp_path / "state", resume=True)[1]
    assert other.identity() == menu.identity()
    assert fit.scores < 3
    assert (tmp_path / "state").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize(
    ("options", "even_below"),
    [
        ({"rank_epochs": 0}, 0.5),
        ({"rank_epochs": 0, "search_options": {"even_below": None}}, None),
        ({"rank_epochs": 1}, None),
    ],
)
def test_on_given_weights_the_search_does_not_choose_where_the_net_hardly_works(
    story, tmp_path, options, even_below
):
    story("progressive", epochs=1, **options)(tmp_path / "state")
    head = json.loads((tmp_path / "state.search.jsonl").read_text().splitlines()[0])
    assert (head["options"]["even_below"], head["options"]["look"]) == (even_below, 4)


def test_the_papers_search_has_no_such_option(story):
    story("progressive", epochs=1, rank_epochs=0, search="progressive", **QUICK)()


def test_fine_tuning_in_the_search_goes_on_too(story, tmp_path):
    fit = story(
        "progressive", rank_by="l2", epochs=1, search="progressive",
        search_options={"groups": 2, "threshold": 0.99, "epochs": 1},
    )  # fmt: skip
    fit.goes_on_everywhere(tmp_path, lambda losses, scores: [(2, 0), (0, scores - 1)])
    assert [path.name for path in tmp_path.glob("*tuned*")] == []


def test_given_restarts_from_the_given_weights_in_the_ranked_order(story, snapshots, small):
    fit = story("progressive", rank_by="noise", start="given", **QUICK)
    images = small.pictures(8)[0]
    given = fit.net()
    net, _ = fit()
    assert any(order != tuple(range(len(order))) for order in net.orders.values())
    start = snapshots["joint"]
    expected = rearranged(net.space, tensors_of(given.model), net.orders)
    assert all(torch.equal(start[name], expected[name]) for name in expected)
    for name in ("conv1.weight", "norm1.running_mean"):
        assert not torch.equal(snapshots["noise ranking"][name], tensors_of(net.model)[name])
    again = fit.net()
    again.reorder(net.orders)
    again.load_state_dict(start)
    functions = [each.subnet(each.space.full).eval()(images) for each in (given, again)]
    torch.testing.assert_close(*functions, rtol=1e-5, atol=1e-6)


def test_ranked_starts_from_the_ranked_weights(story, snapshots, small):
    fit = story("progressive", rank_by="noise", start="ranked", **QUICK)
    net, _ = fit()
    given = tensors_of(fit.net().model)
    start = snapshots["joint"]
    assert not torch.equal(start["head.bias"], given["head.bias"])
    # Ranking alone leaves the same weights.
    alone = fit.net()
    run = nestling.training.Run(
        alone, fit.data(), 2, loss=torch.nn.functional.cross_entropy, precision="float32"
    )
    scores = nestling.rankers.scores(run, "noise", epochs=None)
    alone.reorder(nestling.rankers.orders(alone.space, scores))
    assert alone.orders == net.orders
    assert all(torch.equal(start[name], t) for name, t in tensors_of(alone.model).items())


def test_the_whole_menu_is_of_the_list(story, tmp_path):
    fit = story("progressive", fractions=(1.0, 0.6, 0.3, 0.2), **QUICK)
    net, menu = fit(tmp_path / "state")
    whole = net.space.macs(net.space.full)
    assert menu.entries[0].spec == net.space.full
    shares = [entry.macs / whole for entry in menu]
    assert shares == sorted(shares, reverse=True)
    assert min(shares) <= 0.2
    log = nestling.strictjson.parse((tmp_path / "state.search.jsonl").read_bytes().splitlines()[0])
    assert log["options"]["groups"] == 2
    assert log["order"] == net.order
    assert menu.order == net.order


def test_nothing_smaller_than_the_smallest_offered_is_trained(story, monkeypatch):
    listed, train = [], Joint.train

    def noted(joint, run, members):
        listed.append([run.net.space.macs(spec) for spec in members])
        return train(joint, run, members)

    monkeypatch.setattr(Joint, "train", noted)
    for fractions in ((1.0, 0.6), (1.0, 0.6, 0.2)):
        _, menu = story("progressive", fractions=fractions, **QUICK)()
        assert min(listed[-1]) == menu.entries[-1].macs
    assert set(listed[0]) < set(listed[1])


def test_own_norms_are_in_the_menu(story, small, tmp_path):
    fit = story("progressive", own_norms=True, **QUICK)
    net, menu = fit()
    assert len(menu) > 1
    for entry in menu.entries[1:]:
        assert set(entry.private) == {
            *(f"norm{n}.{key}" for n in (1, 2) for key in ("weight", "bias")), *net.private,
        }  # fmt: skip
        own = menu.module(entry.name).norm1.weight
        assert not torch.equal(own, net.model.norm1.weight[: len(own)])
    loaded = nestling.load(menu.save(tmp_path / "own.nest"), model=small.ConvNet())
    for entry in menu:
        images = small.pictures(4)[0]
        assert torch.equal(loaded(images, subnet=entry.name), menu.module(entry.name)(images))


def test_all_data_trains_the_list_alone(story, small, monkeypatch):
    class Seen(list):
        times = 0

        def __iter__(self):
            self.times += 1
            return super().__iter__()

    fit = story("progressive", **QUICK)
    more, own = Seen(fit.data(64)), Seen(fit.data())
    monkeypatch.setattr(fit, "data", lambda *args, **kw: own if not args else small.batches(48))
    fit.options["train_all"] = more
    fit()
    assert more.times == 2  # of joint epochs
    assert own.times > 2  # ranking, and measuring statistics
    assert fit.losses == 2 * 3 + 2 * len(more) * 4  # passes: full, two drawn, smallest


@pytest.mark.parametrize("kind", ["Mlp", "Skipping", "Dense"])
def test_other_nets(story, kind):
    fit = story("progressive", kind=kind, rank_by="taylor", epochs=1, own_norms=True, **QUICK)
    net, menu = fit()
    assert len(menu) > 1
    assert menu.entries[0].spec == net.space.full


def test_axes_of_depth(small):
    net = nestling.Supernet(
        nestling.models.digits_resnet(width=4, num_classes=3), torch.randn(2, 1, 8, 8), step=4
    )
    depths = [name for name, axis in net.space.axes.items() if axis.kind == "depth"]
    assert depths
    menu = nestling.fit(
        net, small.batches(32), small.batches(32, seed=5), method="progressive", rank_by="l1",
        epochs=1, own_norms=True, search_options={"groups": 1}, progress=False,
    )  # fmt: skip
    cut = [e for e in menu if any(e.spec[name] < net.space.axes[name].size for name in depths)]
    assert cut
    for entry in cut:
        own = binding(menu.module(entry.name)).own
        assert own.keys() <= set(net.space.present(entry.spec))


@pytest.mark.parametrize(
    ("search", "options"),
    [("uniform", {"fractions": (0.5, 0.2)}), ("greedy", {"targets": (0.5, 0.2), "groups": 2})],
)
def test_a_list_without_the_full_net(story, search, options):
    fit = story("progressive", rank_by="l1", epochs=1, search=search, search_options=options)
    net, menu = fit()
    assert menu.entries[0].spec == net.space.full
    assert len(menu) > 1


def test_evolution_proposes_the_list(story):
    pytest.importorskip("optuna")
    options = {"trials": 6, "population": 3, "most": 0.9}
    fit = story("progressive", rank_by="l1", epochs=1, search="evolution", search_options=options)
    net, menu = fit()
    assert menu.entries[0].spec == net.space.full
    assert all(entry.macs <= 0.9 * menu.entries[0].macs for entry in menu.entries[1:])


# -- what is offered --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def space(small):
    return small.supernet().space


@given(
    st.lists(st.integers(0, 15), min_size=1, max_size=12),
    st.lists(st.floats(0.05, 1.0), min_size=1, max_size=4),
)
def test_offered_is_what_exhaustion_finds(space, listed, fractions):
    every = [space.spec(dict(zip(space.axes, counts, strict=True))) for counts in
             itertools.product(*(axis.counts for axis in space.axes.values()))]  # fmt: skip
    members = [every[place] for place in listed]
    macs, whole = [space.macs(spec) for spec in members], space.macs(space.full)
    expected = {space.full}
    for fraction in fractions:
        order = sorted(range(len(members)), key=lambda place: (-macs[place], place))
        fitting = [place for place in order if macs[place] <= fraction * whole]
        expected |= {members[place] for place in fitting[:1]}
    if expected == {space.full} and min(fractions) < 1:
        with pytest.raises(BudgetError, match="smallest has"):
            offered(space, members, fractions)
        return
    found = offered(space, members, fractions)
    assert set(found) == expected
    assert [space.macs(s) for s in found] == sorted(map(space.macs, found), reverse=True)


# -- mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fractions": []}, SpecError, "fractions= lists at least one"),
        ({"fractions": "0.5"}, SpecError, "fractions="),
        ({"fractions": (0.5, 2)}, SpecError, "above 0 and at most 1"),
        ({"start": "givn"}, ModelError, "start= is one of given, ranked"),
        ({"draw": -1}, SpecError, "draw="),
        ({"labels_first": 1.5}, ModelError, "labels_first= is a share"),
        ({"rank_by": "noize"}, ModelError, "did you mean 'noise'"),
        ({"rank_options": {"directon": 1}}, ModelError, "did you mean 'direction'"),
        ({"rank_options": {"direction": "up"}}, ModelError, "direction= is one of"),
        ({"rank_epochs": 0}, ModelError, "epochs= is a whole number of at least 1"),
        ({"rank_options": {"epochs": 0}}, ModelError, "epochs= is a whole number of at least 1"),
        ({"search": "progresive"}, ModelError, "did you mean 'progressive'"),
        ({"search": "path"}, ModelError, "use the method 'norms'"),
        ({"search_options": {"group": 1}}, ModelError, "did you mean 'groups'"),
        ({"search_options": {"groups": 0}}, SpecError, "groups="),
        ({"search_options": {"floor": {"conv9": 0.5}}}, SpecError, "unknown axis 'conv9'"),
        ({"held_out": []}, DataError, "at least one batch"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(story, options, error, message):
    fit = story("progressive", **{"rank_by": "noise", **options})
    with pytest.raises(error, match=message):
        fit()
    assert fit.losses == fit.scores == 0


def test_a_search_needs_held_out_data_that_stays_the_same(small):
    def fit(val, **options):
        nestling.fit(
            small.supernet(), small.batches(), val, method="progressive", epochs=1, progress=False,
            loss=loss, **options,
        )  # fmt: skip

    def loss(outputs, targets):
        raise AssertionError("it trains")

    with pytest.raises(ModelError, match=r"neither val= nor held_out=.*never test data"):
        fit(None)
    with pytest.raises(DataError, match="yields others each time"):
        fit(small.loader(48, 16))
    with pytest.raises(DataError, match="yields others each time"):
        fit(small.batches(), held_out=small.loader(48, 16))


def test_a_fraction_below_the_floors_is_told_before_the_joint_training(story, snapshots):
    fit = story("progressive", rank_by="l1", fractions=(1.0, 0.01), search_options={"floor": 0.5})
    with pytest.raises(BudgetError, match=r"at most 0\.01 .* the smallest has 0\."):
        fit()
    assert "joint" not in snapshots


def test_held_out_of_its_own(story):
    fit = story("progressive", rank_by="l1", epochs=1, held_out=None, **QUICK)
    fit.options["held_out"] = fit.data(16, seed=9)
    assert len(fit()[1]) > 1


def test_the_given_copy_is_not_the_net_s(story, snapshots):
    """Ranking trains the net in place, so what is kept must be a copy."""
    options = {"direction": "ascending"}
    fit = story("progressive", rank_by="noise", start="given", rank_options=options, **QUICK)
    fit()
    before = cloned(snapshots["noise ranking"])
    sums = [float(each["conv1.weight"].sum()) for each in (before, snapshots["joint"])]
    assert sums[0] == pytest.approx(sums[1], abs=1e-5)


@pytest.mark.parametrize("rank_by", ["l1", None])
def test_the_search_has_a_trained_net_whatever_ranks(small, monkeypatch, rank_by):
    """A ranker that does not train is given a net that is: the search scores above chance."""
    found = {}

    def searched(run, *given):
        listed = stage.searched(run, *given)
        found.update(dict(listed))
        return listed

    monkeypatch.setattr("nestling.methods.progressive.searched", searched)
    net, data = small.supernet(), list(small.batches(48, seed=5))
    run = Run(net, small.batches(), 12, held_out=data, optimizer=small.sgd)
    progressive(run, rank_by=rank_by, fractions=(1.0, 0.5))
    assert found[net.space.full] > 0.6  # chance is a third
