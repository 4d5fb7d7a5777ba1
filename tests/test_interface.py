import pytest
import torch
from torch import nn

from nestling import ModelError
from nestling.interface import Interface, example
from nestling.signature import Signature


class Nested(nn.Module):
    """Takes tensors by place and keyword; returns a structure with a number in it."""

    def forward(self, left, right, *, scale):
        return {"sum": (left + right) * scale, "parts": (left, [right, 3])}


LEFT, RIGHT, SCALE = torch.randn(2, 4), torch.randn(2, 4), torch.randn(2, 1)


@pytest.fixture
def interface():
    return Interface.of(Nested(), Signature.of([LEFT, RIGHT], {"scale": SCALE}))


def test_names_are_those_of_the_model(interface):
    assert interface.inputs == ("left", "right", "scale")
    assert interface.outputs == ("sum", "parts_0", "parts_1_0")
    plain = Interface.of(nn.Linear(4, 3), Signature.of([LEFT], {}))
    assert (plain.inputs, plain.outputs) == (("input",), ("output",))


def test_outputs_come_back_as_the_model_returns_them(interface):
    wanted = Nested()(LEFT, RIGHT, scale=SCALE)
    found = interface.nested([wanted["sum"], LEFT, RIGHT])
    assert found.keys() == wanted.keys()
    assert torch.equal(found["sum"], wanted["sum"])
    assert found["parts"][1][1] == 3
    assert isinstance(found["parts"], tuple)


def test_inputs_by_place_or_keyword_are_one_list(interface):
    ways = [
        ((LEFT, RIGHT), {"scale": SCALE}),
        ((LEFT,), {"scale": SCALE, "right": RIGHT}),
        ((), {"scale": SCALE, "right": RIGHT, "left": LEFT}),
    ]
    for args, kwargs in ways:
        flat = interface.flat(args, kwargs)
        assert [tensor.data_ptr() for tensor in flat] == [
            tensor.data_ptr() for tensor in (LEFT, RIGHT, SCALE)
        ]


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ((LEFT,), {}, "the inputs are left, right, scale, not left"),
        ((LEFT, RIGHT), {"scal": SCALE}, "not left, right, scal"),
        ((LEFT, RIGHT, RIGHT[:, :3]), {}, "not left, right"),
        ((LEFT, RIGHT[:, :3]), {"scale": SCALE}, r"right does not fit, it is \(2, 3\)"),
        ((LEFT, RIGHT.double()), {"scale": SCALE}, "right does not fit.*float64"),
        ((LEFT, [1.0]), {"scale": SCALE}, "right is a tensor, not list"),
    ],
)
def test_calls_that_do_not_fit(interface, args, kwargs, said):
    with pytest.raises(ValueError, match=said):
        interface.flat(args, kwargs)


def test_any_number_of_examples_fits(interface):
    flat = interface.flat((LEFT[:1], RIGHT[:1]), {"scale": SCALE[:1]})
    assert [len(tensor) for tensor in flat] == [1, 1, 1]


def test_models_that_no_engine_can_run():
    with pytest.raises(ModelError, match="takes tensors only"):
        Interface.of(nn.Linear(4, 3), Signature.of([LEFT, 3], {}))
    with pytest.raises(ModelError, match="must return tensors, but it returns int"):
        Interface.of(Constant(), Signature.of([LEFT], {}))
    with pytest.raises(ModelError, match="fails on inputs like"):
        Interface.of(nn.Linear(5, 3), Signature.of([LEFT], {}))


class Constant(nn.Module):
    def forward(self, x):
        return 3


def test_made_up_inputs_differ_by_seed_and_whole_numbers_do_not():
    signature = Signature.of([LEFT, torch.ones(2, 3, dtype=torch.int64)], {})
    (first, mask), _ = example(signature, 3, seed=1)
    (second, other), _ = example(signature, 3, seed=2)
    (again, _), _ = example(signature, 3, seed=1)
    assert first.shape == (3, 4)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert torch.equal(mask, other)
