"""What holds for every search, found by its name; and what each finds, against exhaustion."""

import itertools
import math
import sys
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling import BudgetError, ModelError, Spec, SpecError, search
from nestling.search import Found, conduct, evolution, front, greedy, path, progressive, reselected
from nestling.search.request import Progress
from nestling.search.steps import narrowed, stairs
from nestling.testing import check_search

RECORDED = [{"conv1": 6.7, "conv2": 5}, {"conv1": 7, "conv2": 3.2}, {"conv1": 2}]
# What the contract tests give a search besides the space; a new search needs nothing here.
OPTIONS = {"path": {"recorded": RECORDED}, "evolution": {"trials": 12, "population": 4}}
SHORT = {"greedy": 0.05, "progressive": 0.15, "evolution": 0.0}  # of exhaustion, when separable


def every(space):
    """All specs of a space."""
    counts = [axis.counts for axis in space.axes.values()]
    return [Spec(space, dict(zip(space.axes, each))) for each in itertools.product(*counts)]


@pytest.mark.parametrize("name", search.names())
def test_contract(tiny, made_up, name):
    make = partial(search.find(name), **OPTIONS.get(name, {}))
    short = check_search(make, tiny, score=made_up(tiny.space))
    assert 0 <= short < 1


@pytest.mark.parametrize("name", SHORT)
def test_how_far_off_exhaustion_on_a_separable_score(tiny, scores, name):
    options = {"evolution": {"trials": 16, "population": 4, "floor": 0.1}}.get(name, {})
    short = check_search(
        partial(search.find(name), **options), tiny, score=scores["separable"](tiny.space)
    )
    assert short <= SHORT[name]


def test_contract_check_sees_a_search_that_does_not_repeat(tiny):
    calls = []

    def restless(space):
        calls.append(None)
        spec = space.uniform[len(calls) % 2]
        accuracy = yield search.Score(spec)
        return [Found(spec, accuracy)]

    with pytest.raises(AssertionError, match="does not repeat"):
        check_search(restless, tiny)


def test_contract_check_sees_a_wrong_accuracy_and_a_broken_budget(tiny):
    def wrong(space):
        accuracy = yield search.Score(space.full)
        return [Found(space.full, accuracy / 2)]

    with pytest.raises(AssertionError, match="another accuracy"):
        check_search(wrong, tiny)
    with pytest.raises(AssertionError, match="costs too much"):
        check_search(progressive, tiny, most=0.5)
    check_search(partial(evolution, trials=6, population=4, most=0.5), tiny, most=0.5)


def test_names_are_those_of_the_files():
    assert search.names() == ["evolution", "greedy", "path", "progressive", "uniform"]
    assert search.find("greedy") is greedy
    with pytest.raises(ModelError, match="did you mean 'greedy'"):
        search.find("gredy")


# -- stairs -----------------------------------------------------------------------------------


@given(st.integers(1, 12), st.floats(0.01, 1.0))
@settings(max_examples=60)
def test_stairs_go_down_allowed_counts_to_the_floor(deep, groups, floor):
    for name, counts in stairs(deep.space, groups, floor).items():
        axis = deep.space.axes[name]
        assert counts[0] == axis.size
        assert list(counts) == sorted(set(counts), reverse=True)
        assert set(counts) <= set(axis.counts)
        assert counts[-1] == min(c for c in axis.counts if c >= floor * axis.size - 1e-9)
        assert len(counts) <= groups + 1


def test_stairs_of_four_groups_and_of_single_steps(deep):
    steps = stairs(deep.space, 4, 0.25)
    assert steps["layer3"] == (16, 12, 8, 4)
    assert steps["layer3.depth"] == (2, 1)
    assert stairs(deep.space, None, 0.25)["layer3"] == (16, 14, 12, 10, 8, 6, 4)
    held = stairs(deep.space, 4, {"layer3": 1.0})
    assert held["layer3"] == (16,)
    assert held["layer2"][-1] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 0}, "groups="),
        ({"groups": 2.5}, "groups="),
        ({"groups": True}, "groups="),
        ({"floor": 0}, "a floor is a share"),
        ({"floor": float("nan")}, "a floor is a share"),
        ({"floor": {"layer33": 0.5}}, "did you mean 'layer3'"),
        ({"threshold": 50}, "threshold="),
        ({"threshold": True}, "threshold="),
        ({"epochs": 0}, "epochs="),
        ({"look": 0}, "look="),
    ],
)
def test_options_are_checked(deep, options, message):
    with pytest.raises(SpecError, match=message):
        conduct(progressive(deep.space, **options), deep, score=lambda spec: 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"threshold": 2}, "threshold="), ({"threshold": 0.5, "epochs": True}, "epochs=")],
)
def test_tuning_of_the_greedy_search_is_checked(deep, options, message):
    with pytest.raises(SpecError, match=message):
        conduct(greedy(deep.space, **options), deep, score=lambda spec: 0.5)


