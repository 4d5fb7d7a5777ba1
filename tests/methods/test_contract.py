"""What holds for every method; each is found by its name."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from nestling import methods
from nestling.testing import check_method

LITTLE = {"fractions": (1.0, 0.4), "search_options": {"groups": 2}}


@pytest.mark.parametrize("name", methods.names())
def test_every_method_keeps_the_contract(small, name):
    recipe = methods.find(name)
    options = {key: value for key, value in LITTLE.items() if key in methods.options(recipe)}
    check_method(recipe, small.supernet(), small.batches(32), small.batches(32, seed=5), **options)


def trains(run, **_):
    run.train_stage(lambda net: iter([(net.pooled(net.space.full).train(), F.cross_entropy)]))
    return {"full": (run.net.space.full, run.net.subnet(run.net.space.full))}


def test_contract_finds_what_is_wrong(small):
    net, calls = small.supernet(), itertools.count()

    def check(recipe):
        check_method(recipe, net, small.batches(32), small.batches(16), epochs=2)

    def nothing(run):
        return {}

    def other_shape(run):
        return {"full": (run.net.space.full, run.net.subnet(run.net.space.spec(width=0.5)))}

    def drifts(run):
        found = trains(run)
        with torch.no_grad():
            run.net.model.head.bias += next(calls)
        return found

    def forgets(run):
        """Reads weights between two stages without `once`: a resumed run has later ones."""
        trains(run)
        between = run.net.model.head.bias.detach().clone()
        found = trains(run)
        with torch.no_grad():
            run.net.model.head.bias += between
        return found

    def names(run):
        return {f"net {next(calls)}": pair for pair in trains(run).values()}

    check(trains)
    for recipe, message in (
        (nothing, "offers nothing"),
        (other_shape, "no net of its spec"),
        (drifts, "something else again"),
        (forgets, "stopped in step .* something else"),
        (names, "something else again"),
    ):
        with pytest.raises(AssertionError, match=message):
            check(recipe)
