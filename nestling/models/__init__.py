"""Builders of well-known nets, each returned module remembering how it was built."""

from nestling.models.densenet import densenet40, densenet121
from nestling.models.initialize import initialize
from nestling.models.mlp import mlp
from nestling.models.mobilenet import mobilenet_v1, mobilenet_v2
from nestling.models.pretrained import load_weights
from nestling.models.registry import Built, build, builder, built, names
from nestling.models.resnet import (
    digits_resnet,
    preact_resnet20,
    resnet18,
    resnet20,
    resnet50,
    resnet56,
)
from nestling.models.resnext import resnext29
from nestling.models.vgg import vgg11_bn, vgg16_bn, vgg19_bn

__all__ = [
    "Built",
    "build",
    "builder",
    "built",
    "densenet40",
    "densenet121",
    "digits_resnet",
    "initialize",
    "load_weights",
    "mlp",
    "mobilenet_v1",
    "mobilenet_v2",
    "names",
    "preact_resnet20",
    "resnet18",
    "resnet20",
    "resnet50",
    "resnet56",
    "resnext29",
    "vgg11_bn",
    "vgg16_bn",
    "vgg19_bn",
]
