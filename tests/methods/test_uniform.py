"""Uniform widths that begin with a training of the full net."""

import torch

QUICK = {"fractions": (1.0, 0.3), "epochs": 1}


def test_the_full_net_trains_alone_first_if_asked(story, snapshots):
    """As the ranking of "progressive" without a ranker does, number for number."""
    story("uniform", full_epochs=2, **QUICK)()
    first = snapshots["sandwich"]
    assert not torch.equal(first["conv1.weight"], snapshots["full net"]["conv1.weight"])
    story("progressive", rank_by=None, rank_epochs=2, search_options={"groups": 2}, **QUICK)()
    then = snapshots["joint"]
    assert all(torch.equal(first[name], then[name]) for name in then)


def test_none_is_as_many_epochs_as_follow_and_0_is_none(story):
    losses = {}
    for full_epochs in (0, None, 3):
        fit = story("uniform", full_epochs=full_epochs, **QUICK | {"epochs": 2})
        fit()
        losses[full_epochs] = fit.losses
    assert losses[None] - losses[0] == 2 * len(fit.data())
    assert losses[3] - losses[0] == 3 * len(fit.data())


def test_a_training_in_two_stages_goes_on_where_it_stopped(story, tmp_path):
    fit = story("uniform", full_epochs=None, **QUICK)
    fit.goes_on_everywhere(tmp_path, lambda losses, scores: [(2, 0), (losses - 1, 0)])
