"""The model file: one safetensors file with one copy of the weights and the menu in its header.

The header is JSON: format version, builder and arguments, space, orders, inputs, and the menu with
its figures. Tensors are `weights/NAME` (shared) and `entries/ENTRY/NAME` (an entry's own). Nothing
in it is executed; every number is bounded and checked before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nestling import container
from nestling import extent as extents
from nestling.errors import FileError, NestlingError
from nestling.extent import Extent
from nestling.menu import Entry, Menu
from nestling.models import build, built
from nestling.profile import Profile, beside
from nestling.signature import Signature
from nestling.spec import Attribute, Axis, Frozen, Layout, Space, Spec, Work
from nestling.supernet import Supernet

VERSION = 1
LARGEST = 1 << 40  # no size, count or figure in a header is larger
MANY = 100_000  # nor has any list more items

T = TypeVar("T")


def save(menu: Menu, path: Path) -> Path:
    """Write a menu and its weights to one file, and its profile beside it.

    Raises:
        FileError: the path does not end in `.nest`, or the file cannot be written.
    """
    if path.suffix != ".nest":
        raise FileError(f"a model file ends in .nest, but the path is {path}; rename it")
    net = menu.net
    for entry in menu.entries[:1]:
        menu.module(entry.name)  # refuses a menu of an older order
    tensors = {f"weights/{name}": tensor for name, tensor in _unique_state(net.model).items()}
    for entry in menu.entries:
        own = {} if _is_shared(net, entry) else entry.private
        tensors |= {f"entries/{entry.name}/{name}": tensor for name, tensor in own.items()}
    container.write(path, _header(menu), tensors)
    if menu.profile.tables:
        menu.profile.save(beside(path))
    else:
        beside(path).unlink(missing_ok=True)
    return path


def read(path: str | Path, model: nn.Module | None = None) -> Menu:
    """Read a menu with its weights, and the profile beside it if there is one.

    Args:
        path: of the file.
        model: an instance of the user's own class, whose weights are replaced; not needed for the
            builders of `nestling.models`.

    Raises:
        FileError: the file is missing, damaged, of another version, or does not fit the model.
    """
    path = Path(path)
    header, tensors = container.read(path)
    _check_format(header, path)
    return _guarded(path, lambda: _menu(header, tensors, path, model))


def describe(path: str | Path) -> dict[str, Any]:
    """Return what a file holds, read from its header alone: `info FILE --json`.

    Raises:
        FileError: the file is missing, damaged or of another version.
    """
    path = Path(path)
    header = container.read_header(path)
    _check_format(header, path)

    def collect() -> dict[str, Any]:
        space = _space(header["space"])
        rows = [_row(space, row) for row in _items(header["menu"])]
        for row in rows:
            row.pop("private")
        return {
            "format": header["version"],
            "model": header["builder"] or {"class": header["class"]},
            "metric": header["metric"],
            "facts": header["facts"],
            "axes": {
                axis.name: {"size": axis.size, "kind": axis.kind, "counts": list(axis.counts)}
                for axis in space.axes.values()
            },
            "menu": rows,
        }

    return _guarded(path, collect)


# -- writing --------------------------------------------------------------------------------------


def _header(menu: Menu) -> dict[str, Any]:
    net = menu.net
    made = built(net.model)
    kind = type(net.model)
    return {
        "format": "nestling",
        "version": VERSION,
        "id": menu.profile.file_id,
        "builder": None if made is None else {"name": made.name, "arguments": dict(made.arguments)},
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "channels_last": _is_channels_last(net.model),
        "inputs": net.signature.to_json(),
        "space": _space_json(net.space),
        "orders": {name: list(order) for name, order in net.orders.items()},
        "private": sorted(net.private),
        "metric": menu.metric,
        "facts": dict(menu.facts),
        "menu": [
            {
                "name": entry.name,
                "spec": dict(entry.spec),
                "macs": entry.macs,
                "params": entry.params,
                "bytes": entry.bytes,
                "accuracy": entry.accuracy,
                "offered": entry.offered,
                "private": [] if _is_shared(net, entry) else sorted(entry.private),
            }
            for entry in menu.entries
        ],
    }


def _is_shared(net: Supernet, entry: Entry) -> bool:
    """Return whether an entry's own tensors are the net's, as those of the full spec are."""
    return entry.spec == net.space.full and entry.private.keys() <= net.private


def _is_channels_last(model: nn.Module) -> bool:
    """Return whether convolution weights lie channels-last: rounding depends on it, and speed."""
    return any(
        p.dim() == 4
        and p.is_contiguous(memory_format=torch.channels_last)
        and not p.is_contiguous()
        for p in model.parameters()
    )


def _unique_state(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _space_json(space: Space) -> dict[str, Any]:
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
    }


# -- reading --------------------------------------------------------------------------------------


def _guarded(path: Path, read_it: Callable[[], T]) -> T:
    """Turn whatever a hostile header provokes into one clear error."""
    try:
        return read_it()
    except FileError:
        raise
    except NestlingError as error:
        raise FileError(f"{path} does not hold together: {error}; get an intact copy") from error
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise FileError(
            f"{path} has a header that does not hold together "
            f"({type(error).__name__}: {error}); get an intact copy"
        ) from error


def _check_format(header: Mapping[str, Any], path: Path) -> None:
    if header.get("format") != "nestling":
        raise FileError(
            f"{path} is no Nestling model file; give the .nest file that menu.save wrote"
        )
    if header.get("version") != VERSION:
        raise FileError(
            f"{path} has format version {header.get('version')!r}, but this Nestling reads version "
            f"{VERSION}; install the Nestling that wrote it, or save the model again"
        )


def _menu(
    header: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path, model: nn.Module | None
) -> Menu:
    space = _space(header["space"])
    shared = _part(tensors, "weights/")
    module = _module(header, path, model)
    _check_fit(module, space, shared, path)
    _fill(module, shared)
    if header["channels_last"] is True:
        module.to(memory_format=torch.channels_last)
    orders = {name: _permutation(header["orders"][name], a.size) for name, a in space.axes.items()}
    private = frozenset(str(name) for name in _items(header["private"]))
    net = Supernet.restore(module, space, orders, private, Signature.from_json(header["inputs"]))
    entries = []
    for row in _items(header["menu"]):
        checked = _row(space, row)
        own = _own_tensors(tensors, checked, space, path)
        spec = Spec(space, checked["spec"])
        figures = {key: checked[key] for key in ("macs", "params", "bytes", "accuracy", "offered")}
        entries.append(Entry(checked["name"], spec, **figures, private=own))
    if not entries or len({entry.name for entry in entries}) < len(entries):
        raise FileError(f"{path} must list at least one subnet, each under its own name")
    return Menu(
        net,
        tuple(entries),
        str(header["metric"]),
        net.order,
        _profile(path, str(header["id"])),
        dict(header["facts"]),
    )


def _module(header: Mapping[str, Any], path: Path, model: nn.Module | None) -> nn.Module:
    if model is not None:
        return model
    maker = header["builder"]
    if maker is None:
        name = str(header["class"])[:200]
        raise FileError(
            f"{path} holds a model of the class {name}, whose source a file does not carry; "
            f"give an instance of it: nestling.load({str(path)!r}, model={name.rpartition('.')[2]}())"
        )
    return build(str(maker["name"]), dict(maker["arguments"]))


def _check_fit(module: nn.Module, space: Space, shared: Mapping[str, Tensor], path: Path) -> None:
    """Check that the module, the space and the stored weights agree, name by name."""
    state = _unique_state(module)
    for name in state.keys() | shared.keys() | space.layouts.keys():
        stored = shared.get(name)
        layout = space.layouts.get(name)
        if stored is None or layout is None or name not in state:
            where = "the model" if name not in state else "the file"
            raise FileError(f"{path} does not fit the model: {where} has no tensor {name[:200]!r}")
        sizes = tuple(extent.size for extent in layout.extents)
        if not tuple(stored.shape) == sizes == tuple(state[name].shape):
            raise FileError(
                f"{path} does not fit the model: {name!r} has the shape {tuple(stored.shape)} in "
                f"the file, but {tuple(state[name].shape)} in the model; make the model with the "
                "arguments that it was trained with"
            )


def _fill(module: nn.Module, shared: Mapping[str, Tensor]) -> None:
    module.load_state_dict(dict(shared), strict=False)
    for name, buffer in module.named_buffers():
        buffer.copy_(shared[name])  # buffers that are not persistent


def _row(space: Space, row: Mapping[str, Any]) -> dict[str, Any]:
    score = row["accuracy"]
    if score is not None and not isinstance(score, (int, float)):
        raise ValueError(f"accuracy {score!r}")
    return {
        "name": _text(row["name"]),
        "spec": dict(Spec(space, _mapping(row["spec"]))),
        "macs": _number(row["macs"]),
        "params": _number(row["params"]),
        "bytes": _number(row["bytes"]),
        "accuracy": score,
        "offered": row["offered"] is True,
        "private": [_text(name) for name in _items(row["private"])],
    }


def _own_tensors(
    tensors: Mapping[str, Tensor], row: Mapping[str, Any], space: Space, path: Path
) -> dict[str, Tensor]:
    own = {}
    for name in row["private"]:
        key = f"entries/{row['name']}/{name}"
        layout = space.layouts.get(name)
        if key not in tensors or layout is None:
            raise FileError(f"{path} lacks the tensor {key[:200]!r}; get an intact copy")
        if tuple(tensors[key].shape) != layout.shape(row["spec"]):
            raise FileError(f"{path} has {key[:200]!r} in a shape that its spec does not have")
        own[name] = tensors[key]
    return own


def _profile(path: Path, identity: str) -> Profile:
    place = beside(path)
    if not place.exists():
        return Profile(identity, {})
    return Profile.load(place, identity)


def _space(value: Mapping[str, Any]) -> Space:
    axes = {}
    for name, size, kind, counts, outer in _items(value["axes"]):
        allowed = tuple(_number(count) for count in _items(counts))
        if not allowed or list(allowed) != sorted(set(allowed)) or allowed[0] < 1:
            raise ValueError(f"counts of axis {name!r}")
        if allowed[-1] != _number(size):
            raise ValueError(f"size of axis {name!r}")
        axes[_text(name)] = Axis(_text(name), size, _text(kind), allowed, outer is True)
    layouts = {}
    for name, (dims, parameter, itemsize) in _mapping(value["layouts"]).items():
        whole = tuple(_extent(dim, axes) for dim in _items(dims))
        layouts[_text(name)] = Layout(whole, parameter is True, _number(itemsize))
    attributes = [
        Attribute(_text(module), _attribute(name), index, _extent(extent, axes))
        for module, name, index, extent in _items(value["attributes"])
    ]
    works = [
        Work(_text(module), tuple(_extent(dim, axes) for dim in _items(dims)), _number(per) or 1)
        for module, dims, per in _items(value["works"])
    ]
    frozen = [Frozen(*row) for row in _items(value["frozen"])]
    notes = tuple(_text(note) for note in _items(value["notes"]))
    return Space(axes, tuple(frozen), layouts, tuple(attributes), tuple(works), notes)


def _extent(value: Any, axes: Mapping[str, Axis]) -> Extent:
    extent = extents.from_json(value)
    if not 0 <= extent.size <= LARGEST:
        raise ValueError(f"an extent of {extent.size} entries")

    def check(at: extents.Along) -> Extent:
        if at.axis not in axes or axes[at.axis].size != at.size:
            raise ValueError(f"the extent names the unknown axis {at.axis!r}")
        return at

    return extents.substitute(extent, check)


def _attribute(name: Any) -> str:
    """Return the name of a size attribute: a plain word, so that a file cannot reach into internals."""
    text = _text(name)
    if not text.isidentifier() or text.startswith("_"):
        raise ValueError(f"not the name of a size: {text!r}")
    return text


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _permutation(value: Any, size: int) -> tuple[int, ...]:
    order = tuple(_number(unit) for unit in _items(value))
    if sorted(order) != list(range(size)):
        raise ValueError("an order that is no permutation")
    return order


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST:
        raise ValueError(f"not a whole number from 0 to {LARGEST}: {str(value)[:40]}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 1000:
        raise ValueError(f"not a text of at most 1,000 characters: {str(value)[:40]}")
    return value


def _items(value: Any) -> Sequence[Any]:
    if not isinstance(value, list) or len(value) > MANY:
        raise ValueError(f"not a list of at most {MANY} items: {str(value)[:40]}")
    return value


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict) or len(value) > MANY:
        raise ValueError(f"not an object of at most {MANY} items: {str(value)[:40]}")
    return value
