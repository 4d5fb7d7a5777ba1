import pytest
import torch
from torch import nn

from nestling.models import (
    digits_resnet,
    preact_resnet20,
    resnet18,
    resnet20,
    resnet50,
    resnet56,
)
from nestling.models.resnet import ZeroPad


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("make", "arguments", "parameters"),
    [
        (resnet18, {}, 11_689_512),
        (resnet50, {}, 25_557_032),
        (resnet18, {"num_classes": 10, "stem": "cifar"}, 11_173_962),
        (resnet20, {"shortcut": "zero_pad"}, 269_722),
        (resnet20, {"shortcut": "identity"}, 272_474),
        (resnet56, {"shortcut": "zero_pad"}, 853_018),
        (resnet56, {"shortcut": "identity"}, 855_770),
    ],
)
def test_parameter_counts_are_the_published_ones(make, arguments, parameters):
    with torch.device("meta"):
        assert count(make(**arguments)) == parameters


@pytest.mark.parametrize(
    ("make", "arguments", "channels", "side"),
    [
        (resnet18, {}, 512, 7),
        (resnet50, {}, 2048, 7),
        (resnet18, {"stem": "cifar"}, 512, 28),
        (resnet50, {"shortcut": "zero_pad"}, 2048, 7),
    ],
)
def test_stages_halve_the_picture_and_double_the_channels(make, arguments, channels, side):
    with torch.device("meta"):
        model = make(**arguments)
        before_pool = model[: list(dict(model.named_children())).index("avgpool")]
        assert before_pool(torch.zeros(1, 3, 224, 224)).shape == (1, channels, side, side)
        assert model(torch.zeros(2, 3, 224, 224)).shape == (2, 1000)


def test_digits_resnet_ends_at_two_by_two():
    model = digits_resnet()
    assert model[:6](torch.zeros(1, 1, 8, 8)).shape == (1, 128, 2, 2)
    assert model(torch.zeros(5, 1, 8, 8)).shape == (5, 10)


def test_parameters_are_named_as_torchvision_names_them():
    with torch.device("meta"):
        keys = resnet50().state_dict().keys()
    assert {"conv1.weight", "bn1.running_var", "layer1.0.conv3.weight", "fc.bias"} <= keys
    assert {"layer1.0.downsample.0.weight", "layer4.0.downsample.1.bias"} <= keys
    assert "layer1.1.downsample.0.weight" not in keys
    assert len(keys) == 320


@pytest.mark.parametrize(
    ("shortcut", "projected"),
    [
        ("zero_pad", set()),
        ("identity", {"layer2.0", "layer3.0"}),
        ("projection", {f"layer{s}.{i}" for s in (1, 2, 3) for i in range(3)}),
    ],
)
def test_blocks_are_projected_where_the_shortcut_says(shortcut, projected):
    keys = resnet20(shortcut=shortcut).state_dict()
    assert {key.split(".shortcut")[0] for key in keys if ".shortcut.0.weight" in key} == projected
    assert {key.split(".shortcut")[0] for key in keys if ".shortcut.1.weight" in key} == projected


def test_norms_before_the_convolutions():
    """What each block computes, written out; the shortcut is followed by nothing."""
    torch.manual_seed(0)
    model = preact_resnet20(width=4).eval()
    assert (
        count(model)
        == 4 * 27
        + sum(
            2 * a + 9 * a * b + 2 * b + 9 * b * b + (a * b + 2 * b if a != b else 0)
            for a, b in [(4, 4)] * 3 + [(4, 8)] + [(8, 8)] * 2 + [(8, 16)] + [(16, 16)] * 2
        )
        + 2 * 16
        + 16 * 10
        + 10
    )
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for norm in (part for part in model.modules() if isinstance(part, nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 2)
            norm.running_mean.normal_()
        out = model.conv1(x)
        for block in (
            b for stage in ("layer1", "layer2", "layer3") for b in model.get_submodule(stage)
        ):
            active = block.bn1(out).relu()
            hidden = block.conv2(block.bn2(block.conv1(active)).relu())
            out = hidden + (block.shortcut(active) if hasattr(block, "shortcut") else out)
        wanted = model.linear(model.bn(out).relu().mean((2, 3)))
        torch.testing.assert_close(model(x), wanted)
    assert [n for n in dict(model.named_modules()) if n.endswith("shortcut")] == [
        "layer2.0.shortcut",
        "layer3.0.shortcut",
    ]


def test_zero_pad_strides_and_pads_half_on_each_side():
    x = torch.randn(2, 3, 5, 4)
    out = ZeroPad(before=1, after=2, stride=2)(x)
    expected = torch.zeros(2, 6, 3, 2)
    for row in range(3):
        for column in range(2):
            expected[:, 1:4, row, column] = x[:, :, 2 * row, 2 * column]
    assert torch.equal(out, expected)


def test_zero_pad_stands_only_where_shapes_change_and_its_sizes_are_attributes():
    model = resnet20(shortcut="zero_pad")
    pads = {name: m for name, m in model.named_modules() if isinstance(m, ZeroPad)}
    assert {name: (m.before, m.after) for name, m in pads.items()} == {
        "layer2.0.shortcut": (8, 8),
        "layer3.0.shortcut": (16, 16),
    }
    pad = pads["layer2.0.shortcut"]
    pad.before, pad.after = 3, 0
    assert pad(torch.zeros(1, 2, 4, 4)).shape == (1, 5, 2, 2)


def test_an_odd_difference_is_padded_in_full():
    model = resnet20(width=5, shortcut="zero_pad")
    pad = model.layer2[0].shortcut
    assert (pad.before, pad.after) == (2, 3)
    assert model(torch.zeros(1, 3, 8, 8)).shape == (1, 10)


def test_a_block_computes_the_residual_formula():
    block = resnet18(width=4, stem="cifar").eval().layer2[0]
    x = torch.randn(2, 4, 6, 6)
    branch = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
    expected = (branch + block.downsample(x)).relu()
    assert torch.equal(block(x), expected)
    assert isinstance(block.downsample[0], nn.Conv2d)
