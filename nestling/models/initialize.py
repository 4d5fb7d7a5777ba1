"""Initialise: start any module's training anew, as our builders start theirs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy

from nestling.errors import ModelError

M = TypeVar("M", bound=nn.Module)


def initialize(model: M, seed: int | None = None) -> M:
    """Initialise every layer of a module anew, in place.

    Convolutions are drawn from Kaiming's normal distribution for ReLU over the outgoing
    connections, their biases are zero; norms become one and zero, with running statistics reset;
    all else is left to its own `reset_parameters` (for `Linear`, Kaiming's uniform distribution
    over the inputs). Sizes are read off the weights, not off attributes, so that a narrower copy
    of a layer is initialised for its own width. A parameter that stands in a module without
    `reset_parameters` keeps its value.

    Args:
        model: any module, on CPU or CUDA; changed in place.
        seed: seeds a forked random generator, so that the global one is not disturbed; None draws
            from the global one.

    Returns:
        The same module.

    Raises:
        ModelError: a layer is lazy and has no shape yet.

    Example:
        >>> from torch import nn
        >>> a, b = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        >>> bool((initialize(a, seed=1).weight == initialize(b, seed=1).weight).all())
        True

    Source:
        He et al., "Delving Deep into Rectifiers", ICCV 2015, https://arxiv.org/abs/1502.01852.
    """
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ModelError(
                f"parameter {name!r} is lazy and has no shape yet: "
                "run the model once on a sample input, then initialise it"
            )
    with _seeded(model, seed), torch.no_grad():
        # Children first: a module that knows how to set its children up has the last word.
        for module in reversed(list(model.modules())):
            _initialize_layer(module)
    return model


def _initialize_layer(module: nn.Module) -> None:
    if isinstance(module, _ConvNd):
        # A transposed convolution stores its weight the other way round, (in, out, ...).
        mode = "fan_in" if isinstance(module, _ConvTransposeNd) else "fan_out"
        nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")  # type: ignore[arg-type]
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.MultiheadAttention):
        module._reset_parameters()  # its only reset; torch spells it with an underscore
    elif callable(reset := getattr(module, "reset_parameters", None)):
        reset()


@contextlib.contextmanager
def _seeded(model: nn.Module, seed: int | None) -> Iterator[None]:
    """Seed the generators that the model's devices use, and put them back afterwards."""
    if seed is None:
        yield
        return
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        # Not torch.manual_seed: it would also seed CUDA devices that were not forked.
        torch.default_generator.manual_seed(seed)
        for index in devices:
            with torch.cuda.device(index):
                torch.cuda.manual_seed(seed)
        yield
