"""Nets of timm and torchvision as they are: what is elastic, and that cut nets are masked nets."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nestling.supernet import Supernet
from nestling.testing import check_full, check_masked, check_order

library = torch.library.Library("torchvision", "FRAGMENT")
if torch.version.cuda is None and not hasattr(torch.ops.torchvision, "nms"):
    # torchvision's Python part cannot be imported beside a torch without its C++ part.
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
timm = pytest.importorskip("timm")
vision = pytest.importorskip("torchvision.models")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def make(name: str, pixels: int = 32, **options: Any) -> tuple[Callable[[], nn.Module], int]:
    return lambda: timm.create_model(name, num_classes=5, **options), pixels


VIT = {"img_size": 32, "patch_size": 16, "embed_dim": 12, "depth": 2, "num_heads": 2}
WINDOWS = {"img_size": 16, "patch_size": 2, "depths": (2, 1), "num_heads": (2, 2)}
FOUR = {"depths": (1, 1, 1, 1)}

NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "vit": make("vit_tiny_patch16_224", **VIT),
    "beit": make("beit_base_patch16_224", **VIT),
    "cait": make("cait_xxs24_224", **VIT),
    "swin": make("swin_tiny_patch4_window7_224", 16, **WINDOWS, embed_dim=8, window_size=4),
    "swin v2": make("swinv2_tiny_window8_256", 16, **WINDOWS, embed_dim=8, window_size=4),
    "convnext": make("convnextv2_atto", **FOUR, dims=(8, 8, 16, 16)),
    "shuffle": (
        lambda: vision.ShuffleNetV2([2, 1, 1], [8, 16, 16, 16, 16], num_classes=5),
        32,
    ),
    "windows": (
        lambda: vision.SwinTransformer([4, 4], 8, [2], [2], [2, 2], num_classes=5),
        16,
    ),
    "encoder": (
        lambda: vision.VisionTransformer(32, 16, 1, 2, 12, 16, num_classes=5),
        32,
    ),
}


@functools.cache
def made(name: str) -> tuple[Supernet, Tensor]:
    torch.manual_seed(0)
    build, pixels = NETS[name]
    model, x = build().eval(), torch.randn(2, 3, pixels, pixels)
    return Supernet(model, x), x


@pytest.mark.parametrize("name", NETS)
def test_net_is_elastic(name: str) -> None:
    net, _ = made(name)
    assert net.space.elastic_share() > 0.9, str(net.space)
    kinds = {axis.kind for axis in net.space.axes.values()}
    if name in ("vit", "beit", "cait", "swin", "swin v2", "windows", "encoder"):
        assert "heads" in kinds, str(net.space)


@pytest.mark.parametrize("name", NETS)
def test_cut_net_is_the_masked_net(name: str) -> None:
    net, x = made(name)
    check_full(net, x)
    check_order(net, x)
    check_masked(net, x)


def test_subnet_is_of_its_own_class() -> None:
    net, x = made("vit")
    subnet = net.subnet(net.space.uniform[0])
    assert type(subnet) is type(net.model)
    assert subnet(x).shape == (2, 5)
    assert subnet.blocks[0].attn.num_heads < net.model.blocks[0].attn.num_heads
