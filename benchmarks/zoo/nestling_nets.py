"""The nets of `nestling.models`, narrow, and a ResNet-50 of full size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import nestling
from zoo.registry import Case, architecture

SMALL: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "mlp": ({"in_features": 64, "hidden": (64, 32)}, (2, 64)),
    "digits_resnet": ({"width": 16}, (2, 1, 8, 8)),
    "resnet20": ({}, (2, 3, 16, 16)),
    "resnet56": ({}, (1, 3, 16, 16)),
    "preact_resnet20": ({}, (2, 3, 16, 16)),
    "resnet18": ({"width": 16, "num_classes": 10}, (2, 3, 32, 32)),
    "resnet50": ({"width": 16, "num_classes": 10}, (1, 3, 32, 32)),
    "vgg11_bn": ({"width": 16}, (2, 3, 32, 32)),
    "vgg16_bn": ({"width": 16}, (1, 3, 32, 32)),
    "vgg19_bn": ({"width": 16}, (1, 3, 32, 32)),
    "mobilenet_v1": ({"num_classes": 10}, (1, 3, 32, 32)),
    "mobilenet_v2": ({"num_classes": 10}, (1, 3, 32, 32)),
    "densenet40": ({}, (1, 3, 16, 16)),
    "densenet121": ({"num_classes": 10}, (1, 3, 32, 32)),
    "resnext29": ({"width": 16, "path_width": 4}, (2, 3, 16, 16)),
}


def _register(name: str, options: dict[str, Any], shape: tuple[int, ...]) -> None:
    builder: Callable[..., nn.Module] = getattr(nestling.models, name)
    architecture(f"nestling/{name}")(lambda: Case(builder(**options), (torch.randn(shape),)))


for _name, (_options, _shape) in SMALL.items():
    _register(_name, _options, _shape)


@architecture("nestling/resnet50-full", full=True)
def resnet50_full() -> Case:
    """ResNet-50 at 224 pixels, 25.6 M parameters."""
    return Case(nestling.models.resnet50(), (torch.randn(1, 3, 224, 224),))