# -- progressive ------------------------------------------------------------------------------


def chain_of(found):
    """Whether each contains the next, and one axis falls at a time."""
    for one, after in itertools.pairwise(found):
        assert sum(one.spec[name] != after.spec[name] for name in one.spec) == 1
        assert all(one.spec[name] >= after.spec[name] for name in one.spec)
    return True


@pytest.mark.parametrize("groups", [4, 8, None])
def test_a_chain_from_the_full_net_to_all_floors(deep, made_up, groups):
    make = progressive(deep.space, groups=groups, reselect=False)
    found = conduct(make, deep, score=made_up(deep.space))
    steps = stairs(deep.space, groups, 0.25)
    assert found[0].spec == deep.space.full
    assert found[-1].spec == {name: counts[-1] for name, counts in steps.items()}
    assert len(found) == 1 + sum(len(counts) - 1 for counts in steps.values())
    assert chain_of(found)


def test_each_step_takes_the_group_that_is_missed_least(deep, made_up):
    score, steps = made_up(deep.space), stairs(deep.space, 4, 0.25)
    make = progressive(deep.space, groups=4, reselect=False, look=1.0)
    found = conduct(make, deep, score=score)
    for one, after in itertools.pairwise(found):
        rivals = []
        for name, counts in steps.items():
            below = [count for count in counts if count < one.spec[name]]
            if below:
                rivals.append(Spec(deep.space, {**one.spec, name: max(below)}))
        best = max(map(score, rivals))
        assert after.accuracy == score(after.spec) == best  # the winner's, not the last tried's
        cheapest = min(deep.space.macs(r) for r in rivals if score(r) == best)
        assert deep.space.macs(after.spec) == cheapest


def test_it_is_optimal_for_every_number_of_groups_where_exhaustion_can_tell(three, scores):
    # Greedy is exact where axes add up and each unit is missed more than the one before it.
    for seed in range(5):
        score = scores["separable"](three.space, seed)
        make = progressive(three.space, groups=None, floor=0.01, reselect=False, look=1.0)
        for removed, each in enumerate(conduct(make, three, score=score)):
            alike = [s for s in every(three.space) if sum(8 - n for n in s.values()) == removed]
            assert each.accuracy == pytest.approx(max(map(score, alike)), abs=1e-12)


def test_looking_at_the_promising_axes_finds_the_same_where_losses_only_grow(deep, scores):
    score = scores["separable"](deep.space)
    asked = {look: [] for look in (1.0, 0.4)}
    found = {
        look: conduct(
            progressive(deep.space, look=look, reselect=False),
            deep,
            score=lambda spec, look=look: asked[look].append(spec) or score(spec),
        )
        for look in asked
    }
    assert len(asked[0.4]) < 0.6 * len(asked[1.0])
    gaps = [a.accuracy - b.accuracy for a, b in zip(found[1.0], found[0.4], strict=True)]
    assert max(gaps) < 0.01


def test_an_axis_at_its_floor_is_left_alone(deep, scores):
    floor = {"layer3": 0.75, "layer1.depth": 1.0}
    found = conduct(progressive(deep.space, floor=floor), deep, score=scores["noisy"](deep.space))
    assert min(each.spec["layer3"] for each in found) == 12
    assert {each.spec["layer1.depth"] for each in found} == {2}


def test_reselection_drops_what_the_next_smaller_one_beats(tiny):
    specs = [*tiny.space.uniform[::-1], tiny.space.spec({"conv1": 2}), tiny.space.full]
    rows = [0.80, 0.70, 0.75, 0.60, 0.71, 0.50]
    found = [Found(spec, accuracy) for spec, accuracy in zip(specs, rows, strict=False)]
    # 0.70 < 0.75 < 0.80: dropped; 0.60 < 0.71, but not below 0.70: made by fine-tuning, stays.
    assert [each.accuracy for each in reselected(found)] == [0.80, 0.75, 0.60, 0.71, 0.50]
    assert reselected(found, jump=0.2) == [found[0], found[2], found[4], found[5]]
    assert reselected(found[:1]) == found[:1]
    assert reselected([found[1], found[2]]) == [found[1], found[2]]  # the full net always stays


