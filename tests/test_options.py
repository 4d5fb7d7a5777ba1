"""Options: what they may be is written in the signatures, and is told before anything else."""

import math
from typing import Annotated

import pytest

import nestling
from nestling import NestlingError, experiment, methods, rankers, search
from nestling.catalogue import options
from nestling.errors import ModelError
from nestling.options import Checked, Switch, check_values, one_of, whole


def smaller(low, high):
    if low > high:
        raise ModelError(f"low={low} is above high={high}")


def cook(
    pot,
    *,
    hours: Annotated[int, whole(1)],
    rest: Annotated[int | None, whole(0, none=True)] = None,
    heat: Annotated[str, one_of(("gentle", "fierce"))] = "gentle",
    lid: Switch = True,
    low: Annotated[float, Checked(smaller, ("high",))] = 1.0,
    high: float = 2.0,
    name: str = "",
):
    pass


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hours": 0}, "hours= is a whole number of at least 1, but it is 0"),
        ({"hours": True}, "hours= is a whole number"),
        ({"hours": None}, "hours= is a whole number of at least 1, but it is None"),
        ({"rest": -1}, "rest= is a whole number of at least 0, or None, but it is -1"),
        ({"heat": "gentel"}, "one of gentle, fierce, but it is 'gentel'; did you mean 'gentle'"),
        ({"heat": ["gentle"]}, "heat= is one of"),
        ({"lid": 1}, "lid= is True or False, but it is 1"),
        ({"low": 3.0}, "low=3.0 is above high=2.0"),
        ({"high": 0.5}, "low=1.0 is above high=0.5"),
    ],
)
def test_a_value_that_is_none_is_told_with_its_rule(given, message):
    with pytest.raises(ModelError, match=message):
        check_values(cook, given)


def test_values_that_are_allowed():
    check_values(cook, {})  # an option that must be given, and is not, is no value
    check_values(cook, {"hours": 2, "rest": None, "heat": "fierce", "lid": False, "high": 1.0})


class Untouched:
    """Batches that nobody may read."""

    def __len__(self):
        return 1

    def __iter__(self):
        raise AssertionError("a batch was read")


BAD = {
    "uniform": [
        {"fractions": (2,)},
        {"low": 3},
        {"full_epochs": -1},
        {"random": 1.5},
        {"labels_first": -1},
        {"fractions": iter([0.5])},
    ],
    "slimmable": [{"fractions": ()}, {"own_norms": 1}],
    "individual": [{"fractions": (1.0, "half")}, {"specs": []}, {"start": "ranked"}],
    "norms": [{"strength": (1,)}, {"clip": 0}, {"start": "trained"}, {"draw": -1}],
    "progressive": [
        {"rank_by": "nois"},
        {"rank_by": "l1", "rank_options": {"direction": "descending"}},
        {"rank_options": {"steps": "scale"}},
        {"rank_options": 3},
        {"rank_by": None, "rank_options": {"steps": "plain"}},
        {"rank_by": "bandit", "rank_options": {"keep": 2}},
        {"rank_by": "lasso", "rank_options": {"clip": -1}},
        {"rank_by": "slimming", "rank_options": {"strength": "much"}},
        {"rank_by": "taylor", "rank_options": {"batches": 0}},
        {"search": "path"},
        {"search": "greed"},
        {"search_options": {"group": 4}},
        {"search_options": {"groups": 0}},
        {"search_options": {"threshold": 2}},
        {"search_options": {"floor": {"left": 7}}},
        {"search": "greedy", "search_options": {"slack": 0}},
        {"search": "greedy", "search_options": {"threshold": 2}},
        {"search": "greedy", "search_options": {"targets": iter([0.5])}},
        {"search": "greedy", "search_options": {"kinds": "depth"}},
        {"search": "evolution", "search_options": {"population": 1}},
        {"search": "uniform", "search_options": {"fractions": [0]}},
        {"labels_first": "half"},
        {"train_all": iter([])},
    ],
    "nested": [
        {"law": "normal"},
        {"low": {"channels": 0}},
        {"go_on": 1},
        {"groups": 1},
        {"tied": "all"},
        {"kinds": "depth"},
        {"every": 0},
        {"idle": "sleeps"},
        {"statistics": "other"},
        {"cost": "flops"},
        {"budgets": (-1,)},
        {"budgets": [math.inf]},
        {"budgets": iter([1e6])},
        {"search_options": {"kinds": ["depth"]}},
        {"search_options": {"look": 0}},
    ],
    "channel-execution": [
        {"keep": 1.5},
        {"keep": {}},
        {"fractions": [0]},
        {"saliency": "fischer"},
        {"scope": "all"},
        {"exploration": -1},
        {"discount": 0},
        {"start": 0.2},
        {"tune": 1},
        {"every": 0.5},
    ],
}
CASES = [(method, bad) for method, cases in BAD.items() for bad in cases]


# Names alone: what values look like may hold an address, another one in every process that tests.
@pytest.mark.parametrize(
    ("method", "bad"), CASES, ids=[f"{method}-{'-'.join(bad)}" for method, bad in CASES]
)
def test_a_bad_value_is_told_before_a_batch_is_read(small, method, bad):
    net = small.supernet()
    with pytest.raises(NestlingError):
        nestling.fit(net, Untouched(), Untouched(), method=method, progress=False, **bad)


@pytest.mark.parametrize("method", methods.names())
def test_every_option_of_every_method_refuses_what_is_nothing(small, method):
    net, recipe = small.supernet(), methods.find(method)
    assert method in BAD
    for option in methods.options(recipe):
        wrong = {option: object()}
        with pytest.raises(NestlingError):
            nestling.fit(net, Untouched(), Untouched(), method=method, progress=False, **wrong)


@pytest.mark.parametrize(
    ("method", "bad"), CASES, ids=[f"{method}-{'-'.join(bad)}" for method, bad in CASES]
)
def test_a_recipe_called_by_itself_tells_it_before_it_looks_at_the_run(method, bad):
    with pytest.raises(NestlingError):
        methods.find(method)(None, **bad)


def test_a_recipe_called_by_itself_knows_its_options():
    with pytest.raises(ModelError, match="the method 'uniform' has no option 'fraction'; did you"):
        methods.find("uniform")(None, fraction=(1.0,))


@pytest.mark.parametrize("folder", [rankers, search], ids=lambda folder: folder.__name__)
def test_every_option_of_rankers_and_searches_is_checked(folder):
    for name in folder.names():
        function = folder.find(name)
        for option in options(function):
            with pytest.raises(NestlingError):
                check_values(function, {option: object()})


def test_the_command_line_tells_it_before_data_and_model():
    for method, bad in CASES:
        if method != "individual":  # specs are no JSON
            with pytest.raises(NestlingError):
                experiment.Settings("no such model", "no such data", method=method, options=bad)
