import pytest
import torch
from torch import nn

from nestling.models import built, mlp


@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [
        # Weights, then what each neuron has besides: two numbers of its norm, or its bias.
        ({}, 784 * 256 + 256 * 256 + 2 * 2 * 256 + 2570),
        ({"norm": False}, 784 * 256 + 256 * 256 + 2 * 256 + 2570),
        ({"hidden": ()}, 7850),
    ],
)
def test_parameter_counts(arguments, parameters):
    assert sum(p.numel() for p in mlp(**arguments).parameters()) == parameters


def test_pictures_are_flattened():
    model = mlp(12, (5,), num_classes=3).eval()
    x = torch.randn(2, 3, 2, 2)
    assert model(x).shape == (2, 3)
    assert torch.equal(model(x), model(x.reshape(2, 12)))


def test_without_norm_there_is_none():
    assert not any(isinstance(m, nn.BatchNorm1d) for m in mlp(norm=False).modules())


def test_hidden_is_recorded_as_a_list():
    assert built(mlp(4, hidden=(3, 2))).arguments["hidden"] == [3, 2]