@pytest.mark.parametrize(
    "search", [partial(progressive, reselect=False), greedy], ids=["progressive", "greedy"]
)
def test_below_the_threshold_the_net_is_tuned(deep, scores, search):
    base, tuned, lift = scores["separable"](deep.space), [], [0.0]

    def tune(spec, until, epochs):
        tuned.append((spec, until, epochs))
        lift[0] += 0.02
        return base(spec) + lift[0]

    def score(spec):
        return base(spec) + lift[0]

    make = search(deep.space, threshold=0.85, epochs=3)
    found = conduct(make, deep, score=score, tune=tune)
    assert tuned
    places = {each.spec: number for number, each in enumerate(found)}
    for spec, until, epochs in tuned:
        assert found[places[spec]].accuracy < until == 0.85  # recorded as it was before
        assert epochs == 3
    never = [each.spec for each in found[:-1] if each.accuracy < 0.85]
    assert [spec for spec, *_ in tuned] == never


# -- greedy by price --------------------------------------------------------------------------


def test_greedy_by_price_is_on_the_true_front_for_a_linear_cost(three, scores):
    # Marginal analysis (Fox 1966): exact for convex losses and a linear cost.
    prices = dict(zip(three.space.axes, (3.0, 1.0)))

    def cost(spec):
        return 1 + sum(prices[name] * count for name, count in spec.items())

    for seed in range(5):
        score = scores["separable"](three.space, seed)
        make = greedy(three.space, groups=None, floor=0.01, slack=1e-9)
        for each in conduct(make, three, score=score, cost=cost):
            rivals = [s for s in every(three.space) if cost(s) <= cost(each.spec)]
            assert each.accuracy == pytest.approx(max(map(score, rivals)), abs=1e-12)


def test_greedy_stops_at_its_targets(deep, made_up):
    full = deep.space.params(deep.space.full)
    make = greedy(deep.space, targets=(0.3, 0.8))
    asked = []
    found = conduct(
        make,
        deep,
        score=lambda spec: asked.append(spec) or made_up(deep.space)(spec),
        cost=deep.space.params,
    )
    shares = [deep.space.params(each.spec) / full for each in found]
    assert len(found) == 2
    assert 0.3 < shares[0] <= 0.8
    assert shares[1] <= 0.3
    assert min(deep.space.params(spec) for spec in asked) > 0.05 * full


def test_steps_that_save_nothing_come_last(three):
    def cost(spec):  # as a device that computes "one" in full blocks of eight
        return 10.0 + spec["two"]

    make, asked = greedy(three.space, groups=None, floor=0.5), []
    found = conduct(
        make,
        three,
        score=lambda spec: asked.append(spec) or 0.5 + 0.01 * spec["two"],
        cost=cost,
    )
    assert all(spec["one"] == 8 for spec in asked[:5])  # the others are not even looked at
    assert [each.spec["two"] for each in found[:5]] == [8, 7, 6, 5, 4]
    assert found[4].spec["one"] == 8
    assert found[-1].spec == {"one": 4, "two": 4}


def test_among_losses_within_the_slack_the_largest_saving_is_taken(three):
    def score(spec):  # "one" is worthless, and noise speaks for keeping it
        return 0.9 + 0.0004 * (spec["one"] - spec["two"])

    def cost(spec):
        return 9 * spec["one"] + spec["two"]

    found = conduct(greedy(three.space, groups=None), three, score=score, cost=cost)
    assert found[1].spec == {"one": 7, "two": 8}
    exact = conduct(greedy(three.space, groups=None, slack=1e-6), three, score=score, cost=cost)
    assert exact[1].spec == {"one": 8, "two": 7}


def test_where_the_net_hardly_works_widths_shrink_alike(three):
    def score(spec):  # "two" is worth nothing, "one" a lot
        return 0.1 * spec["one"]

    make = greedy(three.space, groups=None, floor=0.25, even_below=0.7)
    chain = [spec for spec, _ in conduct(make, three, score=score)]
    below = next(place for place, spec in enumerate(chain) if score(spec) < 0.7 * score(chain[0]))
    assert chain[below] == {"one": 5, "two": 2}
    chosen = conduct(greedy(three.space, groups=None, floor=0.25), three, score=score)
    assert chain[: below + 1] == [spec for spec, _ in chosen][: below + 1]
    assert [dict(spec) for spec in chain[below + 1 :]] == [
        {"one": 4, "two": 2},
        {"one": 3, "two": 2},
        {"one": 2, "two": 2},
    ]


