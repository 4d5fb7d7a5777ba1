"""Saliency: how much each executed unit mattered to the loss in a step.

Measured where it costs next to nothing, for every axis at every step:

- "fisher", `mean_n (sum_hw a * dL/da)^2`: at what the axis's norm layers put out, or where it
  passes none, its convolutions, linear layers or embeddings; over the first examples of the batch.
  Their activations are copied in the forward run and let go when their gradients come.
- "taylor", `|sum_n sum_hw a * dL/da|`: over the whole batch, from weights and their gradients
  alone. What a norm layer puts out is `gamma * x + beta`, so the sum is `gamma * dgamma + beta *
  dbeta`; what a linear reader takes in has `sum w * dw` over the columns that read the unit.
- "scale", `|gamma|` of the norm layers; where there are none, the L1 norm of the weights that make
  the unit.
- "random": a random number.

Sources: Theis, Korshunova, Tejani and Huszar, Faster Gaze Prediction with Dense Networks and Fisher
Pruning (arXiv 1801.05787); Molchanov, Tyree, Karras, Aila and Kautz, Pruning Convolutional Neural
Networks for Resource Efficient Inference (ICLR 2017); Liu et al., Learning Efficient Convolutional
Networks through Network Slimming (ICCV 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nestling import extent as extents
from nestling.execution.clock import Clock
from nestling.extent import Along, Extent
from nestling.spec import Axis, Space
from nestling.units import Place, combined, norm_scales

KINDS = ("fisher", "taylor", "scale", "random")
EXAMPLES = 16  # of a batch, at whose activations Fisher looks

_SECOND = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
_LAST = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Output:
    """What a layer puts out, and where the units of an axis stand in it.

    Attributes:
        module: path of the layer.
        dim: of its output along which the units stand.
        place: of the units in that dimension.
    """

    module: str
    dim: int
    place: Place


class Saliency:
    """Measures the executed units of a module.

    Args:
        kind: one of `KINDS`.
        module: of the executed counts.
        space: of the full net.
        axes: whose units are measured.
        counts: executed units by axis name; an axis that is missing is executed whole.
        clock: that is told what the measuring takes.
    """

    def __init__(
        self,
        kind: str,
        module: nn.Module,
        *,
        space: Space,
        axes: Sequence[Axis],
        counts: Mapping[str, int],
        clock: Clock,
    ) -> None:
        self.kind = kind
        self.axes = axes
        self.counts = counts
        self.clock = clock
        self.weights = dict(module.named_parameters())
        self._handles: list[Any] = []
        self._seen: dict[int, Tensor] = {}
        small = _Small(space, counts, next(module.parameters()).device)
        scales = norm_scales(module)
        self._terms = [_terms(small, axis.name, scales, kind) for axis in axes]
        found = [_outputs(small, module, axis.name, scales) for axis in axes]
        self._outputs = found if kind == "fisher" else [[] for _ in axes]
        for number, output in enumerate(each for part in self._outputs for each in part):
            layer = module.get_submodule(output.module)
            self._handles.append(layer.register_forward_hook(self._hook(number, output)))

    def close(self) -> None:
        """Take the hooks off the module."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen.clear()

    def rewards(self) -> Tensor:
        """Return the saliency of each executed unit over its axis's mean, axis by axis.

        To be called after the backward run, while the weights are as they were in it.
        """
        found, number = [], 0
        for axis, terms, outputs in zip(self.axes, self._terms, self._outputs, strict=True):
            if self.kind == "random":
                drawn = torch.rand(self.counts.get(axis.name, axis.size))
                found.append(drawn.to(next(iter(self.weights.values())).device))
                continue
            if outputs:
                known = [self._seen.pop(number + place, None) for place in range(len(outputs))]
                number += len(outputs)
                parts = [each for each in known if each is not None]
            else:
                parts = [self._of_weights(term) for term in terms]
            size = self.counts.get(axis.name, axis.size)
            nothing = self._zeros(size)
            found.append(combined(parts) if parts else nothing)
        return torch.cat([each.float() for each in found])

    def _zeros(self, size: int) -> Tensor:
        return torch.zeros(size, device=next(iter(self.weights.values())).device)

    def _of_weights(self, term: Sequence[Place]) -> Tensor:
        """Return the saliency that a group of weights tells: of a norm layer, or of one reader."""
        total: Tensor | None = None
        for place in term:
            weight = self.weights[place.parameter]
            if self.kind == "scale":
                values = weight.detach().abs()
            elif weight.grad is None:
                values = torch.zeros_like(weight)
            else:
                values = weight.detach() * weight.grad
            sums = place.sums(values)
            total = sums if total is None else total + sums
        assert total is not None
        return total.square() if self.kind == "fisher" else total.abs()

    def _hook(self, number: int, output: Output) -> Callable[..., None]:
        def look(module: nn.Module, inputs: Any, outputs: Tensor) -> None:
            if not outputs.requires_grad:
                return
            with self.clock.part("saliency"):
                few = outputs.detach()[:EXAMPLES].clone()

            def back(gradient: Tensor) -> None:
                with self.clock.part("saliency"):
                    found = fisher(few, gradient[:EXAMPLES], output.dim, output.place)
                    before = self._seen.get(number)  # a layer may run several times in a step
                    self._seen[number] = found if before is None else before + found

            outputs.register_hook(back)  # type: ignore[no-untyped-call]

        return look


