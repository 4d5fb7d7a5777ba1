"""Protocols: pictures, weights, batches and optimisers that all methods share."""

import hashlib
from dataclasses import replace

import pytest
import torch
from comparison.cases import cases
from comparison.protocols import (
    PRETRAINED,
    batches,
    check_weights,
    material,
    optimizer,
    scored,
    supernet,
)
from made_results import TINY
from safetensors.torch import save_file

import nestling
from nestling import FileError, ModelError, methods, rankers
from nestling.optimizers import default_optimizer


def test_pictures_are_the_same_for_all_and_parts_do_not_overlap(given):
    again = material(TINY)
    assert torch.equal(given.learn.images, again.learn.images)
    assert torch.equal(given.held_out.images, again.held_out.images)
    parts = given.learn, given.held_out, given.data.test
    assert [len(part.labels) for part in parts] == [200, 100, 360]
    together = torch.cat([part.images for part in parts]).flatten(1)
    every = torch.cat([given.data.train.images, given.data.test.images]).flatten(1)
    twice = len(every) - len(every.unique(dim=0))  # pictures that the data set has more than once
    assert len(together) - len(together.unique(dim=0)) <= twice == 0
    assert given.final is given.learn
    whole = material(replace(TINY, all_pictures=True, pictures=None))
    assert len(whole.final.labels) == 1437
    assert len(whole.learn.labels) == 1337


def test_all_methods_start_with_the_same_weights_and_see_the_same_batches(given):
    one, other = (supernet(TINY, (1, 8, 8), 10, seed) for seed in (3, 3))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    different = supernet(TINY, (1, 8, 8), 10, 4)
    assert not torch.equal(next(one.parameters()), next(different.parameters()))
    first, second = (next(iter(batches(TINY, given, given.learn, 3))) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert len(batches(TINY, given, given.learn, 3)) == 4


def test_trained_weights_come_in_the_order_of_their_size(tmp_path):
    fresh = supernet(TINY, (1, 8, 8), 10, 5)
    path = tmp_path / "weights.safetensors"
    save_file(fresh.model.state_dict(), path)
    of = replace(TINY, weights=str(path))
    net = supernet(of, (1, 8, 8), 10, 6)
    images = torch.randn(4, 1, 8, 8)
    whole, other = (each.subnet(each.space.full).eval()(images) for each in (fresh, net))
    torch.testing.assert_close(other, whole, rtol=1e-4, atol=1e-5)
    assert net.orders != fresh.orders
    fresh.reorder(nestling.rank(fresh, "l2"))
    assert net.orders == fresh.orders
    assert of.settings()["weights"] == "weights.safetensors"
    assert "weights" not in TINY.settings()
    ours = next(case for case in cases(of) if case.label == "progressive")
    assert ours.options["rank_by"] is None
    alone = [case for case in cases(of) if case.method == "individual"]
    assert all(case.options == {"start": "given"} for case in alone)


def test_every_case_of_trained_weights_has_options_that_its_method_takes():
    """A ranker that trains has epochs to train for, and one that is none has no options."""
    every = cases(replace(PRETRAINED, seeds=(0,)))
    for case in every:
        methods.check_options(case.method, methods.find(case.method), case.options)
        by = case.options.get("rank_by", "noise")
        if case.method == "progressive" and by is not None:
            trains = "epochs" in rankers.options(rankers.find(by))
            assert ("rank_epochs" in case.options) != trains, case.label
    assert {"progressive, lasso", "progressive, plain steps"} < {case.label for case in every}


def test_pictures_are_normalised_as_trained_weights_know_them(given):
    mean, std = (0.3,), (0.5,)
    other = material(replace(TINY, normal=(mean, std)))
    ours, theirs = (next(iter(scored(each, each.held_out)))[0] for each in (other, given))
    pictures = theirs * given.data.std[0] + given.data.mean[0]
    torch.testing.assert_close(ours, (pictures - 0.3) / 0.5)
    assert torch.equal(other.held_out.labels, given.held_out.labels)


def test_optimisers_decay_what_the_default_one_decays():
    model = nestling.models.mobilenet_v1(10, 0.25, stem_stride=1)
    ours = optimizer(replace(TINY, lr=0.03))(model.parameters())
    usual = default_optimizer(model)
    for mine, theirs in zip(ours.param_groups, usual.param_groups, strict=True):
        assert [id(p) for p in mine["params"]] == [id(p) for p in theirs["params"]]
        assert mine["weight_decay"] == theirs["weight_decay"]
        assert mine["lr"] == 0.03
        assert mine["nesterov"]
    assert ours.defaults["lr"] == 0.03


def test_other_weights_than_the_protocols_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"some")
    of = replace(
        TINY, net="resnet20", weights=str(path), digest=hashlib.sha256(b"some").hexdigest()
    )
    check_weights(of)
    check_weights(replace(TINY, net="mlp"))
    with pytest.raises(ModelError, match=r"those of resnet20, not of mlp"):
        check_weights(replace(of, net="mlp"))
    with pytest.raises(FileError, match=r"another file .* its SHA-256"):
        check_weights(replace(of, digest="0" * 64))
    path.unlink()
    with pytest.raises(FileError, match="--weights"):
        check_weights(of)