@pytest.mark.parametrize("floor", [0.25, {"one": 0.01, "two": 0.5}])
@pytest.mark.parametrize("groups", [None, 8, 1])
def test_shrinking_alike_ends_at_the_floors(three, groups, floor):
    steps = stairs(three.space, groups, floor)
    floors = {name: counts[-1] for name, counts in steps.items()}
    assert narrowed(three.space, three.space.full, steps, groups)[-1] == floors


def noted(inner, told):
    """Return a search, and note what it tells of its progress."""
    try:
        request = next(inner)
        while True:
            if isinstance(request, Progress):
                told.append((request.done, request.total))
            request = inner.send((yield request))
    except StopIteration as end:
        return end.value


def test_progress_is_never_more_than_there_is(three):
    make, told = greedy(three.space, groups=2, floor=0.125, even_below=1.0), []
    chain = conduct(noted(make, told), three, score=lambda spec: 0.1 * spec["one"])
    assert len(chain) - 1 > told[-1][1]  # steps that shrink alike are smaller
    assert told == sorted(told)
    assert all(done < total for done, total in told[:-1])
    assert (told[0][0], told[-1][0]) == (0, told[-1][1])


def test_looking_at_few_takes_the_least_loss_where_nothing_saves(deep, scores):
    score = scores["separable"](deep.space, 0)
    chains = [
        conduct(greedy(deep.space, groups=4, look=look), deep, score=score, cost=lambda spec: 1.0)
        for look in (1, 3, None)
    ]
    assert chains[0] == chains[1] == chains[2]


def test_a_score_that_is_not_above_zero_has_no_share(three):
    def score(spec):  # a loss, the smaller the better
        return -1.0 / spec["one"]

    chains = [
        conduct(greedy(three.space, even_below=share), three, score=score) for share in (0.9, None)
    ]
    assert chains[0] == chains[1]


def test_what_shrinks_alike_are_widths(deep, made_up):
    space = deep.space
    steps = stairs(space, 4, 0.25)
    depth = {name for name, axis in space.axes.items() if axis.kind == "depth"}
    given = Spec(space, dict.fromkeys(depth, 1))
    found = narrowed(space, given, steps, 4)
    shares = [space.macs(spec) / space.macs(given) for spec in found]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.2
    for wider, spec in pairwise([given, *found]):
        assert spec != wider
        assert all(spec[name] <= wider[name] for name in space.axes)
    for spec in found:
        kept = [spec[name] / axis.size for name, axis in space.axes.items() if name not in depth]
        assert max(kept) - min(kept) <= 0.5  # two channels of four
        assert {spec[name] for name in depth} == {1}
    chain = conduct(greedy(space, floor=0.25, even_below=1.0), deep, score=made_up(space))
    assert {spec[name] for name in depth for spec, _ in chain[1:-1]} >= {1, 2}
    assert {chain[-1].spec[name] for name in depth} == {1}  # what is left goes by choice


def test_greedy_cuts_axes_of_the_kinds_alone(deep, made_up):
    found = conduct(greedy(deep.space, kinds=["depth"]), deep, score=made_up(deep.space))
    assert len(found) == 4  # three stages of two blocks
    for name, axis in deep.space.axes.items():
        assert {spec[name] for spec, _ in found} == (
            {1, 2} if axis.kind == "depth" else {axis.size}
        )


def test_budgets_are_in_the_costs_own_units(deep, made_up):
    score, whole = made_up(deep.space), deep.space.bytes(deep.space.full)
    by_share = conduct(
        greedy(deep.space, targets=(0.6, 0.3)), deep, score=score, cost=deep.space.bytes
    )
    budgets = (0.6 * whole, 0.3 * whole)
    same = conduct(greedy(deep.space, budgets=budgets), deep, score=score, cost=deep.space.bytes)
    assert same == by_share
    assert deep.space.bytes(same[0].spec) <= budgets[0] < whole


