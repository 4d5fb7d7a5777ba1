from collections import UserDict
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from nestling import DataError, SpecError, batch


def test_pairs():
    assert batch.pair((1, 2)) == batch.pair([1, 2]) == (1, 2)
    assert batch.inputs_of((1, 2)) == 1
    assert batch.inputs_of("bare") == "bare"
    keywords = {"x": 1, "labels": 2}
    assert batch.inputs_of(keywords) is batch.pair(keywords)[0] is keywords
    assert batch.pair(keywords)[1] == batch.pair({"label_ids": 2})[1] == 2
    assert batch.pair({"x": 1}) == ({"x": 1}, None)
    for bad, message in ((3, "got int"), ((1, 2, 3), "tuple of 3")):
        with pytest.raises(DataError, match=message):
            batch.pair(bad)


def test_models_are_called_with_one_or_several_inputs(small):
    model = small.TwoInputs()
    left, right = torch.randn(3, 4), torch.randn(3, 5)
    expected = model(left, right)
    named = {"left": left, "right": right}
    for inputs in ((left, right), [left, right], named, UserDict(named)):
        assert torch.equal(batch.forward(model, inputs), expected)
        assert batch.size(inputs) == 3
        moved = batch.move(inputs, torch.device("meta"))
        leaves = moved.values() if hasattr(moved, "values") else moved
        assert all(leaf.device.type == "meta" for leaf in leaves)
    assert batch.forward(nn.Identity(), left) is left
    assert batch.size("text") == batch.size(torch.tensor(1.0)) == 1


def test_pictures_are_laid_out():
    images, labels = torch.zeros(2, 3, 4, 4), torch.zeros(2)
    moved = batch.move([images, labels, "x"], torch.device("cpu"), torch.channels_last)
    assert moved[0].is_contiguous(memory_format=torch.channels_last)
    assert moved[1] is labels
    assert moved[2] == "x"


def test_only_masks_may_be_infinite():
    ones, mask = torch.ones(2), torch.tensor([0.0, -torch.inf])
    batch.check_finite((ones, mask, torch.tensor([1])))
    for bad in (mask, (ones, -mask), {"a": ones, "b": torch.tensor([torch.nan])}):
        with pytest.raises(DataError, match="NaN or infinity"):
            batch.check_finite(bad)


def test_blame_keeps_our_own_errors():
    with pytest.raises(SpecError, match="ours"), batch.blamed("a rule"):
        raise SpecError("ours")
    with (
        pytest.raises(DataError, match=r"a rule, but it fails on \(2,\) float32: KeyError: 3"),
        batch.blamed("a rule", torch.ones(2)),
    ):
        raise KeyError(3)
    with pytest.raises(KeyboardInterrupt), batch.blamed("a rule"):
        raise KeyboardInterrupt


def test_tensors_in_a_dataclass_are_seen():
    @dataclass
    class Graph:
        nodes: torch.Tensor
        name: str = "graph"

    graph = Graph(torch.tensor([[1.0], [torch.nan], [0.0]]))
    assert batch.size(graph) == 3
    assert batch.move(graph, torch.device("meta")).nodes.device.type == "meta"
    assert batch.shapes((graph, "text")) == "(3, 1) float32, str"
    with pytest.raises(DataError, match="NaN"):
        batch.check_finite(graph)
