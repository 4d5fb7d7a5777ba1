"""Vision models of Hugging Face transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from zoo.registry import Case, architecture, heads_by_name, import_transformers, tokens

VIT: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
}
QKV = heads_by_name(("query", "key", "value", "q_proj", "k_proj", "v_proj"), 4)


def _register(
    name: str,
    class_name: str,
    config_name: str,
    *,
    pixels: int = 32,
    heads: Callable[[nn.Module], dict[nn.Module, int]] | None = None,
    **config: Any,
) -> None:
    """Register a model of pictures whose scores are needed."""

    def build() -> Case:
        library = import_transformers()
        model = getattr(library, class_name)(getattr(library, config_name)(**config))
        return Case(model, (), {"pixel_values": torch.randn(1, 3, pixels, pixels)}, "logits")

    architecture(f"transformers/{name}", heads=heads)(build)


_register("vit", "ViTForImageClassification", "ViTConfig", heads=QKV, **VIT)
_register("deit", "DeiTForImageClassification", "DeiTConfig", heads=QKV, **VIT)
_register("beit", "BeitForImageClassification", "BeitConfig", heads=QKV, **VIT)
_register("dinov2", "Dinov2ForImageClassification", "Dinov2Config", heads=QKV, **VIT)
_register("vit-msn", "ViTMSNForImageClassification", "ViTMSNConfig", heads=QKV, **VIT)
SWIN: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 32,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
_register("swin", "SwinForImageClassification", "SwinConfig", **SWIN)
_register("swinv2", "Swinv2ForImageClassification", "Swinv2Config", **SWIN)
_register(
    "convnext",
    "ConvNextForImageClassification",
    "ConvNextConfig",
    hidden_sizes=[16, 32, 32, 64],
    depths=[1, 1, 2, 1],
)
_register(
    "convnextv2",
    "ConvNextV2ForImageClassification",
    "ConvNextV2Config",
    hidden_sizes=[16, 32, 32, 64],
    depths=[1, 1, 2, 1],
)
_register(
    "segformer",
    "SegformerForSemanticSegmentation",
    "SegformerConfig",
    hidden_sizes=[16, 32, 32, 64],
    depths=[1, 1, 1, 1],
    num_attention_heads=[1, 2, 2, 4],
    decoder_hidden_size=32,
    num_labels=5,
)
_register(
    "resnet",
    "ResNetForImageClassification",
    "ResNetConfig",
    embedding_size=16,
    hidden_sizes=[32, 64],
    depths=[2, 1],
)
_register(
    "regnet",
    "RegNetForImageClassification",
    "RegNetConfig",
    embedding_size=16,
    hidden_sizes=[32, 64],
    depths=[1, 2],
    groups_width=16,
)
_register(
    "mobilevit",
    "MobileViTForImageClassification",
    "MobileViTConfig",
    image_size=64,
    pixels=64,
    hidden_sizes=[32, 32, 32],
    neck_hidden_sizes=[16, 16, 32, 32, 32, 32, 64],
    num_attention_heads=4,
)
_register(
    "poolformer",
    "PoolFormerForImageClassification",
    "PoolFormerConfig",
    hidden_sizes=[16, 32, 32, 64],
    depths=[1, 1, 1, 1],
)
_register(
    "pvt",
    "PvtForImageClassification",
    "PvtConfig",
    image_size=64,
    pixels=64,
    hidden_sizes=[16, 32, 32, 64],
    depths=[1, 1, 1, 1],
    num_attention_heads=[1, 2, 2, 4],
    mlp_ratios=[2, 2, 2, 2],
)


@architecture("transformers/clip")
def clip() -> Case:
    """CLIP: two towers whose features meet; the scores of the pairs are needed."""
    library = import_transformers()
    text = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "vocab_size": 64,
        "max_position_embeddings": 16,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "projection_dim": 32,
    }
    vision = {**VIT, "num_hidden_layers": 1, "projection_dim": 32}
    config = library.CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)
    kwargs = {"input_ids": tokens(), "pixel_values": torch.randn(2, 3, 32, 32)}
    return Case(library.CLIPModel(config), (), kwargs, "logits_per_image")


@architecture("transformers/siglip")
def siglip() -> Case:
    """SigLIP: as CLIP, with a pooling head of attention."""
    library = import_transformers()
    text = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "vocab_size": 64,
        "max_position_embeddings": 8,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    config = library.SiglipConfig(text_config=text, vision_config={**VIT, "num_hidden_layers": 1})
    kwargs = {"input_ids": tokens(), "pixel_values": torch.randn(2, 3, 32, 32)}
    return Case(library.SiglipModel(config), (), kwargs, "logits_per_image")


def _detector(class_name: str, config_name: str, **more: Any) -> Case:
    """Return a detection transformer over a tiny ResNet; classes and boxes are needed."""
    library = import_transformers()
    backbone = library.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], out_features=["stage2"]
    )
    config = getattr(library, config_name)(
        backbone_config=backbone,
        use_timm_backbone=False,
        backbone=None,
        d_model=64,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        num_queries=6,
        num_labels=5,
        **more,
    )
    model = getattr(library, class_name)(config)
    kwargs = {"pixel_values": torch.randn(1, 3, 32, 32)}
    return Case(model, (), kwargs, ["logits", "pred_boxes"])


@architecture("transformers/detr")
def detr() -> Case:
    """DETR."""
    return _detector("DetrForObjectDetection", "DetrConfig")


@architecture("transformers/conditional-detr")
def conditional_detr() -> Case:
    """Conditional DETR: queries and positions are concatenated head by head."""
    return _detector("ConditionalDetrForObjectDetection", "ConditionalDetrConfig")


@architecture(
    "transformers/vit-full", full=True, heads=heads_by_name(("query", "key", "value"), 12)
)
def vit_full() -> Case:
    """ViT-B/16 at 224 pixels, 86 M parameters."""
    library = import_transformers()
    model = library.ViTForImageClassification(library.ViTConfig(num_labels=1000))
    return Case(model, (torch.randn(1, 3, 224, 224),), outputs="logits")
