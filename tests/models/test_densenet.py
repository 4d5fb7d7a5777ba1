import pytest
import torch

from nestling.models import densenet40, densenet121


@pytest.mark.parametrize(
    ("make", "arguments", "parameters"),
    [
        (densenet121, {}, 7_978_856),
        (densenet40, {}, 1_019_722),
        (densenet40, {"num_classes": 100}, 1_019_722 + 90 * 449),
    ],
)
def test_parameter_counts_are_the_published_ones(make, arguments, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in make(**arguments).parameters()) == parameters


@pytest.mark.parametrize(
    ("make", "picture", "features"),
    [
        (densenet40, (1, 3, 32, 32), (1, 448, 8, 8)),
        (densenet121, (1, 3, 224, 224), (1, 1024, 7, 7)),
    ],
)
def test_blocks_grow_and_transitions_halve(make, picture, features):
    with torch.device("meta"):
        model = make(num_classes=5)
        x = torch.zeros(picture)
        assert model.features(x).shape == features
        assert model(x).shape == (1, 5)


def test_parameters_are_named_as_torchvision_names_them():
    with torch.device("meta"):
        keys = densenet121().state_dict().keys()
    assert {
        "features.conv0.weight",
        "features.denseblock1.denselayer1.norm1.weight",
        "features.denseblock4.denselayer16.conv2.weight",
        "features.transition3.conv.weight",
        "features.norm5.bias",
        "classifier.weight",
    } <= keys
    assert len(keys) == 727


def test_a_layer_sets_its_output_after_its_input():
    layer = densenet40(growth=2).eval().features.denseblock1.denselayer1
    x = torch.randn(1, 16, 4, 4)
    out = layer(x)
    assert torch.equal(out[:, :16], x)
    assert torch.equal(out[:, 16:], layer.conv1(layer.norm1(x).relu()))
