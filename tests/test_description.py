"""The report on a space: folded axes, costs of what is frozen, advice, and what programs read."""

import json

import pytest
import torch
from torch import nn

import nestling
from nestling.advice import advice_on
from nestling.description import (
    WIDTH,
    axis_facts,
    cause_facts,
    causes,
    describe,
    describe_axis,
    folded,
    ranges,
    whole_params,
)
from nestling.extent import Along, Concat, Fixed, Product
from nestling.spec import Axis, Block, Frozen, Layout, Space, Work, allowed_counts


def axis(name, size, kind="channels"):
    return Axis(name, size, kind, allowed_counts(size, kind, None))


def space(*axes, layouts=None, frozen=(), works=(), notes=(), blocks=()):
    named = {one.name: one for one in axes}
    if layouts is None:
        layouts = {f"{name}.weight": Layout((Along(name, a.size),), True, 4)
                   for name, a in named.items() if a.kind != "depth"}  # fmt: skip
    return Space(named, tuple(frozen), layouts, (), tuple(works), tuple(notes), tuple(blocks))


# -- folding ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a.0.x", "a.1.x", "a.2.x"], ["a.0-2.x"]),
        (["a.0.x", "b.0.x", "a.1.x", "b.1.x"], ["a.0-1.x", "b.0-1.x"]),
        (["s.0.b.0", "s.0.b.1", "s.1.b.0", "s.1.b.1"], ["s.0.b.0-1", "s.1.b.0-1"]),
        (["s.0.b.0", "s.1.b.1"], ["s.0.b.0", "s.1.b.1"]),  # two numbers differ
        (["a.0", "a.2", "a.3", "a.9"], ["a.0,2-3,9"]),
        (["layer1.x", "layer2.x"], ["layer1-2.x"]),
        (["a.01", "a.02"], ["a.01", "a.02"]),  # no numbers of layers
        (["x", "y"], ["x", "y"]),
        ([], []),
    ],
)
def test_texts_that_differ_in_one_number_are_folded(texts, expected):
    found = folded(dict.fromkeys(texts, 1))
    assert [text for text, _ in found] == expected
    assert sorted(member for _, members in found for member in members) == sorted(texts)


def test_what_is_not_equal_is_not_folded():
    assert len(folded({"a.0": 1, "a.1": 2})) == 2


def test_loose_values_fold_neighbours_alone():
    texts = {"a.0": 1, "a.1": 2, "a.3": 3}
    found = folded(texts, loose=dict.fromkeys(texts, 0))
    assert found == [("a.0-1", ["a.0", "a.1"]), ("a.3", ["a.3"])]


def test_a_number_at_several_places_folds_together():
    texts = dict.fromkeys(["q.0 with v.0", "q.1 with v.1"], "")
    assert folded(texts, together=True)[0][0] == "q.0-1 with v.0-1"
    assert len(folded(texts)) == 2
    texts = dict.fromkeys([f"b.{n}.at.0.q, b.{n}.at.0.v" for n in range(3)], "")
    assert folded(texts, together=True)[0][0] == "b.0-2.at.0.q, b.0-2.at.0.v"


def test_ranges():
    assert ranges([3, 0, 1]) == "0-1,3"


# -- the axes ---------------------------------------------------------------------------------


def test_the_report_folds_like_axes_and_unfolds_on_demand():
    blocks = [axis(f"blocks.{number}.mlp", 64, "neurons") for number in range(12)]
    text = describe(space(axis("stem", 16), *blocks))
    assert "blocks.0-11.mlp (12 axes)  neurons     64  8 to 64 by 8" in text
    assert text.startswith("13 elastic axes; 100% of the 784 parameters")
    whole = describe(space(axis("stem", 16), *blocks), fold=False)
    assert "(12 axes)" not in whole
    assert all(f"  blocks.{number}.mlp" in whole for number in range(12))
    assert str(space(axis("stem", 16), *blocks)) == text


