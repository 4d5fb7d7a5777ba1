"""Units: which entries of a weight belong to each unit of an axis, and what they add up to.

A unit (a channel, a head, a path) is made by one slice, or several, of each of the weights that put
it out. What those slices hold is one number a unit and weight; weights differ in scale, so an axis
that several weights make has the mean of their numbers, each divided by its own mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from nestling import extent as extents
from nestling.errors import SpecError, did_you_mean
from nestling.extent import Along
from nestling.spec import Axis, Space


@dataclass(frozen=True)
class Place:
    """One dimension of a parameter along which the units of an axis stand.

    Attributes:
        axis: name of the axis.
        size: its number of units.
        parameter: name of the parameter.
        shape: of the parameter.
        dim: the dimension.
        entries: the entries of the dimension that belong to a unit, (M,).
        units: the unit of each of them, (M,).
        plain: whether every entry is a unit, in their order.
    """

    axis: str
    size: int
    parameter: str
    shape: tuple[int, ...]
    dim: int
    entries: Tensor
    units: Tensor
    plain: bool

    @classmethod
    def of(cls, space: Space, axis: str, parameter: str, dim: int) -> Place:
        """Return the place of an axis in a dimension of a parameter."""
        dims = space.layouts[parameter].extents
        pairs = torch.tensor(extents.owned(dims[dim], axis), dtype=torch.int64).reshape(-1, 2)
        shape = tuple(extent.size for extent in dims)
        entries, units = pairs.unbind(1)
        size, plain = space.axes[axis].size, isinstance(dims[dim], Along)
        return cls(axis, size, parameter, shape, dim, entries, units, plain)

    def to(self, device: torch.device) -> Place:
        """Return the place with its indices on a device."""
        return replace(self, entries=self.entries.to(device), units=self.units.to(device))

    def sums(self, values: Tensor) -> Tensor:
        """Return the sum over each unit's entries.

        Args:
            values: of the parameter's shape.

        Returns:
            One number a unit, (size,), with the graph of the values.
        """
        others = [dim for dim in range(values.dim()) if dim != self.dim]
        lines = values.sum(others) if others else values
        if self.plain:
            return lines
        entries, units = self.entries.to(values.device), self.units.to(values.device)
        return lines.new_zeros(self.size).index_add(0, units, lines[entries])

    def spread(self, gains: Tensor) -> Tensor:
        """Return a number a unit as one an entry, in a shape that multiplies the parameter."""
        lines = gains
        if not self.plain:
            entries, units = self.entries.to(gains.device), self.units.to(gains.device)
            lines = gains.new_zeros(self.shape[self.dim]).index_add(0, entries, gains[units])
        return lines.view([-1 if dim == self.dim else 1 for dim in range(len(self.shape))])


def loose_axes(space: Space) -> list[Axis]:
    """Return the axes whose units can be put in any order; depth and bits have their own."""
    return [axis for axis in space.axes.values() if not axis.ordered]


def axes_of_kinds(space: Space, kinds: Iterable[str] | None) -> list[Axis]:
    """Return the axes of some kinds, or all of them.

    Args:
        space: of the net.
        kinds: such as `["channels", "depth"]`; None for all.

    Raises:
        SpecError: no kind is named, or one that no axis of the net is of.

    Example:
        >>> [axis.name for axis in axes_of_kinds(net.space, ["depth"])]
        ['layer1.depth', 'layer2.depth', 'layer3.depth']
    """
    known = list(dict.fromkeys(axis.kind for axis in space.axes.values()))
    if kinds is None:
        return list(space.axes.values())
    if isinstance(kinds, str) or not isinstance(kinds, Iterable) or not list(kinds):
        raise SpecError(
            f"kinds= lists kinds of axes, such as {known[:2]}, or is None for all, not {kinds!r}"
        )
    wanted = list(kinds)
    for kind in wanted:
        if kind not in known:
            raise SpecError(
                f"kinds= names {kind!r}, but no axis of this net is of that kind; its kinds are "
                f"{', '.join(known)}{did_you_mean(str(kind), known)}"
            )
    return [axis for axis in space.axes.values() if axis.kind in wanted]


def makers(space: Space, axis: str) -> list[Place]:
    """Return the places where weights make the units of an axis (see `Space.made_by`)."""
    return [Place.of(space, axis, *place) for place in space.made_by(axis)]


def norms(model: nn.Module) -> Iterator[nn.Module]:
    """Yield every norm layer that has weights.

    That is any module with "norm" in its class's name and a `weight` of one dimension: batch,
    layer, group and RMS norm, and those of model libraries.
    """
    for module in model.modules():
        weight = module._parameters.get("weight")
        if "norm" in type(module).__name__.lower() and weight is not None and weight.dim() == 1:
            yield module


def norm_scales(model: nn.Module) -> dict[str, str]:
    """Return the scale of every norm layer, each once, with its shift (or "" where it has none).

    Example:
        >>> norm_scales(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
        {'1.weight': '1.bias'}
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for norm in norms(model):
        shift = norm._parameters.get("bias")
        found[names[id(norm.weight)]] = "" if shift is None else names[id(shift)]
    return {name: found[name] for name in names.values() if name in found}


def scored(space: Space, measure: Callable[[Place], Tensor]) -> dict[str, Tensor]:
    """Return a score for every unit of every axis: the mean of its weights' relative ones.

    Args:
        space: of the net.
        measure: one number a unit, (size,), of at least 0, for each weight that makes them.
    """
    return {
        axis.name: combined([measure(place) for place in makers(space, axis.name)])
        for axis in loose_axes(space)
    }


def combined(measures: Sequence[Tensor]) -> Tensor:
    """Return the mean of several weights' measures of one axis's units, each over its own mean.

    Example:
        >>> combined([torch.tensor([1.0, 3.0]), torch.tensor([400.0, 0.0])])
        tensor([1.2500, 0.7500])
    """
    return torch.stack([relative(measure) for measure in measures]).mean(0)


def relative(measure: Tensor) -> Tensor:
    """Return a measure divided by its mean; zeros where all of it is zero."""
    mean = measure.mean()
    return measure / torch.where(mean == 0, torch.ones_like(mean), mean)
