"""Laws: how likely each count of an axis is."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nestling import SpecError
from nestling.objectives import Law, draws_of
from nestling.objectives.law import Draws
from nestling.search.steps import stairs
from nestling.spec import Axis, Space


def axes(**given):
    """Return a space of axes alone: name to (kind, size)."""
    made = {
        name.replace("_", "."): Axis(name.replace("_", "."), size, kind, tuple(range(1, size + 1)))
        for name, (kind, size) in given.items()
    }
    return Space(axes=made, frozen=(), layouts={}, attributes=(), works=())


@pytest.fixture(scope="module")
def space():
    channels = {f"layer{n}_{part}": ("channels", 4 * 2**n) for n in (1, 2, 3) for part in "abc"}
    depth = {f"layer{n}_depth": ("depth", 2) for n in (1, 2, 3)}
    return axes(**channels, **depth)


@given(
    low=st.floats(0.01, 0.99),
    groups=st.none() | st.integers(2, 40),
    law=st.sampled_from(["uniform", "geometric"]),
    go_on=st.floats(0.05, 0.95),
)
def test_every_law_is_one_on_allowed_counts(space, low, groups, law, go_on):
    draws = draws_of(space, law=law, low=low, groups=groups, go_on=go_on)
    for name, each in draws.laws.items():
        assert math.isclose(sum(each.chances), 1)
        assert all(chance > 0 for chance in each.chances)
        assert all(one < other for one, other in pairwise(each.counts))
        assert set(each.counts) <= set(space.axes[name].counts)
        assert each.counts[-1] == space.axes[name].size
    floors = draws.floors(space)
    assert floors.keys() == space.axes.keys()
    assert all(floors[n] * space.axes[n].size == law.counts[0] for n, law in draws.laws.items())


@pytest.mark.parametrize("low", [0.25, 0.3, 0.29, 1 / 3, 0.07])
def test_uniform_has_all_counts_from_the_floor_of_the_share_on(space, low):
    for name, law in draws_of(space, low=low).laws.items():
        size = space.axes[name].size
        first = max(1, math.floor(round(low * size, 9)))
        assert law.counts == tuple(range(first, size + 1))
        assert law.chances == (1 / len(law.counts),) * len(law.counts)


def test_low_by_kind(space):
    laws = draws_of(space, low={"depth": 1.0, "channels": 0.5}).laws
    assert set(laws) == {n for n, axis in space.axes.items() if axis.kind == "channels"}
    assert all(law.counts[0] == space.axes[n].size // 2 for n, law in laws.items())
    assert draws_of(space, low={"depth": 0.5}).laws["layer1.a"].counts[0] == 2  # 0.25 of 8


def test_geometric_is_what_going_on_group_by_group_gives(space):
    """Against the game itself: keep two groups, then go on with a fair share of luck."""
    law = draws_of(space, law="geometric", go_on=0.8).laws["layer3.a"]  # 32 channels, 32 groups
    torch.manual_seed(0)
    rounds, times = 4000, dict.fromkeys(law.counts, 0)
    for _ in range(rounds):
        kept = 2
        while kept < 32 and float(torch.rand(())) < 0.8:
            kept += 1
        times[kept] += 1
    assert law.counts == tuple(range(2, 33))
    for count, chance in zip(law.counts, law.chances, strict=True):
        spread = math.sqrt(rounds * chance * (1 - chance))
        assert abs(times[count] - rounds * chance) < 4 * spread + 1
    assert law.mean == pytest.approx(sum(n * t for n, t in times.items()) / rounds, rel=0.05)


def test_groups_are_kept_or_dropped_together(space):
    law = draws_of(space, law="geometric", go_on=0.9, groups=4).laws["layer3.a"]
    assert law.counts == (16, 24, 32)
    assert law.chances == pytest.approx((0.1, 0.09, 0.81))
    assert draws_of(space, groups=4).laws["layer3.a"].counts == (8, 16, 24, 32)


def test_the_first_two_blocks_stay_under_the_geometric_law():
    law = draws_of(axes(depth=("depth", 3)), law="geometric", go_on=0.8).laws["depth"]
    assert (law.counts, law.chances) == ((2, 3), pytest.approx((0.2, 0.8)))


BITS = Axis("conv.bits", 32, "bits", (2, 4, 8, 32), outer=False)


def test_bits_are_drawn_from_those_that_are_listed():
    """They are no equal parts of their axis, so that shares of it mean nothing."""
    space = Space(
        {**axes(conv=("channels", 8)).axes, "conv.bits": BITS},
        frozen=(), layouts={}, attributes=(), works=(),
    )  # fmt: skip
    for options in ({}, {"low": 0.5}, {"groups": 4}):
        law = draws_of(space, **options).laws["conv.bits"]
        assert (law.counts, law.chances) == ((2, 4, 8, 32), (0.25,) * 4)
    law = draws_of(space, law="geometric", go_on=0.5).laws["conv.bits"]
    assert (law.counts, law.chances) == ((2, 4, 8, 32), (0.5, 0.25, 0.125, 0.125))
    assert draws_of(space, low={"bits": 0.125}).laws["conv.bits"].counts == (4, 8, 32)
    assert draws_of(space, low={"bits": 0.125}).laws["conv"].counts[0] == 2
    assert draws_of(space).floors(space) == {"conv": 0.25, "conv.bits": 2 / 32}
    steps = stairs(space, 2, 0.5)
    assert steps == {"conv": (8, 4), "conv.bits": (32, 8, 4, 2)}
    assert stairs(space, 2, draws_of(space).floors(space)) == {"conv": (8, 4, 2), **{
        "conv.bits": (32, 8, 4, 2)
    }}  # fmt: skip
    assert stairs(space, 2, {"conv.bits": 0.25})["conv.bits"] == (32, 8)


@given(seed=st.integers(0, 1000))
def test_draws_are_of_the_law_and_leave_other_kinds_whole(space, seed):
    draws = draws_of(space, kinds=["depth"])
    spec = draws.spec(space, torch.Generator().manual_seed(seed))
    for name, axis in space.axes.items():
        if axis.kind == "depth":
            assert spec[name] in draws.laws[name].counts
        else:
            assert spec[name] == axis.size


def test_counts_are_drawn_as_often_as_the_law_says(space):
    draws = draws_of(space, law="geometric", go_on=0.7, groups=4)
    generator = torch.Generator().manual_seed(1)
    specs = [draws.spec(space, generator) for _ in range(1500)]
    for name, law in draws.laws.items():
        for count, chance in zip(law.counts, law.chances, strict=True):
            found = sum(spec[name] == count for spec in specs) / len(specs)
            assert abs(found - chance) < 4 * math.sqrt(chance * (1 - chance) / len(specs))


def test_axes_are_drawn_each_by_itself_or_tied(space):
    def shares(tied):
        draws = draws_of(space, kinds=["channels"], tied=tied)
        generator = torch.Generator().manual_seed(0)
        specs = [draws.spec(space, generator) for _ in range(300)]
        table = torch.tensor([[spec[name] for name in draws.laws] for spec in specs]).double()
        return torch.corrcoef(table.T)

    free = shares("axis") - torch.eye(9)
    assert free.abs().max() < 0.25
    assert shares("kind").min() > 0.98
    assert shares("net").min() > 0.98
    both = draws_of(space, tied="kind")
    levels = [both.spec(space) for _ in range(200)]
    pairs = torch.tensor([[spec["layer3.a"], spec["layer1.depth"]] for spec in levels]).double()
    assert torch.corrcoef(pairs.T)[0, 1].abs() < 0.3  # the kinds are drawn apart
    assert len({tuple(spec.items()) for spec in levels}) > 20


def test_how_many_specs_can_be_drawn(space):
    assert draws_of(space, kinds=["depth"]).number == 8
    assert Draws({"a": Law((1, 2), (0.5, 0.5)), "b": Law((2, 3, 4), (0.2, 0.2, 0.6))}).number == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kinds": ["chanels"]},
            r"'chanels', but no axis .*; did you mean 'channels'",
        ),
        ({"kinds": ["paths"]}, "no axis of this net is of that kind"),
        ({"kinds": "depth"}, "kinds= lists kinds"),
        ({"kinds": []}, "kinds= lists kinds"),
        ({"law": "unifrm"}, "law= is one of uniform, geometric, not 'unifrm'; did you mean"),
        ({"low": 0}, "low= is the least share.* but it is 0"),
        ({"low": 1.5}, "low= is the least share"),
        ({"low": True}, "low= is the least share"),
        ({"low": {"paths": 0.5}}, "low= names the kind 'paths', which is not drawn"),
        ({"low": 1}, "no count below the full one is drawn"),
        ({"go_on": 1}, "go_on= is a probability above 0 and below 1, but it is 1"),
        ({"go_on": 0.0}, "go_on="),
        ({"go_on": "0.9"}, "go_on="),
        ({"groups": 1}, "groups= is a whole number of at least 2"),
        ({"groups": 2.5}, "groups="),
        ({"tied": "layer"}, "tied= is one of axis, kind, net"),
    ],
)
def test_bad_options(space, options, message):
    with pytest.raises(SpecError, match=message):
        draws_of(space, **options)


def test_axes_of_one_block_have_nothing_to_drop():
    space = axes(one_depth=("depth", 1), two_depth=("depth", 1), conv=("channels", 4))
    assert set(draws_of(space).laws) == {"conv"}
    with pytest.raises(SpecError, match=r"'two.depth' is one block, which stays; give"):
        draws_of(space, kinds=["depth"])