def test_axes_of_another_size_or_other_counts_stay_apart():
    text = describe(space(axis("a.0", 16), axis("a.1", 24), axis("b.0", 16), axis("b.1", 16)))
    assert "a.0 " in text
    assert "a.1 " in text
    assert "b.0-1 (2 axes)" in text


def test_views_and_gathers():
    one = axis("one", 16)
    layouts = {
        "fused": Layout((Product((Fixed(3), Along("one", 16))),), True, 4),
        "plain": Layout((Along("one", 16),), True, 4),
        "buffer": Layout((Along("one", 16),), False, 4),
    }
    assert "16  8, 16   3, 1 gathered" in describe(space(one, layouts=layouts))
    del layouts["plain"], layouts["buffer"]
    assert "1, all gathered" in describe(space(one, layouts=layouts))


@pytest.mark.parametrize(
    ("size", "kind", "counts"),
    [(12, "heads", "1 to 12"), (16, "neurons", "8, 16"), (127, "channels", "8 to 127 by 8")],
)
def test_counts_are_short(size, kind, counts):
    assert f" {counts} " in describe(space(axis("one", size, kind)))


def test_uneven_counts_are_listed():
    own = space(Axis("one", 24, "channels", (6, 8, 12, 24)))
    assert "6, 8, 12 ... 24" in describe(own)


def test_depth():
    class Passage:
        pass

    depth = Axis("layer2.depth", 3, "depth", (1, 2, 3), outer=False)
    blocks = [Block(f"layer2.{n}", "layer2.depth", n, Passage()) for n in (1, 2)]
    own = space(axis("layer2", 16), depth, blocks=blocks)
    assert "layer2.depth  depth" in describe(own)
    assert "3  1, 2, 3  2 of 3 blocks" in describe(own)
    text = describe_axis(own, "layer2.depth")
    assert "layer2.2  counts from 3" in text
    assert axis_facts(own, "layer2.depth")["blocks"] == ["layer2.1", "layer2.2"]


def test_no_line_is_wider_than_the_report():
    names = [f"{'encoder.very_long_module_name.' * 3}{n}.{w}" for n in range(3) for w in "xy"]
    rows = [Frozen(f"{name}.weight", 0, 8, "op", name, "no rule for the op 'op'") for name in names]
    layouts = {f"{name}.weight": Layout((Fixed(8),), True, 4) for name in names}
    text = describe(space(*[axis(name, 64) for name in names], layouts=layouts, frozen=rows))
    long = [line for line in text.splitlines() if len(line) > WIDTH]
    assert all(line.strip().count(" ") <= 2 for line in long)  # nothing but a name, and "(n axes)"


# -- what is frozen ---------------------------------------------------------------------------


def frozen_space(*rows, elastic=()):
    """A space in which each (parameter, shape) of `rows` is frozen for its reason."""
    frozen, layouts = [], {}
    for name, sizes, reasons in rows:
        layouts[name] = Layout(tuple(map(Fixed, sizes)), True, 4)
        frozen += [
            Frozen(name, dim, sizes[dim], *place, reason)
            for dim, (reason, place) in enumerate(reasons)
        ]
    for name, sizes in elastic:
        layouts[name] = Layout((Along("one", sizes[0]), *map(Fixed, sizes[1:])), True, 4)
    return space(axis("one", 16), layouts=layouts, frozen=frozen)


INPUT, OUTPUT = ("size of an input", ("", "")), ("size of the model's output", ("", ""))
LOOKUP = ("rows are looked up by value", ("embedding", "tokens"))
UNKNOWN_OP = ("no rule for the op 'renorm'", ("renorm", "fc"))
LOOSE = ("meets a tensor that is no input, parameter or buffer (register it as one)", ("mul", ""))


def test_a_parameter_is_lost_only_if_nothing_of_it_is_elastic():
    own = frozen_space(("fc.weight", (8, 4), [UNKNOWN_OP, INPUT]), elastic=[("one.w", (16, 10))])
    row = Frozen("one.w", 1, 10, "", "", OUTPUT[0])
    own = Space(own.axes, (*own.frozen, row), own.layouts, (), ())
    found = {cause.advice.key: cause.params for cause in causes(own)}
    assert found == {"no_rule": 32, "input": 0, "output": 0}
    assert whole_params(own) == 192


