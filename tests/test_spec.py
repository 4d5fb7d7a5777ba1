"""Specs and spaces: what is allowed, what is said otherwise, what a share means."""

import itertools
import pickle
import subprocess
import sys

import numpy as np
import pytest

from nestling.errors import BudgetError, SpecError
from nestling.extent import Along, Fixed
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
