"""A masked full model made without the library's rules: what the coverage benchmark compares with.

The library's proof replays the traced ops over the kept units, by the same rules that found the
axes. Here no rule is used: the weights of cut units are zero, wherever they stand, and a norm layer
over cut units is called on the kept ones alone. Only the layouts of the space are read (which
entries of which weight a spec keeps). Torch's own attention takes its scale from the living units
of the queries. Autograd through it gives the gradients of the shared weights. Where an axis reaches
other ops that count units (a mean over channels, a scale that code computes), such a model is
another one than the subnet, and nothing follows from a difference.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from nestling import extent as extents
from nestling.axes.structure import tensors_in
from nestling.passage import PassBy
from nestling.spec import Layout, Space

WHOLE = (nn.modules.batchnorm._NormBase,)  # they work unit by unit


def run_masked(
    model: nn.Module,
    space: Space,
    counts: Mapping[str, int],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> tuple[Any, dict[str, Tensor]]:
    """Run the full model with the cut units at zero.

    Args:
        model: the full net, in evaluation mode; it is not changed.
        space: its space.
        counts: kept units by axis name.
        args: inputs.
        kwargs: keyword inputs.

    Returns:
        What the model returns, and a leaf for every parameter; after a backward run its gradient is
        that of the shared weight.
    """
    leaves, weights = {}, {}
    for name, parameter in model.named_parameters():
        leaves[name] = parameter.detach().clone().requires_grad_(parameter.requires_grad)
        weights[name] = leaves[name] * _mask(parameter, space.layouts[name], counts)
    kept = _norms_over_kept(model, space, counts)
    attention = _AttentionOverKept()
    with kept, _passed_by(model, space, counts), sdpa_kernel(SDPBackend.MATH), attention:
        return functional_call(model, weights, tuple(args), dict(kwargs)), leaves


def _mask(parameter: Tensor, layout: Layout, counts: Mapping[str, int]) -> Tensor:
    """Return ones for kept entries and zeros for cut ones, in a shape that broadcasts."""
    mask = torch.ones([1] * parameter.dim(), dtype=parameter.dtype)
    for dim, extent in enumerate(layout.extents):
        kept = torch.zeros(parameter.shape[dim], dtype=parameter.dtype)
        kept[extents.kept(extent, counts)] = 1
        mask = mask * kept.view([-1 if d == dim else 1 for d in range(parameter.dim())])
    return mask


@contextmanager
def _norms_over_kept(model: nn.Module, space: Space, counts: Mapping[str, int]) -> Iterator[None]:
    """Let layers whose class is called a norm work on the kept units, with zeros for the others."""
    handles = []
    for path, module in model.named_modules():
        layout = space.layouts.get(f"{path}.weight")
        if "norm" not in type(module).__name__.lower() or isinstance(module, WHOLE):
            continue
        if layout is None or len(layout.extents) != 1 or any(module.children()):
            continue
        kept = extents.kept(layout.extents[0], counts)
        if len(kept) < layout.extents[0].size:
            hook = _over(torch.tensor(kept), layout.extents[0].size)
            handles.append(module.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _over(kept: Tensor, size: int) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def again(norm: nn.Module, args: Any, output: Tensor) -> Tensor:
        x = args[0]
        second = isinstance(norm, nn.GroupNorm) or "batchnorm" in type(norm).__name__.lower()
        dim = 1 if second or x.shape[-1] != size else x.dim() - 1
        small = copy.copy(norm)
        small._forward_hooks = type(norm._forward_hooks)()
        small._parameters = {
            key: None if value is None else value[kept] for key, value in norm._parameters.items()
        }
        small._buffers = {  # a frozen norm has its weights there
            key: value[kept] if value is not None and value.shape == (size,) else value
            for key, value in norm._buffers.items()
        }
        if isinstance(norm, nn.LayerNorm | nn.RMSNorm):
            small.normalized_shape = (len(kept),)
        if isinstance(norm, nn.GroupNorm):
            small.num_channels = len(kept)
            small.num_groups = len((kept // (size // norm.num_groups)).unique())
        found = small(x.index_select(dim, kept))
        return torch.zeros_like(output).index_copy(dim, kept, found)

    return again


class _AttentionOverKept(TorchFunctionMode):
    """Lets torch's attention take its usual scale from the units of the queries that are not zero.

    A subnet's queries have the kept units alone, and torch computes the scale from their number.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention and kwargs.get("scale") is None:
            queries = (args[0] if args else kwargs["query"]).detach()
            living = int((queries.flatten(0, -2) != 0).any(0).sum())
            kwargs["scale"] = max(living, 1) ** -0.5
        return func(*args, **kwargs)


@contextmanager
def _passed_by(model: nn.Module, space: Space, counts: Mapping[str, int]) -> Iterator[None]:
    """Let blocks that a spec passes by return what they were given, as the space says."""
    handles = []
    for block in space.passed(counts):
        way = PassBy(block.passage)

        def skip(module: Any, args: Any, kwargs: Any, output: Any, way: PassBy = way) -> Any:
            return way(*args, **kwargs)

        module = model.get_submodule(block.module)
        handles.append(module.register_forward_hook(skip, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def enliven(model: nn.Module, run: Callable[[], Any], seed: int = 0) -> None:
    """Give weights that are all alike random values, and batch norms statistics that fit.

    A layer that starts at zero shows nothing of the layers before it, and one of ones shows no
    permutation; deep nets with the statistics of another distribution fade out.

    Args:
        model: its weights are changed.
        run: runs it once.
        seed: of the values.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.25 * noise.to(parameter.dtype))
    handles = []

    def measure(norm: Any, args: Any) -> None:
        seen = args[0].detach().transpose(0, 1).flatten(1)
        norm.running_mean.copy_(0.5 * seen.mean(1))
        norm.running_var.copy_(seen.pow(2).mean(1) + 1e-3)

    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            handles.append(module.register_forward_pre_hook(measure))
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()


def loss_of(tensors: Sequence[Tensor], seed: int = 0) -> Tensor:
    """Return a fixed random mix of all outputs, whose gradient reaches all of them."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64)
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.requires_grad:
            weights = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            total = total + (tensor.double() * weights).sum()
    return total


def outputs_of(pick: Callable[[Any], Any], returned: Any) -> list[Tensor]:
    """Return the floating-point tensors that are needed of what a model returns."""
    return [tensor for tensor in tensors_in(pick(returned)) if tensor.is_floating_point()]