def test_targets_out_of_reach_stand_for_the_floors_where_that_is_asked_for(deep, made_up):
    score = made_up(deep.space)
    make = greedy(deep.space, kinds=["depth"], targets=(0.7, 0.01), reachable=True)
    found, least = conduct(make, deep, score=score)
    assert deep.space.macs(found.spec) <= 0.7 * deep.space.macs(deep.space.full)
    assert {least.spec[n] for n, axis in deep.space.axes.items() if axis.kind == "depth"} == {1}
    for options in ({"targets": (0.01,)}, {"targets": (0.7,), "budgets": (1,)}):
        with pytest.raises(BudgetError, match="with all axes at their floors"):
            conduct(greedy(deep.space, reachable=True, **options), deep, score=score)


def test_a_search_that_looks_at_few_asks_for_few_and_loses_little(deep, scores):
    """As many evaluations as steps, times the number; against looking at all of them."""
    make = partial(greedy, deep.space, groups=4)
    for make_score in scores.values():
        score, asked = make_score(deep.space), []

        def counted(spec, score=score, asked=asked):
            asked.append(spec)
            return score(spec)

        chain = conduct(make(look=3), deep, score=counted)
        axes, steps = len(deep.space.axes), len(chain) - 1
        assert len(asked) <= 3 * steps + axes + 1 < axes * steps / 2
        whole = conduct(make(), deep, score=score)
        assert len(whole) == len(chain)
        at = [deep.space.macs(deep.space.full) * share for share in (0.7, 0.4, 0.2)]
        best = [
            [max(f.accuracy for f in each if deep.space.macs(f.spec) <= limit) for limit in at]
            for each in (chain, whole)
        ]
        assert sum(best[0]) > sum(best[1]) - 3 * 0.03, make_score.__name__


def test_looking_at_few_is_the_same_where_every_loss_grows(deep, scores):
    """Where returns diminish and no loss depends on another axis, what was known stays true."""
    axes = deep.space.axes

    def cost(spec):  # linear: a step always saves what it saved when it was last looked at
        return sum(spec[name] / axis.size for name, axis in axes.items())

    def chain(look, score):
        make = greedy(deep.space, kinds=["channels"], groups=4, slack=1e-9, look=look)
        return conduct(make, deep, score=score, cost=cost)

    for seed in range(3):
        score = scores["separable"](deep.space, seed)
        every_axis = chain(None, score)
        for look in (1, 2, 6):
            assert chain(look, score) == every_axis


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"look": 0}, "look= is a whole number of axes"),
        ({"look": 0.5}, "look="),
        ({"even_below": 0}, "even_below= is a share of the full net's accuracy above 0 .* it is 0"),
        ({"even_below": True}, "even_below= is a share"),
        ({"budgets": 5}, "budgets= lists costs"),
        ({"budgets": (0,)}, "budgets= lists finite costs above 0 .* one is 0; leave out"),
        ({"budgets": ("1e6",)}, "budgets= lists finite costs"),
        ({"budgets": (1e6, math.inf)}, "budgets= .* one is inf; leave out what has no limit"),
        ({"budgets": (math.nan,)}, "budgets= lists finite costs above 0 .* one is nan"),
        ({"kinds": ["paths"]}, "no axis of this net is of that kind"),
        ({"kinds": ["depth"], "floor": 1.0}, "no count below the full one"),
    ],
)
def test_bad_options_of_greedy(deep, options, message):
    with pytest.raises(SpecError, match=message):
        next(greedy(deep.space, **options))


def test_budgets_that_cannot_be_met(tiny):
    score = lambda spec: 0.5  # noqa: E731
    with pytest.raises(BudgetError, match="at their floors"):
        conduct(greedy(tiny.space, targets=(0.01,)), tiny, score=score)
    constant = lambda spec: 7.0  # noqa: E731
    with pytest.raises(BudgetError, match="none of the axes that may go changes this cost"):
        conduct(greedy(tiny.space, targets=(0.5,)), tiny, score=score, cost=constant)
    with pytest.raises(BudgetError, match="at their floors"):
        conduct(evolution(tiny.space, most=0.01), tiny, score=score)
    with pytest.raises(BudgetError, match="not even with the fewest"):
        conduct(path(tiny.space, RECORDED[:1], targets=[0.01]), tiny, score=score)


# -- path -------------------------------------------------------------------------------------


def test_recorded_widths_become_nested_specs(tiny):
    found = conduct(path(tiny.space, RECORDED), tiny, score=lambda spec: 0.5)
    assert [dict(each.spec) for each in found] == [
        {"conv1": 8, "conv2": 8},
        {"conv1": 6, "conv2": 6},  # 5 is a tie, and goes up
        {"conv1": 6, "conv2": 4},  # 7 is more than the subnet before has
        {"conv1": 2, "conv2": 4},
    ]


