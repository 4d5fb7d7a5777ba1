"""Nets of timm, from its own class constructors, small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from zoo.registry import Case, architecture, import_torchvision


def _timm() -> Any:
    import_torchvision()
    import timm

    return timm


def _qkv(model: nn.Module) -> dict[nn.Module, int]:
    """Return the fused projections with their heads, as Torch-Pruning's ViT example does."""
    found = {}
    for module in model.modules():
        qkv, heads = getattr(module, "qkv", None), getattr(module, "num_heads", None)
        if isinstance(qkv, nn.Linear) and isinstance(heads, int):
            found[qkv] = heads
    return found


def _register(
    name: str,
    timm_name: str,
    *,
    pixels: int = 32,
    batch: int = 1,
    heads: Callable[[nn.Module], dict[nn.Module, int]] | None = None,
    **options: Any,
) -> None:
    """Register a model made by `timm.create_model` with smaller arguments."""

    def build() -> Case:
        model = _timm().create_model(timm_name, num_classes=10, **options)
        return Case(model, (torch.randn(batch, 3, pixels, pixels),))

    architecture(f"timm/{name}", heads=heads)(build)


VIT: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 64,
    "depth": 2,
    "num_heads": 4,
}

_register("vit", "vit_base_patch16_224", heads=_qkv, **VIT)
_register("deit3", "deit3_base_patch16_224", heads=_qkv, **VIT)
_register("cait", "cait_xxs24_224", **VIT)
_register(
    "swin",
    "swin_tiny_patch4_window7_224",
    heads=_qkv,
    img_size=32,
    patch_size=2,
    window_size=4,
    embed_dim=32,
    depths=(2, 2),
    num_heads=(2, 4),
)
_register("convnext", "convnext_tiny", depths=(1, 1, 2, 1), dims=(16, 32, 32, 64))
_register("efficientnet-b0", "efficientnet_b0")
_register("mobilenetv3", "mobilenetv3_small_100")
_register("regnet", "regnetx_002")
_register("ghostnet", "ghostnet_050")
_register("repvgg", "repvgg_a0")
_register("maxvit", "maxvit_rmlp_pico_rw_256", pixels=64, img_size=64, embed_dim=(32, 32, 64, 64))
_register("coatnet", "coatnet_rmlp_nano_rw_224", pixels=64, img_size=64, embed_dim=(16, 32, 32, 64))
_register("resnext", "resnext50_32x4d", layers=(1, 1, 1, 1), cardinality=8)
_register("seresnet", "seresnet18", channels=(16, 32, 32, 64))
_register("res2net", "res2net50_14w_8s", layers=(1, 1, 1, 1))
_register("hrnet", "hrnet_w18_small", pixels=64)
_register("inception-next", "inception_next_tiny", depths=(1, 1, 1, 1), dims=(16, 32, 32, 64))
_register("vovnet", "ese_vovnet19b_slim_dw")
_register("dla", "dla46_c", pixels=64)


@architecture("timm/mixer")
def mixer() -> Case:
    """MLP-Mixer: one layer mixes the patches, the next the channels."""
    _timm()
    from timm.models.mlp_mixer import MlpMixer

    model = MlpMixer(num_classes=10, img_size=32, patch_size=8, num_blocks=2, embed_dim=64)
    return Case(model, (torch.randn(1, 3, 32, 32),))


@architecture("timm/resmlp")
def resmlp() -> Case:
    """ResMLP: as the mixer, with affine layers in place of norms and scales near zero."""
    _timm()
    from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock

    sizes = {"img_size": 32, "patch_size": 8, "num_blocks": 2, "embed_dim": 64, "mlp_ratio": 4}
    model = MlpMixer(num_classes=10, block_layer=ResBlock, norm_layer=Affine, **sizes)
    return Case(model, (torch.randn(1, 3, 32, 32),))


@architecture("timm/vit-full", full=True, heads=_qkv)
def vit_full() -> Case:
    """ViT-B/16 at 224 pixels, 86 M parameters."""
    return Case(_timm().create_model("vit_base_patch16_224"), (torch.randn(1, 3, 224, 224),))
