from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nestling.axes.structure import map_tensors, tensors_in


@dataclass
class Out:
    logits: Tensor
    hidden: Any = None
    name: str = "out"


@dataclass(frozen=True, slots=True)
class Frozen:
    logits: Tensor
    hidden: Any = None


@dataclass
class ModelOutput(OrderedDict):
    """Both a dictionary and a dataclass, as Hugging Face's."""

    logits: Any = None
    hidden: Any = None

    def __post_init__(self):
        for key in ("logits", "hidden"):
            if getattr(self, key) is not None:
                super().__setitem__(key, getattr(self, key))

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def __reduce__(self):
        kind, _, *rest = super().__reduce__()
        return kind, (self.logits, self.hidden), *rest


class Plain:
    def __init__(self, logits, hidden=None):
        self.logits, self.hidden, self.count = logits, hidden, 3


Pair = namedtuple("Pair", "logits hidden")


def kinds(one, two):
    inner = [two, None, "text"]
    return {
        "tensor": one,
        "tuple": (one, inner),
        "namedtuple": Pair(one, inner),
        "dict": {"logits": one, "hidden": inner},
        "dataclass": Out(one, inner),
        "frozen": Frozen(one, (two,)),
        "namespace": SimpleNamespace(logits=one, hidden={"deep": inner}),
        "object": Plain(one, Out(two)),
        "lists": Plain([one], inner),
        "user dict": UserDict(logits=one, hidden=inner),
        "read only": MappingProxyType({"logits": one, "hidden": inner}),
        "model output": ModelOutput(one, inner),
    }


@pytest.mark.parametrize("kind", kinds(None, None))
def test_all_tensors_change_and_the_given_value_does_not(kind):
    one, two = torch.zeros(2), torch.zeros(3)
    value = kinds(one, two)[kind]
    found = tensors_in(value)
    assert len(found) == (1 if kind == "tensor" else 2)
    changed = map_tensors(value, lambda tensor: tensor + 1)
    assert [tensor.tolist() for tensor in tensors_in(changed)] == [[1.0] * len(t) for t in found]
    assert kind == "read only" or type(changed) is type(value)
    assert all(a is b for a, b in zip(tensors_in(value), found, strict=True))
    assert one.sum() == two.sum() == 0
    if kind == "model output":
        assert changed["logits"] is changed.logits
    if kind == "dataclass":
        assert changed.name == "out"


def test_what_holds_no_tensor_is_the_same_object():
    for value in (None, "text", 3, Plain(1), Out, SimpleNamespace(a=1), nn.Linear(1, 1)):
        assert map_tensors(value, lambda tensor: tensor + 1) is value


def test_a_loop_is_copied_as_a_loop():
    loop = SimpleNamespace(logits=torch.zeros(1))
    loop.self = loop
    changed = map_tensors(loop, lambda tensor: tensor + 1)
    assert changed.self is changed
    assert changed is not loop
    assert float(changed.logits) == 1


def test_a_model_that_an_output_refers_to_is_left_alone():
    model = nn.Linear(1, 1)
    out = Out(torch.zeros(1), model)
    assert tensors_in(out) == [out.logits]
    assert map_tensors(out, torch.clone).hidden is model
