"""Sizes: what the integers of a module can stand for.

They are the sizes that its own code and that of its parts passed to ops, then those of their
parameters, and pieces of these, because code computes sizes from smaller ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from nestling import extent as extents
from nestling.extent import Extent
from nestling.spec import Layout

SizesByModule: TypeAlias = Mapping[str, Mapping[int, Sequence[Extent]]]
"""Module path to size to the extents of that size that run along an axis, nearest first."""


def sizes_by_module(
    passed: Iterable[tuple[str, Extent]], layouts: Mapping[str, Layout]
) -> SizesByModule:
    """Return the elastic sizes of every module.

    Args:
        passed: module path and extent of each size that code passed to an op.
        layouts: parameter or buffer name to what its dimensions are made of.
    """
    found: dict[str, dict[int, dict[Extent, None]]] = {}
    of_weights = (
        (name.rpartition(".")[0], extent)
        for name, layout in layouts.items()
        for extent in layout.extents
    )
    for sizes in (passed, of_weights):
        for module, extent in sizes:
            pieces = [part for part in extents.pieces_of(extent) if any(extents.axes_of(part))]
            for path in _around(module) if pieces else ():
                own = found.setdefault(path, {})
                for part in pieces:
                    own.setdefault(part.size, {})[part] = None
    return {
        path: {size: tuple(parts) for size, parts in own.items()} for path, own in found.items()
    }


def _around(path: str) -> list[str]:
    """Return a module and those that it is part of."""
    parts = path.split(".") if path else []
    return [".".join(parts[:length]) for length in range(len(parts), -1, -1)]
