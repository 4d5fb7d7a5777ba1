"""Preparation: a copy of the model on which a proof means something.

The copy is in float64, so that exactness shows; its weights that are all alike (zeros, ones) are
made to differ and its norms get the statistics of what they see, so that a wrong cut shows too.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nestling.axes.structure import map_tensors, tensors_in
from nestling.axes.suitability import refuse_unsuitable
from nestling.axes.tracer import run
from nestling.weights import duplicate, loose_tensors


def double(model: nn.Module, inputs: Any) -> tuple[nn.Module, Any]:
    """Return a float64 copy of a model in evaluation mode, and its inputs in float64.

    A model that does not run in float64 (its code is hard on float32, or it is quantised) is
    returned as a copy in its own dtype, with the inputs as they are.

    Args:
        model: the user's model; it is not changed.
        inputs: `(args, kwargs)`.

    Raises:
        ModelError: the model is compiled, scripted or wrapped, on the meta device, or was made in
            inference mode.
    """
    refuse_unsuitable(model)
    # Constants that are plain attributes are widened too; `nn.Module.double` misses them.
    memo = {id(tensor): _widened(tensor.detach()).clone() for tensor in loose_tensors(model)}
    wide = duplicate(model, memo)._apply(_widened).eval()  # type: ignore[no-untyped-call]
    args, kwargs = map_tensors(inputs, _widened)
    try:
        run(wide, args, kwargs, None)
    except Exception:  # noqa: BLE001  (the user's code runs here)
        return duplicate(model).eval(), inputs
    return wide, (args, kwargs)


def _widened(tensor: Tensor) -> Tensor:
    """Return a tensor in the widest type of its kind."""
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


def randomise_constant_weights(
    model: nn.Module, generator: torch.Generator, elastic: Container[str] = ()
) -> list[tuple[Tensor, Any]]:
    """Make weights differ that are all alike (zeros, ones): they would hide a wrong cut.

    Args:
        model: is changed.
        generator: of the random numbers.
        elastic: names of the buffers that are cut; others keep their values, which may be flags.

    Returns:
        What was changed: tensors with the value that all of their entries had.
    """
    changed: list[tuple[Tensor, Any]] = []
    buffers = [buffer for name, buffer in model.named_buffers() if name in elastic]
    with torch.no_grad():
        for tensor in (*model.parameters(), *buffers):
            real = tensor.is_floating_point() or tensor.is_complex()
            if real and tensor.numel() and _all_alike(tensor):
                changed.append((tensor, tensor.flatten()[0].item()))
                noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.add_((0.2 + 0.5 * noise).to(tensor))
    return changed


def strengthen_weights(model: nn.Module, gain: float) -> list[tuple[Tensor, float]]:
    """Scale the weights of layers up so that a signal keeps its size from layer to layer.

    With torch's own first weights it shrinks by more than half at every layer: behind twenty layers
    without norms nothing is left of what a cut in the first one changes. Some libraries start the
    scales of norms near zero (0.02 and random): then nothing passes a norm either.

    Args:
        model: is changed.
        gain: how large the output of a layer is for an input of size one; the square root of two
            makes up for a ReLU (He et al., 2015, https://arxiv.org/abs/1502.01852).

    Returns:
        What was changed: tensors with the factors that they were multiplied by.
    """
    changed: list[tuple[Tensor, float]] = []
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            scale = tensor.dim() == 1 and name.rpartition(".")[2] == "weight"
            if (scale or tensor.dim() > 1) and tensor.is_floating_point() and tensor.numel():
                size = float(tensor.double().norm()) / len(tensor) ** 0.5
                wanted = min(gain, 1.0) if scale else gain  # a norm's scale multiplies size one
                if 0 < size < wanted:
                    tensor.mul_(wanted / size)
                    changed.append((tensor, wanted / size))
    return changed


def _all_alike(tensor: Tensor) -> bool:
    return bool((tensor == tensor.flatten()[0]).all())


class Freshen:
    """Maps an example input to a random one of the same shape; integers stay as they are."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def __call__(self, leaf: Any) -> Any:
        """Return the leaf's replacement."""
        if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
            dtype = torch.complex128 if leaf.is_complex() else torch.float64
            return torch.randn(leaf.shape, generator=self.generator, dtype=dtype).to(leaf)
        return leaf


FLAT = 0.1  # share of the mean square that is added to the variance of every channel
FEW = 64  # of that many values, norms are centred by half


@contextmanager
def lively_norms(model: nn.Module) -> Iterator[None]:
    """Give norms the statistics of what they see, so that no signal dies on its way out."""

    def measure(norm: Any, args: Any) -> None:
        given = tensors_in(args)
        if not given or given[0].dim() < 2 or given[0].shape[1] != len(norm.running_mean):
            return  # a class of the user's own, which is called in another way
        seen = given[0].detach().transpose(0, 1).flatten(1)
        square = seen.pow(2).mean(1)
        # Statistics of few values, and values that differ little, make much of rounding.
        centred = seen.shape[1] / (FEW + seen.shape[1])
        mean = centred * seen.mean(1)
        spread = (seen - mean[:, None]).pow(2).mean(1)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(spread + FLAT * square.mean() + 1e-6)

    handles = [
        module.register_forward_pre_hook(measure)
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
