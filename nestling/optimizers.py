"""Optimizers: the default one, its learning rate over a run, and groups for what is no weight."""

from __future__ import annotations

import math

import torch
from torch import nn

from nestling.errors import ModelError

WARM_UP = 0.05  # share of the steps in which the learning rate rises


def default_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Return SGD with Nesterov momentum 0.9, learning rate 0.1 and decay 5e-4 where it belongs.

    Convolutions and linear weights decay; biases, norms and depthwise convolutions do not.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        depthwise = parameter.dim() > 2 and parameter.shape[1] == 1
        (decayed if parameter.dim() > 1 and not depthwise else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.SGD(
        [group for group in groups if group["params"]], lr=0.1, momentum=0.9, nesterov=True
    )


def check_maker(optimizer: object) -> None:
    """Check that `optimizer=` makes an optimiser, or is None.

    Raises:
        ModelError: it is an optimiser itself, or no function.
    """
    ready = isinstance(optimizer, torch.optim.Optimizer)
    if optimizer is None or (callable(optimizer) and not ready):
        return
    kind = type(optimizer).__name__ if ready else "SGD"
    got = f"a ready {kind}" if ready else f"{optimizer!r:.80}"
    raise ModelError(
        f"optimizer= is a function from parameters to a torch optimiser, but got {got}; every "
        f"stage makes its own: optimizer=lambda p: torch.optim.{kind}(p, lr=0.01)"
    )


def add_group(optimizer: torch.optim.Optimizer, extra: nn.Module) -> None:
    """Give an optimiser a group for parameters that are no weights, and so do not decay.

    They have the learning rate of the optimiser's defaults. A module without any changes nothing.
    """
    parameters = list(extra.parameters())
    if parameters:
        still = {"weight_decay": 0.0} if "weight_decay" in optimizer.defaults else {}
        optimizer.add_param_group({"params": parameters, **still})


def cosine(step: int, steps: int) -> float:
    """Return the factor of the learning rate: a linear rise, then a half cosine down to zero.

    Source: Loshchilov and Hutter, SGDR (ICLR 2017).
    """
    rise = max(1, round(WARM_UP * steps))
    if step < rise:
        return (step + 1) / rise
    done = min(1.0, (step - rise) / max(1, steps - rise))
    return 0.5 * (1 + math.cos(math.pi * done))
