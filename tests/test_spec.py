"""Specs and spaces: what is allowed, what is said otherwise, what a share means."""

import itertools
import pickle
import subprocess
import sys

import numpy as np
import pytest

from nestling.errors import BudgetError, SpecError
from nestling.extent import Along, Fixed, Product
from nestling.spec import Attribute, Axis, Layout, Space, Spec, Work, allowed_counts


def space(sizes=(16, 32, 5), outer=True):
    names = ["one", "two", "three"][: len(sizes)]
    axes = {
        n: Axis(n, s, "channels", allowed_counts(s, "channels", None), outer)
        for n, s in zip(names, sizes, strict=True)
    }
    alongs = [Fixed(3), *(Along(n, s) for n, s in zip(names, sizes, strict=True)), Fixed(10)]
    layouts, works = {}, []
    for number, (inputs, outputs) in enumerate(itertools.pairwise(alongs)):
        layouts[f"{number}.weight"] = Layout((outputs, inputs), True, 4)
        layouts[f"{number}.count"] = Layout((), False, 8)
        works.append(Work(str(number), (outputs, inputs, Fixed(49))))
    attributes = (Attribute("0", "out_features", None, alongs[1]),)
    return Space(axes, (), layouts, attributes, tuple(works))


SPACE = space()


@pytest.mark.parametrize(
    ("size", "kind", "step", "expected"),
    [
        (64, "channels", None, tuple(range(8, 65, 8))),
        (128, "channels", None, tuple(range(16, 129, 16))),
        (127, "neurons", None, (*range(8, 127, 8), 127)),
        (16, "channels", None, (8, 16)),
        (20, "channels", None, (8, 16, 20)),
        (15, "channels", None, (4, 8, 12, 15)),
        (3, "channels", None, (1, 2, 3)),
        (1, "channels", None, (1,)),
        (12, "heads", None, tuple(range(1, 13))),
        (150, "paths", None, tuple(range(1, 151))),
        (10, "channels", 3, (3, 6, 9, 10)),
        (10, "channels", 20, (10,)),
    ],
)
def test_allowed_counts(size, kind, step, expected):
    assert allowed_counts(size, kind, step) == expected


def test_a_spec_is_a_frozen_complete_mapping():
    spec = Spec(SPACE, {"two": 8})
    assert dict(spec) == {"one": 16, "two": 8, "three": 5}
    assert spec == {"two": 8, "one": 16, "three": 5}
    assert spec != {"two": 8}
    assert repr(spec) == "Spec(one=16, two=8, three=5)"
    assert Spec(SPACE, {"two": np.int64(8)}) == spec
    assert type(Spec(SPACE, {"two": np.int64(8)})["two"]) is int
    for change in (
        lambda: setattr(spec, "two", 3),
        lambda: setattr(spec, "_counts", {}),
        lambda: delattr(spec, "two"),
    ):
        with pytest.raises(AttributeError):
            change()
    with pytest.raises(TypeError):
        spec["two"] = 16


def test_equal_specs_hash_alike_in_any_order_and_process():
    turned = space()
    turned = Space(dict(reversed(turned.axes.items())), (), turned.layouts, (), turned.works)
    one, other = Spec(SPACE, {"one": 8}), Spec(turned, {"one": 8})
    assert one == other
    assert hash(one) == hash(other)
    assert len({one, other, SPACE.full}) == 2
    code = "import pickle, sys; s = pickle.loads(sys.stdin.buffer.read()); print(s in {s: 1}, s)"
    code += "; from nestling.spec import _restored; print(hash(_restored(dict(s))) == hash(s))"
    run = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(one), capture_output=True, check=True
    )
    assert run.stdout.decode().split() == ["True", *repr(one).split(), "True"]


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"tow": 8}, "unknown axis 'tow'; did you mean 'two'.* one, two, three"),
        ({3: 8}, "unknown axis 3"),
        (
            {"one": 5},
            r"cannot keep 5 of 16 channels: counts go in steps of 8; choose one of \(8, 16\)",
        ),
        ({"one": 0}, "cannot keep 0"),
        ({"one": -8}, "cannot keep -8"),
        ({"one": 8.0}, "cannot keep 8.0"),
        ({"one": True}, "cannot keep True"),
        ({"one": "8"}, "cannot keep '8'"),
        ({"one": None}, "cannot keep None"),
        ([8, 8], "mapping"),
        (0.5, "fraction="),
    ],
)
def test_errors_state_the_rule_the_value_and_the_cure(counts, words):
    with pytest.raises(SpecError, match=words):
        Spec(SPACE, counts)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fraction": 0.5, "width": 0.5},
        {"counts": {}, "width": 0.5},
        {"fraction": 0},
        {"fraction": 1.01},
        {"width": -0.1},
        {"width": float("nan")},
        {"width": True},
        {"width": "0.5"},
    ],
    ids=str,
)
def test_a_spec_is_made_from_one_share(options):
    with pytest.raises(SpecError):
        SPACE.spec(**options)


def test_widths():
    assert SPACE.spec(width=1.0) == SPACE.full == SPACE.spec({}) == SPACE.spec(width=1)
    assert SPACE.spec(width=0.5) == {"one": 8, "two": 16, "three": 2}
    assert SPACE.spec(width=0.75)["one"] == 16  # the larger of two
    assert SPACE.spec(width=np.float32(0.5)) == SPACE.spec(width=0.5)
    specs = [SPACE.spec(width=number / 500) for number in range(1, 501)]
    for low, high in itertools.pairwise(specs):
        assert all(low[name] <= high[name] for name in SPACE.axes)
    assert list(dict.fromkeys(specs)) == list(SPACE.uniform)


