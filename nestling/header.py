"""The header of a model file: readers that bound every value, and the JSON of a space.

A header may come from a stranger. Whatever it holds, reading it gives plain data within bounds or a
`ValueError`, and allocates nothing that its own length does not pay for.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from nestling import coding as codings
from nestling import extent as extents
from nestling import passage as passages
from nestling.coding import Coding
from nestling.extent import Along, Concat, Extent, Fixed, Product
from nestling.quantize import FULL
from nestling.rewrite import Edit, Rewrite
from nestling.setting import Setting
from nestling.spec import Attribute, Axis, Block, Frozen, Layout, Space, Work

LARGEST = 1 << 40  # no size, count or figure in a header is larger
MANY = 1_000_000  # nor has any list more items
LONGEST = 1_000  # characters of a name
WORDS = 5  # of the way to a number of a config, such as config.text_config.hidden_size
ITEMSIZES = (1, 2, 4, 8, 16)  # bytes of a number


def space_to_json(space: Space) -> dict[str, Any]:
    """Return a space as JSON values."""
    return {
        "axes": [
            [axis.name, axis.size, axis.kind, list(axis.counts), axis.outer]
            for axis in space.axes.values()
        ],
        "frozen": [[f.parameter, f.dim, f.size, f.op, f.module, f.reason] for f in space.frozen],
        "layouts": {
            name: [list(map(extents.to_json, layout.extents)), layout.parameter, layout.itemsize]
            for name, layout in space.layouts.items()
        },
        "attributes": [
            [a.module, a.name, a.index, extents.to_json(a.extent)] for a in space.attributes
        ],
        "works": [
            [work.module, list(map(extents.to_json, work.extents)), work.per]
            for work in space.works
        ],
        "notes": list(space.notes),
        "blocks": [
            [block.module, block.axis, block.place, passages.to_json(block.passage)]
            for block in space.blocks
        ],
        "settings": list(map(_setting_json, space.settings)),
        "producers": [list(place) for place in space.producers],
        "codings": list(map(codings.to_json, space.codings)),
        "rewrites": [
            [given.module, [[e.method, e.number, extents.to_json(e.extent)] for e in given.edits]]
            for given in space.rewrites
        ],
    }


def space_from_json(value: Any) -> Space:
    """Return the space that `space_to_json` wrote.

    Raises:
        ValueError: the value is not of that form.
    """
    axes = {}
    for row in items(value["axes"]):
        axis = _axis(row)
        if axis.name in axes:
            raise ValueError(f"two axes named {axis.name!r}")
        axes[axis.name] = axis
    layouts = {name(n): _layout(row, axes) for n, row in mapping(value["layouts"]).items()}
    attributes = [
        Attribute(text(module), _attribute(key), index, _extent(extent, axes))
        for module, key, index, extent in items(value["attributes"])
    ]
    works = [
        Work(text(module), _extents(dims, axes), max(1, number(per)))
        for module, dims, per in items(value["works"])
    ]
    frozen = [
        Frozen(text(parameter), number(dim), number(size), text(op), text(module), prose(reason))
        for parameter, dim, size, op, module, reason in items(value["frozen"])
    ]
    notes = tuple(prose(note) for note in items(value["notes"]))
    blocks = tuple(_block(row, axes) for row in items(value.get("blocks", [])))
    if len({block.module for block in blocks}) < len(blocks):
        raise ValueError("two blocks of one module")
    settings = tuple(_setting(row, axes) for row in items(value.get("settings", [])))
    return Space(
        axes,
        tuple(frozen),
        layouts,
        tuple(attributes),
        tuple(works),
        notes=notes,
        blocks=blocks,
        settings=settings,
        rewrites=_rewrites(value.get("rewrites", []), axes),
        producers=tuple(_producer(row, layouts) for row in items(value.get("producers", []))),
        codings=_codings(value.get("codings", []), axes, layouts),
    )


def permutation(value: Any, size: int) -> tuple[int, ...]:
    """Return an order of `size` units."""
    order = tuple(number(unit) for unit in items(value))
    if len(order) != size or sorted(order) != list(range(size)):
        raise ValueError("an order that is no permutation")
    return order


def number(value: Any) -> int:
    """Return a whole number from 0 to 2**40."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST:
        raise ValueError(f"not a whole number from 0 to {LARGEST}: {_short(value)}")
    return value