@given(
    st.lists(
        st.fixed_dictionaries({"conv1": st.floats(0, 9), "conv2": st.floats(0, 9)}), max_size=5
    ),
    st.floats(0.1, 1.0),
)
@settings(max_examples=40)
def test_path_keeps_within_its_targets(tiny, recorded, target):
    targets = [target] * len(recorded)
    found = conduct(path(tiny.space, recorded, targets=targets), tiny, score=lambda spec: 0.5)
    full = tiny.space.macs(tiny.space.full)
    assert found[0].spec == tiny.space.full
    for one, after in itertools.pairwise(found):
        assert all(one.spec[name] >= after.spec[name] for name in one.spec)
        assert tiny.space.macs(after.spec) <= target * full


@pytest.mark.parametrize(
    ("recorded", "targets", "message"),
    [
        ([{"conv3": 4}], (), "did you mean"),
        ([{"conv1": "wide"}], (), "number of units"),
        ([{"conv1": -1}], (), "number of units"),
        ([{"conv1": 4}], (0.5, 0.2), "for each of the 1"),
        ([{"conv1": 4}], (1.5,), "above 0 and at most 1"),
    ],
)
def test_path_checks_what_was_recorded(tiny, recorded, targets, message):
    with pytest.raises(SpecError, match=message):
        conduct(path(tiny.space, recorded, targets=targets), tiny, score=lambda spec: 0.5)


# -- evolution --------------------------------------------------------------------------------


def test_evolution_finds_the_whole_front_of_a_small_space(tiny, made_up):
    score = made_up(tiny.space)
    make = evolution(tiny.space, trials=16, population=4, floor=0.1)
    found = conduct(make, tiny, score=score)
    assert found == front([Found(s, score(s)) for s in every(tiny.space)], tiny.space.macs)


def test_evolution_beats_chance_on_a_space_that_it_cannot_exhaust(deep, scores):
    score, asked = scores["interacting"](deep.space), []
    make = evolution(deep.space, trials=120, population=12, seed=3)
    found = conduct(make, deep, score=lambda spec: asked.append(spec) or score(spec))
    assert len(asked) == len(set(asked)) == 120
    first = front([Found(s, score(s)) for s in asked[:40]], deep.space.macs)

    def gained(points):  # accuracy within budgets, summed
        full = deep.space.macs(deep.space.full)
        return sum(
            max((p.accuracy for p in points if deep.space.macs(p.spec) <= b * full), default=0)
            for b in (0.75, 0.5, 0.35, 0.25)
        )

    assert gained(found) > gained(first)


def test_evolution_depends_on_its_seed_alone(deep, scores):
    score = scores["interacting"](deep.space)
    runs = []
    for seed in (1, 1, 2):
        asked = []
        conduct(
            evolution(deep.space, trials=30, population=6, seed=seed),
            deep,
            score=lambda spec, asked=asked: asked.append(spec) or score(spec),
        )
        runs.append(asked)
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"trials": 0}, "trials="), ({"population": 1}, "population="), ({"most": 0}, "most=")],
)
def test_evolution_checks_its_options(tiny, options, message):
    with pytest.raises(SpecError, match=message):
        conduct(evolution(tiny.space, **options), tiny, score=lambda spec: 0.5)


def test_without_optuna_the_cure_is_named(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ModelError, match=r"pip install nestling\[search\]"):
        conduct(evolution(tiny.space), tiny, score=lambda spec: 0.5)


# -- front ------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 9)), max_size=16))
@settings(max_examples=60)
def test_the_front_is_what_nothing_dominates(tiny, rows):
    specs = every(tiny.space)
    found = [Found(specs[place], accuracy / 10) for place, accuracy in rows]
    cost = tiny.space.macs
    kept = front(found, cost)
    for each in found:
        beaten = any(
            cost(o.spec) <= cost(each.spec)
            and o.accuracy >= each.accuracy
            and (cost(o.spec) < cost(each.spec) or o.accuracy > each.accuracy)
            for o in found
        )
        assert beaten or (cost(each.spec), each.accuracy) in [
            (cost(k.spec), k.accuracy) for k in kept
        ]
        assert not (beaten and each in kept)
    assert kept == sorted(kept, key=lambda each: -cost(each.spec))