def test_a_tensor_counts_once_and_where_something_can_be_done():
    own = frozen_space(("tokens.weight", (100, 8), [LOOKUP, OUTPUT]))
    assert {cause.advice.key: cause.params for cause in causes(own)} == {"output": 800, "lookup": 0}
    own = frozen_space(("fc.weight", (100, 8), [OUTPUT, LOOSE]))
    found = causes(own)
    assert [cause.advice.key for cause in found] == ["loose_tensor", "output"]
    assert [cause.params for cause in found] == [800, 0]


def test_causes_add_up_to_what_is_not_elastic():
    own = frozen_space(
        ("a", (8, 4), [UNKNOWN_OP, INPUT]),
        ("b", (7,), [OUTPUT]),
        ("c", (5, 3), [LOOSE, LOOSE]),
        elastic=[("one.w", (16, 2))],
    )
    lost = sum(cause.params for cause in causes(own))
    assert lost == 32 + 7 + 15
    assert lost / whole_params(own) == pytest.approx(1 - own.elastic_share())


def test_what_is_expected_takes_one_calm_line():
    own = frozen_space(
        ("head.bias", (2,), [OUTPUT]), ("scale", (1, 3), [INPUT]), elastic=[("one.w", (16, 800))]
    )
    text = describe(own)
    assert "as expected, 2 dimensions keep their size: 1 of the inputs, 1 of the outputs" in text
    assert "->" not in text
    assert "frozen" not in text


def test_the_bias_of_the_last_layer_is_no_news_in_a_small_net():
    own = frozen_space(("head.bias", (10,), [OUTPUT]), elastic=[("head.weight", (16, 10))])
    assert "frozen" not in describe(own)


def test_outputs_that_cost_much_are_told_with_advice():
    own = frozen_space(("wide.weight", (100, 8), [OUTPUT, OUTPUT]), elastic=[("one.w", (16, 10))])
    text = describe(own)
    assert "frozen; 800 parameters (83.3%) are in tensors that no axis cuts:" in text
    assert "    800 parameters, 2 dimensions: wide.weight[0-1]" in text
    assert "-> name what you need of the outputs with outputs=" in text


def test_the_most_costly_cause_is_first_with_op_module_and_advice():
    text = describe(
        frozen_space(
            ("small", (5, 3), [LOOSE, LOOSE]), ("large", (50, 30), [UNKNOWN_OP, UNKNOWN_OP])
        )
    )
    assert text.index("no rule for the op 'renorm' (renorm in fc)") < text.index("meets a tensor")
    assert "docs/models.md#a-rule-of-your-own" in text
    assert "self.register_buffer(name, tensor)" in text


def test_causes_of_like_layers_are_one():
    rows = [
        (f"layers.{n}.w", (8,), [("positions matter", ("cumsum", f"layers.{n}"))]) for n in range(5)
    ]
    text = describe(frozen_space(*rows))
    assert text.count("positions matter") == 1
    assert "positions matter (cumsum in layers.0-4)" in text
    assert "    40 parameters, 5 dimensions: layers.0-4.w[0]" in text


def test_notes_on_ties_are_folded():
    names = ", ".join(f"layers.{n}.head_size" for n in range(32))
    text = describe(space(axis("one", 16), notes=[f"tied, because the code cuts them: {names}"]))
    assert "note: tied, because the code cuts them: layers.0-31.head_size" in text


def test_nothing_elastic():
    own = Space({}, (), {"w": Layout((Fixed(3),), True, 4)}, (), ())
    assert describe(own) == "0 elastic axes; 0% of the 3 parameters are in tensors that they cut"


# -- facts for programs -----------------------------------------------------------------------


