import pytest
import torch

from nestling.models import vgg11_bn, vgg16_bn, vgg19_bn


@pytest.mark.parametrize(
    ("make", "arguments", "parameters"),
    [
        (vgg11_bn, {"num_classes": 1000, "head": "mlp"}, 132_868_840),
        (vgg16_bn, {"num_classes": 1000, "head": "mlp"}, 138_365_992),
        (vgg19_bn, {"num_classes": 1000, "head": "mlp"}, 143_678_248),
        (vgg11_bn, {}, 9_231_114),
        (vgg16_bn, {}, 14_728_266),
        (vgg19_bn, {}, 20_040_522),
    ],
)
def test_parameter_counts_are_the_published_ones(make, arguments, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in make(**arguments).parameters()) == parameters


@pytest.mark.parametrize(("head", "side"), [("linear", 32), ("linear", 64), ("mlp", 224)])
def test_pictures_become_logits(head, side):
    with torch.device("meta"):
        model = vgg16_bn(20, head=head)
        assert model(torch.zeros(2, 3, side, side)).shape == (2, 20)


def test_parameters_are_named_as_torchvision_names_them():
    with torch.device("meta"):
        keys = vgg16_bn(head="mlp").state_dict().keys()
    assert {"features.0.weight", "features.41.bias", "classifier.6.weight"} <= keys
