"""Passages: what a block that is passed by returns, how that is written down, what is refused."""

from __future__ import annotations

import collections
import copy
import dataclasses
import io
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nestling.errors import ModelError
from nestling.passage import (
    DEEPEST,
    Given,
    Named,
    Output,
    PassBy,
    Several,
    fits,
    from_json,
    passed_by,
    to_json,
)

X, Y = torch.arange(3.0), torch.ones(2)
FIRST, WORD = Given((0,)), Given(("y",))


def test_what_is_returned():
    assert PassBy(FIRST)(X, y=Y) is X
    assert PassBy(WORD)(X, y=Y) is Y
    assert PassBy(None)(X) is None
    assert PassBy(Given((0, 1, "a")))([X, {"a": Y}]) is Y
    assert torch.equal(PassBy(Given((0,), zero=True))(X), torch.zeros(3))
    assert PassBy(Several((FIRST, None)))(X) == (X, None)
    assert PassBy(Several((FIRST, Several((WORD,))), is_list=True))(X, y=Y) == [X, (Y,)]


def test_named_values():
    found = PassBy(Named("dict", ("hidden states", "none"), (FIRST, None)))(X)
    assert type(found) is dict
    assert found == {"hidden states": X, "none": None}
    found = PassBy(Named("named tuple", ("one", "two"), (FIRST, WORD)))(X, y=Y)
    one, two = found
    assert one is found.one is found[0] is X
    assert two is found.two is Y
    found = PassBy(Named("object", ("one",), (FIRST,)))(X)
    assert found.one is X
    assert not isinstance(found, (dict, tuple))


def test_an_output_is_a_dict_with_attributes_and_places():
    out = PassBy(Named("output", ("hidden", "weights"), (FIRST, None)))(X)
    assert isinstance(out, dict)
    assert out.hidden is out["hidden"] is out[0] is out.to_tuple()[0] is X
    assert out[:1] == (X,)
    assert out.weights is None
    assert out["weights"] is None
    assert out.get("weights") is None
    assert list(out) == ["hidden"]
    with pytest.raises(AttributeError, match="'other'"):
        _ = out.other
    with pytest.raises(KeyError):
        _ = out["other"]
    assert copy.deepcopy(Output(("a",), (1,))).a == 1


@pytest.mark.parametrize("call", [((), {}), ((), {"x": X}), ((X,), {"x": X})])
def test_a_call_with_other_arguments_is_refused_in_words(call):
    args, kwargs = call
    with pytest.raises(ModelError, match="called with other arguments than when the supernet was"):
        PassBy(Several((FIRST, WORD)))(*args, **kwargs)


def passages():
    keys = st.integers(0, 999) | st.sampled_from(["x", "hidden_states", "a1"])
    path = st.tuples(keys) | st.tuples(keys, keys)
    leaf = st.none() | st.builds(Given, path, st.booleans())
    return st.recursive(leaf, lambda inner: several(inner) | named(inner), max_leaves=6)


def several(inner):
    items = st.lists(inner).map(tuple)
    return st.builds(Several, items, st.booleans())


def named(inner):
    def build(kind, items):
        names = tuple(f"name{n}" for n in range(len(items)))
        return Named(kind, names, tuple(items))

    kinds = st.sampled_from(["dict", "output", "named tuple", "object"])
    return st.builds(build, kinds, st.lists(inner, max_size=3))


@given(passages())
def test_json_both_ways(passage):
    written = json.loads(json.dumps(to_json(passage)))
    try:
        assert from_json(written) == passage
    except ValueError:
        assert depth(passage) > DEEPEST


def depth(passage):
    items = getattr(passage, "items", ())
    return 1 + max(map(depth, items), default=0) if items else 0


def deep(levels):
    value = ["given", 0]
    for _ in range(levels):
        value = ["tuple", value]
    return value


REFUSED = {
    "number": 0,
    "text": "given",
    "truth": True,
    "object": {"given": 0},
    "empty": [],
    "no path": ["given"],
    "negative": ["given", -1],
    "huge": ["given", 10**9],
    "fraction": ["given", 0.0],
    "true": ["given", True],
    "no word": ["given", "a b"],
    "nested path": ["given", [0]],
    "unknown": ["call", 0],
    "unknown named": ["os.system", ["x"], None],
    "kind of a list": [["dict"], ["x"], None],
    "names no list": ["dict", "x", None],
    "names of numbers": ["dict", [1], None],
    "a name too few": ["dict", ["x"], None, None],
    "one name twice": ["dict", ["x", "x"], None, None],
    "private name": ["object", ["__class__"], None],
    "keyword": ["named tuple", ["class"], None],
    "no identifier": ["output", ["a b"], None],
    "escape code": ["dict", ["\x1b[2J"], None],
    "inner": ["tuple", ["tuple", 7]],
    "too deep": deep(DEEPEST + 1),
    "far too deep": deep(500),
    "too long": ["tuple", *[None] * 2000],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_passage_is_refused(name):
    with pytest.raises(ValueError, match=r"passage|names|name|kind") as caught:
        from_json(REFUSED[name])
    assert len(str(caught.value)) < 300


def test_the_deepest_passage_is_read():
    assert depth(from_json(deep(DEEPEST))) == DEEPEST


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.sampled_from(["given"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
)


@given(JSON)
def test_anything_is_a_passage_or_refused(value):
    try:
        passage = from_json(value)
    except ValueError:
        return
    assert to_json(passage) == value


def test_whether_a_block_returned_what_the_passage_says():
    assert fits(FIRST, (X,), {}, X + 1)
    assert not fits(FIRST, (X,), {}, Y)
    assert not fits(FIRST, (X,), {}, (X, Y))
    assert not fits(FIRST, (), {"x": X}, X)
    assert fits(None, (X,), {}, X)
    both = Several((FIRST, None))
    assert fits(both, (X,), {}, (X, "anything"))
    assert fits(both, (X,), {}, [X, None])
    assert not fits(both, (X,), {}, (X,))
    assert not fits(both, (X,), {}, torch.stack([X, X]))
    record = Named("output", ("hidden", "other"), (FIRST, WORD))
    assert fits(record, (X,), {"y": Y}, {"hidden": X, "other": Y})
    assert not fits(record, (X,), {"y": Y}, {"hidden": X})
    pair = collections.namedtuple("pair", ("hidden", "other"))
    assert fits(record, (X,), {"y": Y}, pair(X, Y))
    assert not fits(record, (X,), {"y": Y}, X)


@dataclasses.dataclass
class Sizes:
    width: int = 3


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.sizes, self.seen = nn.Linear(3, 3), Sizes(), None
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.seen = x
        return x + self.linear(x)


def test_a_block_that_is_passed_by():
    block = Block()
    block(X)
    attributes = {k: v for k, v in vars(block).items() if not k.startswith("_") or "hook" in k}
    twin = passed_by(block, FIRST, attributes)
    assert type(twin) is Block
    assert twin(X) is X
    assert not list(twin.parameters())
    assert not list(twin.buffers())
    assert not list(twin.children())
    assert not twin.state_dict()
    assert twin.sizes.width == 3
    assert twin.seen is None  # it would be of another run
    assert repr(twin) == "Block(passed by)"
    assert twin.train(False).training is False
    assert twin.to(torch.float64)(X) is X
    for other in (copy.deepcopy(twin), reloaded(twin)):
        assert other(X) is X
        assert repr(other) == "Block(passed by)"
    with pytest.raises(AttributeError):
        _ = twin.linear
    assert block(X) is not X  # the block itself is what it was


def reloaded(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)