def test_facts_of_an_axis():
    one, two = axis("one", 16), axis("two", 8)
    layouts = {
        "a": Layout((Along("one", 16), Fixed(3)), True, 4),
        "b": Layout((Along("two", 8), Concat((Along("one", 16), Along("one", 16)))), True, 4),
        "norm": Layout((Along("one", 16),), False, 4),
    }
    works = [Work("a", (Along("one", 16), Fixed(3))), Work("b", (Along("two", 8), Fixed(32)))]
    facts = axis_facts(space(one, two, layouts=layouts, works=works), "one")
    assert json.loads(json.dumps(facts)) == facts
    assert facts["counts"] == [8, 16]
    assert facts["half"] == {"count": 8, "macs": 24, "params": 8 * 3 + 8 * 16}
    keys = ("tensor", "dim", "size", "parameter", "cut")
    assert [tuple(tensor[key] for key in keys) for tensor in facts["tensors"]] == [
        ("a", 0, 16, True, "view"),
        ("b", 1, 32, True, "gather"),
        ("norm", 0, 16, False, "view"),
    ]
    text = describe_axis(space(one, two, layouts=layouts, works=works), "one")
    assert "at 8 the net saves 24 multiply-accumulates" in text
    assert "b[1]" in text


def test_facts_of_a_cause():
    facts = cause_facts(causes(frozen_space(("fc.weight", (8, 4), [UNKNOWN_OP] * 2)))[0])
    assert json.loads(json.dumps(facts)) == facts
    assert facts["key"] == "no_rule"
    assert (facts["op"], facts["module"], facts["params"]) == ("renorm", "fc", 32)
    assert facts["dimensions"][1] == {"parameter": "fc.weight", "dim": 1, "size": 4}
    assert facts["advice"] == advice_on(UNKNOWN_OP[0]).text
    assert not facts["expected"]


# -- on real nets -----------------------------------------------------------------------------


class Stiff(nn.Module):
    """Holds a loose tensor and an op without a rule; `mend` takes both away."""

    def __init__(self, mend):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(6, 16), nn.Linear(16, 24), nn.Linear(24, 4)
        self.mend = mend
        if mend:
            self.register_buffer("scale", torch.rand(16))
        else:
            self.scale = torch.rand(16)

    def forward(self, x):
        x = self.two(self.one(x) * self.scale)
        return self.three(x if self.mend else torch.renorm(x, 2, 0, 9.0))


class Whole(nn.Module):
    """One elastic layer beside one that nothing can be cut of."""

    def __init__(self, mend):
        super().__init__()
        self.stiff, self.free = Stiff(mend), nn.Sequential(nn.Linear(6, 16), nn.Linear(16, 4))

    def forward(self, x):
        return self.stiff(x) + self.free(x)


def test_the_advice_helps():
    net = nestling.Supernet(Whole(mend=False), torch.randn(3, 6))
    found = {cause.advice.key: cause for cause in causes(net.space)}
    assert found["loose_tensor"].module == "stiff"
    assert found["loose_tensor"].op == "mul"
    assert found["no_rule"].op == "renorm"
    assert set(net.space.axes) == {"free.0"}
    report = str(net.space)
    assert "register_buffer" in report
    better = nestling.Supernet(Whole(mend=True), torch.randn(3, 6))
    assert set(better.space.axes) == {"stiff.one", "stiff.two", "free.0"}
    assert not {"loose_tensor", "no_rule"} & {c.advice.key for c in causes(better.space)}


def test_the_parameters_saved_are_those_of_the_subnet():
    net = nestling.Supernet(nestling.models.mlp(6, (16, 24)), torch.randn(2, 6))
    for name in net.space.axes:
        half = axis_facts(net.space, name)["half"]
        subnet = net.subnet(net.space.spec({name: half["count"]}))
        counted = [sum(p.numel() for p in m.parameters()) for m in (net.model, subnet)]
        assert counted[0] - counted[1] == half["params"]


def test_a_net_with_nothing_elastic_is_refused_with_the_advice():
    with pytest.raises(nestling.ModelError, match=r"no rule for the op 'renorm' \(teach it the op"):
        nestling.Supernet(Stiff(mend=False), torch.randn(3, 6))