def fisher(outputs: Tensor, gradients: Tensor, dim: int, place: Place) -> Tensor:
    """Return `mean_n (sum a * dL/da)^2` of each unit, (units,), over the examples.

    Args:
        outputs: activations, (examples, ...).
        gradients: of the loss with respect to them.
        dim: along which the units stand.
        place: which of its entries belong to each unit.
    """
    product = outputs.float() * gradients.float()
    own = dim % product.dim()
    others = [each for each in range(1, product.dim()) if each != own]
    lines = product.sum(others) if others else product  # (examples, entries)
    if not place.plain:
        units = lines.new_zeros(len(lines), place.size)
        lines = units.index_add(1, place.units, lines[:, place.entries])
    return lines.square().mean(0)


class _Small:
    """The extents of a space at the executed counts."""

    def __init__(self, space: Space, counts: Mapping[str, int], device: torch.device) -> None:
        self.space = space
        self.counts = counts
        self.device = device
        self.touched: dict[str, list[tuple[str, int]]] = {}
        for name, layout in space.layouts.items():
            if layout.parameter:
                for dim, extent in enumerate(layout.extents):
                    for axis in set(extents.axes_of(extent)):
                        self.touched.setdefault(axis, []).append((name, dim))

    def place(self, axis: str, parameter: str, dim: int) -> Place:
        """Return where the executed units of an axis stand in the executed part of a parameter."""
        dims = [self._cut(extent) for extent in self.space.layouts[parameter].extents]
        pairs = torch.tensor(extents.owned(dims[dim], axis), dtype=torch.int64).reshape(-1, 2)
        entries, units = pairs.unbind(1)
        size = self.counts.get(axis, self.space.axes[axis].size)
        shape = tuple(extent.size for extent in dims)
        plain = isinstance(dims[dim], Along)
        return Place(axis, size, parameter, shape, dim, entries, units, plain).to(self.device)

    def _cut(self, extent: Extent) -> Extent:
        return extents.substitute(
            extent, lambda at: Along(at.axis, self.counts.get(at.axis, at.size))
        )


def _terms(small: _Small, axis: str, scales: Mapping[str, str], kind: str) -> list[list[Place]]:
    """Return the groups of weights that tell the saliency of an axis: the first kind that it has.

    Scales and shifts of norm layers that it passes; weights that read it; weights that make it.
    """
    touched = small.touched.get(axis, [])
    norms = [name for name, dim in touched if name in scales and dim == 0]
    made = small.space.made_by(axis)
    if norms:
        groups = []
        for name in norms:
            shift = scales[name]
            with_shift = shift and kind != "scale" and (shift, 0) in touched
            groups.append([name, shift] if with_shift else [name])
        return [[small.place(axis, name, 0) for name in group] for group in groups]
    readers = [
        (name, dim)
        for name, dim in touched
        if (name, dim) not in made and len(small.space.layouts[name].extents) > 1
    ]
    chosen = made if kind == "scale" or not readers else readers
    return [[small.place(axis, name, dim)] for name, dim in chosen]


def _outputs(
    small: _Small, module: nn.Module, axis: str, scales: Mapping[str, str]
) -> list[Output]:
    """Return the layers at whose outputs the units of an axis can be seen.

    They are the norm layers that are the axis's own, else the layers that make it.
    """
    norms = [
        Output(path, dim, small.place(axis, name, 0))
        for name, at in small.touched.get(axis, [])
        if name in scales and at == 0 and isinstance(small.space.layouts[name].extents[0], Along)
        for path, dim in [_output_of(module, name, at)]
        if dim is not None
    ]
    if norms:
        return norms
    made = []
    for name, at in small.space.made_by(axis):
        path, dim = _output_of(module, name, at)
        if dim is None:
            return []
        made.append(Output(path, dim, small.place(axis, name, at)))
    return made


def _output_of(module: nn.Module, parameter: str, dim: int) -> tuple[str, int | None]:
    """Return a weight's layer, and the dimension of its output that the weight's one makes.

    None where the layer is not one of torch's own, which may do anything with the weight.
    """
    path, _, key = parameter.rpartition(".")
    layer: Any = module.get_submodule(path)
    ours = type(layer).__module__.startswith("torch.nn.modules.")
    if not ours or key != "weight" or not isinstance(layer, (*_SECOND, *_LAST)):
        return path, None
    making = 1 if isinstance(layer, nn.Embedding) else 0
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        making = 1 if layer.groups == 1 else -1
    if dim != making:
        return path, None
    return path, 1 if isinstance(layer, _SECOND) else -1
