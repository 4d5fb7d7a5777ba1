"""Bits in files: what is kept of them, and what is refused."""

import math

import numpy as np
import pytest
import torch
from few_bits import WHOLE, clips_in, images, mixed, net_of
from hypothesis import given, settings
from hypothesis import strategies as st
from small import ConvNet, seeded
from torch import nn

import nestling
from nestling import coding, container, models
from nestling.bit_checks import check_bits
from nestling.errors import FileError, ModelError, SpecError
from nestling.planes import codes_of, planes_of
from nestling.quantize import FULL

pytestmark = pytest.mark.filterwarnings("ignore::nestling.errors.UncalibratedWarning")


@pytest.mark.parametrize("bits", [(2, 4, 8), WHOLE], ids=["weights", "all"])
def test_a_file_keeps_it(bits, tmp_path):
    net = net_of(bits)
    menu = nestling.make_menu(net, [mixed(net)], calibrate=[images(8)], measure=False)
    name = menu.entries[-1].name
    path = menu.save(tmp_path / "bits.nest")
    loaded = nestling.Menu.load(path, seeded(lambda: ConvNet(16)))
    assert loaded.identity() == menu.identity()
    assert loaded.net.space == menu.net.space
    assert torch.equal(loaded.module(name)(images()), menu.module(name)(images()))
    clips = clips_in(net.model)
    assert clips_in(loaded.net.model) == clips
    for clip in clips:
        assert torch.equal(loaded.net.model.get_parameter(clip), net.model.get_parameter(clip))
    check_bits(loaded.net, images())


def test_a_file_of_a_builders_model_needs_no_model(tmp_path):
    model = models.mlp(6, (8, 8), num_classes=3, norm=False)
    net = nestling.Supernet(model, torch.randn(2, 6), bits=(4, 8))
    menu = nestling.make_menu(net, [net.space.spec({"*.bits": 4})], measure=False)
    loaded = nestling.Menu.load(menu.save(tmp_path / "mlp.nest"))
    assert loaded.identity() == menu.identity()


def weights_in(path):
    """Return the bytes of a file behind its header, which of so small a net is most of it."""
    data = path.read_bytes()
    return len(data) - 8 - int.from_bytes(data[:8], "little")


@pytest.mark.parametrize("bits", [(3,), WHOLE], ids=["weights", "all"])
def test_a_file_of_integers_computes_the_same(bits, tmp_path):
    net = net_of(bits)
    few = {n: a.counts[-2] for n, a in net.space.axes.items() if n.endswith(".bits")}
    fewer = {n: a.counts[0] for n, a in net.space.axes.items() if n.endswith(".bits")}
    specs = {"few": few, "fewer": {**fewer, "conv1": 8}}
    menu = nestling.make_menu(net, specs, calibrate=[images(8)], measure=False)
    with pytest.raises(SpecError, match="there are none"):
        menu.save(tmp_path / "whole.nest", integers=True)
    menu = menu.only("few", "fewer")
    path = menu.save(tmp_path / "integers.nest", integers=True)
    floats = menu.save(tmp_path / "floats.nest")
    saved = weights_in(floats) - weights_in(path)
    stored = max(few.values())
    assert saved > 0.8 * 2304 * (4 - stored / 8)
    _, tensors = container.read(path)
    assert "weights/conv2.weight" not in tensors
    signs = net.model.conv2.weight.detach().flatten() >= 0
    top = torch.from_numpy(np.packbits(signs.numpy()))
    assert torch.equal(tensors["planes/1/conv2.weight"], top)
    loaded = nestling.Menu.load(path, seeded(lambda: ConvNet(16)))
    for name in ("few", "fewer"):
        assert torch.equal(loaded.module(name)(images()), menu.module(name)(images()))
    again = loaded.save(tmp_path / "again.nest", integers=True)
    assert again.read_bytes() == path.read_bytes()


@settings(max_examples=50)
@given(st.integers(1, 8), st.integers(1, 40), st.integers(0, 2**31))
def test_the_first_planes_are_the_integers_of_fewer_bits(bits, size, seed):
    generator = torch.Generator().manual_seed(seed)
    half = 2 ** (bits - 1)
    codes = torch.randint(-half, half, (size, 2), generator=generator, dtype=torch.int8)
    planes = planes_of(codes, bits)
    assert [plane.numel() for plane in planes] == [math.ceil(size * 2 / 8)] * bits
    for fewer in range(1, bits + 1):
        assert torch.equal(codes_of(planes[:fewer], (size, 2)), codes >> (bits - fewer))
    with pytest.raises(ValueError, match="bytes, not"):
        codes_of(planes, (size, 20))


