"""Subnets from the path of a clipped lasso, trained together."""

import pytest
import torch

import nestling
from nestling import ModelError, SpecError
from nestling.binding import binding
from nestling.rankers import lasso
from nestling.supernet import rearranged
from nestling.training import Run
from nestling.weights import tensors_of

HARD = {"strength": (5.0, 50.0)}


@pytest.mark.parametrize(
    "options",
    [HARD, {**HARD, "start": "ranked", "own_norms": False, "draw": 1, "kind": "Dense"}],
    ids=["given", "ranked"],
)
def test_a_stop_anywhere_changes_nothing(story, tmp_path, options):
    """In the ranking of 6 steps and at its end, in the joint training and at its end."""
    fit = story("norms", fractions=(1.0, 0.5, 0.2), **options)
    fit.goes_on_everywhere(
        tmp_path, lambda losses, _: [(2, 0), (-4, 0), (6, 0), (-7, 0), (8, 0), (losses, 0)]
    )


@pytest.mark.parametrize("start", ["given", "ranked"])
def test_the_menu_is_what_the_path_recorded(story, snapshots, start, monkeypatch):
    monkeypatch.setattr(lasso, "FALLEN", 1.0)  # so few steps part the norms by little
    fit = story("norms", fractions=(1.0, 0.5, 0.2), start=start, **HARD)
    net, menu = fit()
    alone = fit.net()
    run = Run(alone, fit.data(), 2, loss=torch.nn.functional.cross_entropy, precision="float32")
    found = lasso.path(run, (0.5, 0.2), **HARD)
    assert any(found.crossed)
    given = tensors_of(fit.net().model)
    weights = given if start == "given" else tensors_of(alone.model)
    expected = rearranged(net.space, weights, net.orders)
    assert all(torch.equal(snapshots["joint"][name], expected[name]) for name in expected)
    assert net.orders == nestling.rankers.orders(net.space, found.scores)
    specs = [net.space.full, *(net.space.spec(dict(spec)) for spec in found.specs)]
    assert [entry.spec for entry in menu] == list(dict.fromkeys(specs))
    whole = net.space.macs(net.space.full)
    for share, spec in zip((0.5, 0.2), found.specs, strict=True):
        assert net.space.macs(spec) <= share * whole


def test_all_learn_the_labels_in_every_step_with_norms_of_their_own(story):
    fit = story("norms", fractions=(0.5, 0.2), **HARD)
    net, menu = fit()
    assert fit.losses == 2 * 3 + 2 * 3 * len(menu)
    for entry in menu.entries[1:]:
        own = binding(menu.module(entry.name)).own
        assert own.keys() == {f"norm{n}.{key}" for n in (1, 2) for key in ("weight", "bias")}
        assert not torch.equal(own["norm1.weight"], net.model.norm1.weight[: entry.spec["conv1"]])


def test_a_target_that_is_not_reached_is_told(small, capsys):
    menu = nestling.fit(
        small.supernet(), small.batches(), small.batches(16), method="norms", epochs=1,
        fractions=(0.5,), strength=(0.0, 0.0), progress=True,
    )  # fmt: skip
    said = capsys.readouterr().err
    assert "did not reach 0.5 of the MACs" in said
    assert "raise strength= or rank_epochs=" in said
    assert len(menu) == 2
    assert menu.entries[1].macs <= 0.5 * menu.entries[0].macs


def test_other_nets(story):
    for kind in ("Mlp", "Skipping"):
        menu = story("norms", kind=kind, epochs=1, fractions=(0.4,))()[1]
        assert len(menu) == 2


def test_axes_of_depth_stay_whole(small):
    net = nestling.Supernet(
        nestling.models.digits_resnet(width=4, num_classes=3), torch.randn(2, 1, 8, 8), step=4
    )
    menu = nestling.fit(
        net, small.batches(32), small.batches(16), method="norms", epochs=1, fractions=(0.5,),
        progress=False,
    )  # fmt: skip
    for entry in menu:
        depths = [a for a in net.space.axes.values() if a.kind == "depth"]
        assert all(entry.spec[axis.name] == axis.size for axis in depths)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fractions": []}, SpecError, "fractions= lists at least one"),
        ({"fractions": "abc"}, SpecError, "fractions="),
        ({"fractions": (0.5, 0)}, SpecError, "above 0 and at most 1"),
        ({"start": "x"}, ModelError, "start= is one of"),
        ({"strength": 3}, ModelError, "strength= is a pair"),
        ({"clip": 0}, ModelError, "clip="),
        ({"rank_epochs": 0}, ModelError, "rank_epochs= is a whole number of at least 1"),
        ({"draw": 0.5}, SpecError, "draw="),
        ({"labels_first": -1}, ModelError, "labels_first="),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(story, options, error, message):
    fit = story("norms", **options)
    with pytest.raises(error, match=message):
        fit()
    assert fit.losses == 0


def test_the_full_net_alone(story):
    """No target below 1: the lasso still ranks, and one net is trained."""
    _, menu = story("norms", fractions=(1.0,), epochs=1)()
    assert [entry.name for entry in menu] == ["full"]
