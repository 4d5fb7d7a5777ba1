"""Preparation: a copy of the model on which a proof means something.

The copy is in float64, so that exactness shows; its weights that are all alike (zeros, ones) are
made to differ and its norms get the statistics of what they see, so that a wrong cut shows too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from nestling.axes.structure import tensors_in
from nestling.axes.tracer import run
from nestling.errors import ModelError
from nestling.weights import tensors_of


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

    def widen(leaf: Any) -> Any:
        floating = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return leaf.double() if floating else leaf

    wide = copy.deepcopy(model).double().eval()
    args, kwargs = tree_map(widen, inputs)
    try:
        run(wide, args, kwargs, None)
    except Exception:  # noqa: BLE001  (the user's code runs here)
        return copy.deepcopy(model).eval(), inputs
    return wide, (args, kwargs)


def batch_of(inputs: Any) -> int:
    """Return the number of examples in the inputs: the first dimension of the first tensor."""
    sizes = (leaf.shape[0] for leaf in tensors_in(inputs) if leaf.dim())
    return max(next(sizes, 1), 1)


def with_batch(inputs: Any, batch: int) -> Any:
    """Return the inputs with another number of examples: the first ones, or all of them repeated.

    Tensors whose first dimension is not the batch stay as they are.
    """
    known = batch_of(inputs)

    def resize(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.dim() or leaf.shape[0] != known:
            return leaf
        return leaf[torch.arange(batch, device=leaf.device) % known]

    return tree_map(resize, inputs)


def refuse_unsuitable(model: nn.Module) -> None:
    """Refuse wrappers that hide the model's code, and models without values.

    Raises:
        ModelError: with the cure.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            f"{type(model).__name__} is a scripted module, whose code cannot be run with other "
            "sizes; pass the plain nn.Module that it was made from"
        )
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise ModelError(
            f"{type(model).__name__} hides the model's code; pass the model inside (model.module) "
            "and distribute the training instead"
        )
    for path, module in model.named_modules():
        if "_orig_mod" in module._modules:
            where = f"its module {path!r}" if path else "it"
            raise ModelError(
                f"the model is compiled ({where} comes from torch.compile), which hides its code; "
                "pass the plain model (compiled._orig_mod) and compile the subnets instead"
            )
    for name, tensor in tensors_of(model).items():
        if tensor.is_meta:
            raise ModelError(
                f"{name!r} is on the meta device and has no values, so nothing can be proven; "
                "call model.to_empty(device='cpu') and load or initialise the weights first"
            )
        if tensor.is_inference():
            raise ModelError(
                f"{name!r} was made under torch.inference_mode() and can never be trained; make "
                "the model and the supernet outside of it"
            )


def randomise_constant_weights(model: nn.Module, generator: torch.Generator) -> None:
    """Make weights differ that are all alike (zeros, ones): they would hide a wrong cut."""
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.is_floating_point() and tensor.numel() and _all_alike(tensor):
                noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.add_((0.2 + 0.5 * noise).to(tensor))


def _all_alike(tensor: Tensor) -> bool:
    return bool((tensor == tensor.flatten()[0]).all())


class Freshen:
    """Maps an example input to a random one of the same shape; integers stay as they are."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def __call__(self, leaf: Any) -> Any:
        """Return the leaf's replacement."""
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            noise = torch.randn(leaf.shape, generator=self.generator, dtype=torch.float64)
            return noise.to(leaf)
        return leaf


@contextmanager
def lively_norms(model: nn.Module) -> Iterator[None]:
    """Give norms the statistics of what they see, so that no signal dies on its way out."""

    def measure(norm: Any, args: Any) -> None:
        seen = tensors_in(args)[0].detach().transpose(0, 1).flatten(1)
        variance = seen.var(1, unbiased=False)
        spread = torch.where(variance > 1e-6, variance, seen.pow(2).mean(1) + 1e-3)
        norm.running_mean.copy_(seen.mean(1) * (variance > 1e-6))
        norm.running_var.copy_(spread)

    handles = [
        module.register_forward_pre_hook(measure)
        for module in model.modules()
        if type(module).forward is nn.modules.batchnorm._BatchNorm.forward
        and module.running_mean is not None
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
