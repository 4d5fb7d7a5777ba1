import pytest
import torch
from torch import nn

from nestling.models import mobilenet_v1, mobilenet_v2
from nestling.models.mobilenet import _divisible


@pytest.mark.parametrize(
    ("make", "width", "parameters"),
    [
        (mobilenet_v1, 1.0, 4_231_976),
        (mobilenet_v1, 0.5, 1_331_592),
        (mobilenet_v2, 1.0, 3_504_872),
        (mobilenet_v2, 0.5, 1_968_680),
        (mobilenet_v2, 1.4, 6_108_776),
    ],
)
def test_parameter_counts_are_the_published_ones(make, width, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in make(width=width).parameters()) == parameters


@pytest.mark.parametrize("make", [mobilenet_v1, mobilenet_v2])
@pytest.mark.parametrize(("stem_stride", "side"), [(1, 2), (2, 1)])
def test_the_stem_decides_whether_32_pixels_end_as_two_or_one(make, stem_stride, side):
    with torch.device("meta"):
        model = make(10, 0.5, stem_stride=stem_stride).eval()
        x = torch.zeros(1, 3, 32, 32)
        assert model.features(x).shape[-2:] == (side, side)
        assert model(x).shape == (1, 10)


def test_a_whole_width_is_recorded_as_a_float():
    with torch.device("meta"):
        width = mobilenet_v1(width=1).nestling_builder.arguments["width"]
    assert type(width) is float


def test_parameters_are_named_as_torchvision_names_them():
    with torch.device("meta"):
        keys = mobilenet_v2().state_dict().keys()
    assert {
        "features.0.0.weight",
        "features.1.conv.0.1.running_mean",
        "features.1.conv.1.weight",
        "features.2.conv.1.0.weight",
        "features.17.conv.3.bias",
        "features.18.1.weight",
        "classifier.1.weight",
    } <= keys
    assert len(keys) == 314


@pytest.mark.parametrize("make", [mobilenet_v1, mobilenet_v2])
def test_channels_come_in_eights(make):
    with torch.device("meta"):
        model = make(width=0.35)
    assert {m.out_channels % 8 for m in model.modules() if isinstance(m, nn.Conv2d)} == {0}


def test_rounding_does_not_lose_a_tenth():
    assert [_divisible(c) for c in (1, 8, 11, 12, 18, 20, 24)] == [8, 8, 16, 16, 24, 24, 24]
    assert all(_divisible(c / 10) >= 0.09 * c for c in range(1, 3000))


def test_residuals_are_linear_and_added_only_where_shapes_agree():
    model = mobilenet_v2(10, 0.25).eval()
    first, second = model.features[2], model.features[3]
    x = torch.randn(1, 8, 4, 4)
    assert not first.adds
    assert second.adds
    assert torch.equal(second(x), second.conv(x) + x)
    assert (second.conv(x) < 0).any()