@pytest.mark.parametrize("sizes", [(16, 32, 5), (24, 24), (129, 640, 7)])
def test_a_fraction_is_never_exceeded_and_is_the_widest(sizes):
    own = space(sizes)
    full = own.macs(own.full)
    least = own.macs(own.uniform[0]) / full
    for number in range(1, 400):
        fraction = number / 399
        if fraction < least:
            with pytest.raises(BudgetError, match="narrowest costs"):
                own.spec(fraction=fraction)
            continue
        spec = own.spec(fraction=fraction)
        assert own.macs(spec) / full <= fraction
        wider = [other for other in own.uniform if own.macs(other) > own.macs(spec)]
        assert all(own.macs(other) / full > fraction for other in wider)
    for spec in own.uniform:
        assert own.macs(own.spec(fraction=own.macs(spec) / full)) == own.macs(spec)


def test_inner_axes_are_left_whole_by_widths():
    own = space(outer=False)
    assert own.spec(width=0.1) == own.full
    assert own.uniform == (own.full,)


def test_costs():
    spec = Spec(SPACE, {"one": 8, "two": 16})
    assert SPACE.macs(spec) == 49 * (8 * 3 + 16 * 8 + 5 * 16 + 10 * 5)
    assert SPACE.params(spec) == 8 * 3 + 16 * 8 + 5 * 16 + 10 * 5
    assert SPACE.bytes(spec) == 4 * SPACE.params(spec) + 4 * 8
    for name, axis in SPACE.axes.items():
        macs = [SPACE.macs(Spec(SPACE, {name: count})) for count in axis.counts]
        assert macs == sorted(macs)


def test_tied_and_touches():
    own = space((16, 16))
    tied = own.tied(["two", "one"])
    assert list(tied.axes) == ["two"]
    assert Spec(tied, {"two": 8}) == {"two": 8}
    assert tied.layouts["1.weight"].shape({"two": 8}) == (8, 8)
    assert tied.attributes[0].extent == Along("two", 16)
    assert own.touches("one") == [("0.weight", 0), ("1.weight", 1)]
    with pytest.raises(SpecError, match="of one size"):
        SPACE.tied(["one", "two"])
    with pytest.raises(SpecError, match="did you mean 'one'"):
        SPACE.tied(["oen", "two"])


def stack():
    sizes = {"blocks.0.mlp": 16, "blocks.1.mlp": 16, "blocks.2.mlp": 8, "blocks.0.heads": 4}
    axes = {n: Axis(n, size, "heads", tuple(range(1, size + 1))) for n, size in sizes.items()}
    return Space(axes, (), {}, (), ())


def test_units_with_an_order_of_their_own_are_tied_to_none_of_others():
    axes = {
        name: Axis(name, 4, kind, (1, 2, 3, 4), kind != "depth")
        for name, kind in {"a": "depth", "b": "depth", "c": "channels", "d": "heads"}.items()
    }
    own = Space(axes, (), {"w": Layout((Along("c", 4), Along("d", 4)), True, 4)}, (), ())
    said = "kind depth or bits can only be tied.*'a' is depth, 'c' is channels; tie each kind"
    with pytest.raises(SpecError, match=said):
        own.tied(["a", "c"])
    with pytest.raises(SpecError, match="'c' is channels, 'a' is depth"):
        own.become({"c": Along("a", 4)})
    with pytest.raises(SpecError, match="'a' is depth, 'd' is heads"):
        own.become({"a": Product((Along("d", 4), Fixed(1)))})
    assert list(own.tied(["a", "b"]).axes) == ["a", "c", "d"]
    assert list(own.tied(["c", "d"]).axes) == ["a", "b", "c"]
    assert list(own.become({"c": Along("d", 4)}).axes) == ["a", "b", "d"]


def test_a_pattern_stands_for_all_axes_that_it_matches():
    made = stack().spec({"blocks.*.mlp": 6, "blocks.1.mlp": 12})
    assert list(made.values()) == [6, 12, 6, 4]
    assert stack().spec({"blocks.1.mlp": 12, "blocks.*.mlp": 6}) == made
    assert list(stack().spec({"blocks.[01].mlp": 3, "*.heads": 1}).values()) == [3, 3, 8, 1]


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"layers.*.mlp": 6}, r"unknown axis 'layers\.\*\.mlp'"),
        ({"blocks.*.mlp": 12}, "axis 'blocks.2.mlp' cannot keep 12 of 8"),
        ({"blocks.*.mlp": 6, "blocks.0.*": 3}, "axis 'blocks.0.mlp' different counts, 6 and 3"),
        (
            {"blocks.0-2.mlp": 6},
            r"folds like names .* write blocks\.0\.mlp or the pattern blocks\.\*\.mlp",
        ),
        ({"blocks.0,2.mlp": 6}, r"write blocks\.0\.mlp or the pattern blocks\.\*\.mlp"),
        ({"layers.0-2.mlp": 6}, "did you mean .blocks.2.mlp."),
    ],
)
def test_patterns_that_do_not_fit(counts, said):
    with pytest.raises(SpecError, match=said):
        stack().spec(counts)
