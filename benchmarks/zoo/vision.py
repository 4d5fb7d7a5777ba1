"""Nets of torchvision."""

from __future__ import annotations

from typing import Any

import torch

from zoo.registry import Case, architecture, import_torchvision


def _register(
    name: str,
    builder: str,
    *,
    pixels: int = 32,
    folder: str = "models",
    outputs: Any = None,
    **options: Any,
) -> None:
    """Register a model of a torchvision builder, without weights."""

    def build() -> Case:
        library = import_torchvision()
        home = library.models
        if folder != "models":
            home = getattr(home, folder)
        model = getattr(home, builder)(weights=None, **options)
        return Case(model, (torch.randn(1, 3, pixels, pixels),), outputs=outputs)

    architecture(f"torchvision/{name}")(build)


_register("shufflenetv2", "shufflenet_v2_x0_5", num_classes=10)
_register("squeezenet", "squeezenet1_1", pixels=64, num_classes=10)
_register("googlenet", "googlenet", num_classes=10, init_weights=False, aux_logits=False)
_register(
    "inceptionv3", "inception_v3", pixels=75, num_classes=10, init_weights=False, aux_logits=False
)
_register("mnasnet", "mnasnet0_5", num_classes=10)
_register(
    "lraspp",
    "lraspp_mobilenet_v3_large",
    folder="segmentation",
    outputs="out",
    weights_backbone=None,
    num_classes=5,
)


@architecture("torchvision/resnext")
def resnext() -> Case:
    """ResNeXt: bottlenecks of eight paths."""
    home = import_torchvision().models.resnet
    model = home.ResNet(home.Bottleneck, [1, 2, 1, 1], 10, groups=8, width_per_group=4)
    return Case(model, (torch.randn(1, 3, 32, 32),))


@architecture("torchvision/fcn")
def fcn() -> Case:
    """A fully convolutional net over a MobileNetV3 cut off in the middle."""
    library = import_torchvision()
    features = library.models.mobilenet_v3_small(weights=None).features
    body = library.models._utils.IntermediateLayerGetter(features, {"8": "out"})
    head = library.models.segmentation.fcn.FCNHead(48, 5)
    model = library.models.segmentation.FCN(body, head)
    return Case(model, (torch.randn(1, 3, 32, 32),), outputs="out")


@architecture("torchvision/vit")
def vit() -> Case:
    """ViT with torch's own multi-head attention."""
    home = import_torchvision().models.vision_transformer
    model = home.VisionTransformer(32, 8, 2, 4, 64, 128, num_classes=10)
    return Case(model, (torch.randn(2, 3, 32, 32),))


@architecture("torchvision/swin")
def swin() -> Case:
    """Swin with shifted windows and its own relative bias."""
    home = import_torchvision().models.swin_transformer
    model = home.SwinTransformer([2, 2], 32, [2, 2], [2, 4], [4, 4], num_classes=10)
    return Case(model, (torch.randn(1, 3, 32, 32),))


@architecture("torchvision/video-resnet")
def video_resnet() -> Case:
    """A ResNet of 3-D convolutions over short films, each split into space and time."""
    home = import_torchvision().models.video.resnet
    kinds = [home.Conv2Plus1D] * 4
    model = home.VideoResNet(home.BasicBlock, kinds, [1, 1, 1, 1], home.R2Plus1dStem, 10)
    return Case(model, (torch.randn(1, 3, 4, 16, 16),))