def score(value: Any) -> float | None:
    """Return a finite number, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"not a number: {_short(value)}")
    if not math.isfinite(float(value)):
        raise ValueError(f"not a finite number: {value}")
    return float(value)


def text(value: Any) -> str:
    """Return a text of at most 1,000 characters that a terminal shows as it is."""
    if not isinstance(value, str) or len(value) > LONGEST or not value.isprintable():
        raise ValueError(f"not a text of at most {LONGEST} characters: {_short(value)}")
    return value


def prose(value: Any) -> str:
    """Return a text of several lines."""
    if not isinstance(value, str) or not value.replace("\n", " ").isprintable():
        raise ValueError(f"not a text: {_short(value)}")
    return value


def name(value: Any) -> str:
    """Return a text that is not empty."""
    if not text(value):
        raise ValueError("an empty name")
    return text(value)


def items(value: Any) -> Sequence[Any]:
    """Return a list."""
    if not isinstance(value, list) or len(value) > MANY:
        raise ValueError(f"not a list of at most {MANY} items: {_short(value)}")
    return value


def mapping(value: Any) -> Mapping[str, Any]:
    """Return a JSON object."""
    if not isinstance(value, dict) or len(value) > MANY:
        raise ValueError(f"not an object of at most {MANY} items: {_short(value)}")
    return value


def _axis(row: Any) -> Axis:
    key, size, kind, counts, outer = row
    allowed = tuple(number(count) for count in items(counts))
    if not allowed or list(allowed) != sorted(set(allowed)) or allowed[0] < 1:
        raise ValueError(f"counts of axis {_short(key)}")
    if allowed[-1] != number(size):
        raise ValueError(f"size of axis {_short(key)}")
    return Axis(name(key), size, name(kind), allowed, outer is True)


def _block(row: Any, axes: Mapping[str, Axis]) -> Block:
    module, axis, place, passage = row
    if axis not in axes or axes[axis].kind != "depth" or not 1 <= number(place) < axes[axis].size:
        raise ValueError(f"a block of the unknown depth axis {_short(axis)}")
    return Block(name(module), axis, place, passages.from_json(passage))


def _codings(
    value: Any, axes: Mapping[str, Axis], layouts: Mapping[str, Layout]
) -> tuple[Coding, ...]:
    """Return the codings, at most one a layer, whose parameters the space has."""
    bits = {n: axis.counts for n, axis in axes.items() if axis.kind == "bits" and axis.size == FULL}
    found = tuple(codings.from_json(row, bits) for row in items(value))
    if len({each.module for each in found}) < len(found):
        raise ValueError("two codings of one layer")
    for each in found:
        text(each.module)
        if each.signed and 1 in each.clips:
            raise ValueError(f"{_short(each.module)} has inputs with a sign in 1 bit")
        keys = each.parameter("weight"), *each.extras
        for key, dims in zip(keys, (None, 1, *(0 for _ in each.clips)), strict=True):
            wanted = layouts[keys[0]].extents[:dims] if keys[0] in layouts else None
            if key not in layouts or not layouts[key].parameter or layouts[key].extents != wanted:
                raise ValueError(f"a coding without the parameter {_short(key)}")
    return found


def _producer(row: Any, layouts: Mapping[str, Layout]) -> tuple[str, int]:
    parameter, dim = row
    if parameter not in layouts or number(dim) >= len(layouts[parameter].extents):
        raise ValueError(f"a producer that is no dimension of a parameter: {_short(row)}")
    return parameter, dim


def _rewrites(value: Any, axes: Mapping[str, Axis]) -> tuple[Rewrite, ...]:
    """Return the rewritten methods, each number of each module at most once."""
    found = []
    for module, rows in items(value):
        edits = tuple(Edit(_method(m), number(n), _extent(e, axes)) for m, n, e in items(rows))
        if len({(edit.method, edit.number) for edit in edits}) < len(edits):
            raise ValueError(f"a number of {_short(module)} is changed twice")
        found.append(Rewrite(text(module), edits))
    if len({each.module for each in found}) < len(found):
        raise ValueError("a module is rewritten twice")
    return tuple(found)


def _layout(row: Any, axes: Mapping[str, Axis]) -> Layout:
    dims, parameter, itemsize = row
    if itemsize not in ITEMSIZES:
        raise ValueError(f"a number of {_short(itemsize)} bytes")
    return Layout(_extents(dims, axes), parameter is True, int(itemsize))


def _extents(value: Any, axes: Mapping[str, Axis]) -> tuple[Extent, ...]:
    return tuple(_extent(dim, axes) for dim in items(value))


def _extent(value: Any, axes: Mapping[str, Axis]) -> Extent:
    extent = extents.from_json(value)
    _check_extent(extent, axes)
    return extent


def _check_extent(extent: Extent, axes: Mapping[str, Axis]) -> int:
    """Return the size of an extent, checked from the inside out, so that no number grows large."""
    match extent:
        case Fixed(size):
            pass
        case Along(axis, size):
            if axis not in axes or axes[axis].size != size:
                raise ValueError(f"the extent names the unknown axis {axis[:80]!r}")
        case Product(factors):
            size = 1
            for factor in factors:
                size = number(size * _check_extent(factor, axes))
            if not size:  # a factor of zero could hide large ones beside it
                raise ValueError("an empty product")
        case Concat(parts):
            size = sum(_check_extent(part, axes) for part in parts)
    return number(size)


def _setting_json(setting: Setting) -> list[Any]:
    agree = [[extents.to_json(each) for each in pair] for pair in setting.agree]
    place = setting.module, setting.name, setting.index
    return [*place, extents.to_json(setting.extent), agree, setting.length]


def _setting(row: Any, axes: Mapping[str, Axis]) -> Setting:
    module, way, index, extent, agree, length = row
    place = None if index is None else number(index)
    pairs = tuple((_extent(one, axes), _extent(other, axes)) for one, other in items(agree))
    for one, other in pairs:
        if one.size != other.size:
            raise ValueError(f"{_short(way)} would have to be {one.size} and {other.size} at once")
    words = text(way).split(".")
    if not 2 <= len(words) <= WORDS or not all(map(_is_plain, words)):
        raise ValueError(f"not the name of a number of a config: {_short(way)}")
    return Setting(text(module), way, place, _extent(extent, axes), pairs, length is True)


def _attribute(value: Any) -> str:
    """Return the name of a size attribute, or of one of a config: `config.hidden_size`.

    Both are plain words, so that no file reaches into internals.
    """
    path = text(value)
    words = path.split(".")
    if len(words) > 2 or not all(map(_is_plain, words)):
        raise ValueError(f"not the name of a size: {path!r}")
    return path


def _method(value: Any) -> str:
    """Return the name of a method of a user's own."""
    word = text(value)
    if not word.isidentifier() or word.startswith("__"):
        raise ValueError(f"not the name of a method: {word!r}")
    return word


def _is_plain(word: str) -> bool:
    return word.isidentifier() and not word.startswith("_")


def _short(value: Any) -> str:
    return reprlib.repr(value)[:80]
