"""Ties: axes that the ops leave free but that the model's own code cuts together.

One attribute often serves several axes: `head_dim` is the size of queries and of values, a shared
config holds one number of heads for all layers. Such axes become one. An axis may also become what
several others make up: where rotary embeddings couple the halves of a query, the head size of the
values is twice that half.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from torch import nn

from nestling import extent as extents
from nestling.axes import expression as algebra
from nestling.axes.bundles import bundles
from nestling.axes.expression import Atom, Expression
from nestling.extent import Along, Concat, Extent, Fixed, Product
from nestling.spec import Space

Tie: TypeAlias = Mapping[str, Extent]
"""Axis to what it becomes: another axis, or a concatenation of others."""


Role: TypeAlias = tuple[object, ...]
"""What axes of like layers have in common."""

TieRole: TypeAlias = tuple[int, frozenset[tuple[Role, tuple[Role, ...]]]]
"""What ties of like layers have in common."""


def roles_of(space: Space, model: nn.Module) -> dict[str, Role]:
    """Return for every axis its kind, its size, and the layers that it cuts, by class and name."""
    owners = dict(model.named_modules())
    places: dict[str, list[object]] = {name: [] for name in space.axes}
    for tensor, layout in space.layouts.items():
        path, _, key = tensor.rpartition(".")
        layer = "" if path.rpartition(".")[2].isdigit() else path.rpartition(".")[2]
        for dim, extent in enumerate(layout.extents):
            for axis in dict.fromkeys(extents.axes_of(extent)):
                places[axis].append((type(owners[path]), layer, key, dim))
    return {n: (axis.kind, axis.size, tuple(places[n])) for n, axis in space.axes.items()}


def tie_role(tie: Tie, roles: Mapping[str, Role]) -> TieRole:
    """Return how many axes a tie takes, and their roles with those of what they become."""
    pairs = {
        (roles[name], tuple(roles[axis] for axis in extents.axes_of(extent)))
        for name, extent in tie.items()
    }
    return len(tie), frozenset(pairs)


def proposals(space: Space, name: str) -> Iterator[Tie]:
    """Yield the ties that may let an axis be cut, the smallest first.

    Axes that meet in a dimension come first, then axes of one kind whose tensors belong to the
    same module, then those that such axes lead to, then all of that kind and size, and last the
    products of its size (see `nestling.axes.bundles`).
    """
    if space.axes[name].ordered:
        return  # whole blocks, which no attribute counts
    seen: list[Tie] = []
    for leader, others in _groups(space, name):
        for members in others:
            tie = {axis: leader for axis in members if axis not in extents.axes_of(leader)}
            if tie and tie not in seen:
                seen.append(tie)
                yield tie
    yield from (tie for tie in bundles(space, name) if tie not in seen)


def expression_of(extent: Extent, atoms: Mapping[str, Atom]) -> Expression:
    """Return an extent as an expression of a trace, given the atom of every axis."""
    match extent:
        case Fixed(size):
            return algebra.constant(size)
        case Along(axis):
            return atoms[axis]
        case Product(factors):
            return algebra.times(expression_of(factor, atoms) for factor in factors)
        case Concat(parts):
            return algebra.join(expression_of(part, atoms) for part in parts)


def members(tie: Tie) -> list[str]:
    """Return all axes of a tie, those that the others become first."""
    leaders = (axis for extent in tie.values() for axis in extents.axes_of(extent))
    return list(dict.fromkeys([*leaders, *tie]))


def _groups(space: Space, name: str) -> Iterator[tuple[Extent, list[Sequence[str]]]]:
    """Yield what the tied axes become, with the groups of axes to try."""
    own = Along(name, space.axes[name].size)
    near = list(dict.fromkeys(_meeting(space, name)))
    first = next((axis for axis in space.axes if axis in (name, *near)), name)
    alone = [[other] for other in near]
    for group in [*alone, near] if len(near) > 1 else alone:
        first = next(axis for axis in space.axes if axis in (name, *group))
        yield Along(first, own.size), [(name, *group)]
    leaders: list[Extent] = [own, *_made_of(space, name)]
    for leader in leaders:
        yield leader, list(_circles(space, name, leader))
    peers = [a for a in _peers(space, name, own.size) if a != name]
    for leader in _parts_of_size(space, peers, own.size):
        yield leader, [(name,), *_circles(space, name, leader)]


def _meeting(space: Space, name: str) -> Iterator[str]:
    """Yield the axes of the same size that meet an axis in a dimension."""
    size = space.axes[name].size
    for layout in space.layouts.values():
        for extent in layout.extents:
            axes = list(extents.axes_of(extent))
            if name in axes:
                yield from (a for a in axes if a != name and space.axes[a].size == size)


def _made_of(space: Space, name: str) -> Iterator[Concat]:
    """Yield the concatenations of which an axis is a part."""
    seen: list[Extent] = []
    for layout in space.layouts.values():
        for extent in layout.extents:
            for part in extents.pieces_of(extent):
                if isinstance(part, Concat) and name in extents.axes_of(part) and part not in seen:
                    seen.append(part)
                    yield part


def _parts_of_size(space: Space, peers: Sequence[str], size: int) -> Iterator[Concat]:
    """Yield the concatenations of a size that only the given axes make up."""
    seen: list[Extent] = []
    for peer in peers:
        for part in _made_of(space, peer):
            if part.size == size and part not in seen:
                seen.append(part)
                yield part


def _circles(space: Space, name: str, leader: Extent) -> Iterator[Sequence[str]]:
    """Yield wider and wider groups of axes of the leader's size and the axis's kind."""
    kind = space.axes[name].kind
    alike = [a.name for a in space.axes.values() if a.size == leader.size and a.kind == kind]
    own = _pattern(space, name)
    yield [axis for axis in alike if _pattern(space, axis) == own]
    homes = {axis: _homes(space, axis) for axis in {*alike, *extents.axes_of(leader), name}}
    known = set().union(*(homes[axis] for axis in (*extents.axes_of(leader), name)))
    before: list[str] = []
    while True:
        members = [axis for axis in alike if homes[axis] & known]
        if members == before:
            break
        yield members
        before = members
        known = known.union(*(homes[axis] for axis in members))
    yield alike


def _pattern(space: Space, name: str) -> list[tuple[str, int]]:
    """Return what an axis cuts, the same for axes of all layers of a stack."""
    return [(re.sub(r"\d+", "#", tensor), dim) for tensor, dim in space.touches(name)]


def _peers(space: Space, name: str, size: int) -> list[str]:
    """Return the smaller axes of the same kind in the same modules."""
    axis, home = space.axes[name], _homes(space, name)
    return [
        other.name
        for other in space.axes.values()
        if other.kind == axis.kind and other.size <= size and _homes(space, other.name) & home
    ]


def _homes(space: Space, name: str) -> set[str]:
    """Return the modules whose children hold tensors that an axis cuts."""
    layers = {tensor.rpartition(".")[0] for tensor, _ in space.touches(name)}
    return layers | {path.rpartition(".")[0] for path in layers if "." in path}