def test_damaged_planes_are_refused(tmp_path):
    net = net_of((3,))
    menu = nestling.make_menu(
        net, {"few": {"conv2.bits": 3}}, calibrate=[images(8)], measure=False
    ).only("few")
    header, tensors = container.read(menu.save(tmp_path / "a.nest", integers=True))
    float_planes = {**tensors, "planes/1/conv2.weight": tensors["planes/1/conv2.weight"].float()}
    shorter = {**tensors, "planes/1/conv2.weight": tensors["planes/1/conv2.weight"][1:]}
    for planes, stored in (
        ({"conv2.weight": 2}, tensors),
        ({"conv2.weight": 9}, tensors),
        ({"head.weight": 3}, tensors),
        ({}, tensors),
        ({"conv2.weight": 3}, float_planes),
        ({"conv2.weight": 3}, shorter),
    ):
        container.write(tmp_path / "b.nest", {**header, "planes": planes}, stored)
        with pytest.raises(FileError, match="does not hold together"):
            nestling.Menu.load(tmp_path / "b.nest", seeded(lambda: ConvNet(16)))


class _Renamed(ConvNet):
    """Of the same weights, but one layer is no convolution of torch's."""

    def __init__(self):
        super().__init__(16)
        holder = nn.Module()
        holder.weight = self.conv2.weight
        self.conv2 = holder


def test_a_file_that_asks_for_the_impossible_is_refused(tmp_path):
    net = net_of()
    menu = nestling.make_menu(net, [mixed(net)], calibrate=[images(8)], measure=False)
    path = menu.save(tmp_path / "bits.nest")
    with pytest.raises(FileError, match="conv2"):
        nestling.Menu.load(path, _Renamed())
    header, tensors = container.read(path)
    for row in (
        ["conv9", "conv2.bits", FULL, True, []],
        ["conv2", "conv2", FULL, True, []],
        ["conv2", "conv2.bits", 0, True, []],
        ["conv2", "conv2.bits", 8, True, [8]],
        ["conv2", "conv2.bits", 8, True, []],
        ["conv2", "conv2.bits", 8, True, 8],
    ):
        header["space"]["codings"] = [row]
        container.write(path, header, tensors)
        with pytest.raises(FileError, match="coding"):
            nestling.Menu.load(path, seeded(lambda: ConvNet(16)))
    for row, why in (
        (["conv2", "conv2.bits", 1, True, [1]], "inputs with a sign in 1 bit"),
        (["conv2", "conv2.bits", FULL, True], "one clip served all numbers of bits.*anew$"),
    ):
        header["space"]["codings"] = [row]
        container.write(path, header, tensors)
        with pytest.raises(FileError, match=why):
            nestling.Menu.load(path, seeded(lambda: ConvNet(16)))


AXES = {"a.bits": (2, 4, FULL), "a.input_bits": (4, 8, FULL)}


@pytest.mark.parametrize(
    ("inputs", "clips", "right"),
    [
        ("a.input_bits", [4, 8], True),
        ("a.input_bits", [2, 4, 8], True),  # the axis was tied to another one
        ("a.input_bits", [8], False),
        ("a.input_bits", [8, 4], False),
        ("a.input_bits", [4, 4, 8], False),
        ("a.input_bits", [4, 8, 9], False),
        ("a.input_bits", [4, 8.0], False),
        ("a.input_bits", [True, 4, 8], False),
        ("b.input_bits", [4, 8], False),
        (8, [8], True),
        (8, [4, 8], False),
        (True, [1], False),
        (FULL, [], True),
        (8, [8.0], False),
        (9, [9], False),
        (0, [0], False),
        (FULL, [8], False),
    ],
)
def test_what_a_file_says_of_clips_is_checked(inputs, clips, right):
    row = ["a", "a.bits", inputs, False, clips]
    if right:
        assert coding.to_json(coding.from_json(row, AXES)) == row
    else:
        with pytest.raises(ValueError, match="not a coding of bits"):
            coding.from_json(row, AXES)


@pytest.mark.parametrize(
    ("factor", "message"), [(1e-6, "weights of 'conv2' lie beyond"), (math.nan, "'conv2' has entr")]
)
def test_files_of_integers_refuse_them_too(factor, message, tmp_path):
    net = net_of((3,))
    specs = {"few": {"conv2.bits": 3}}
    menu = nestling.make_menu(net, specs, calibrate=[images(8)], measure=False).only("few")
    net.model.conv2.weight_scale.data.mul_(factor)  # behind the back of the menu
    with pytest.raises(ModelError, match=message):
        menu.save(tmp_path / "few.nest", integers=True)
    assert not list(tmp_path.iterdir())
