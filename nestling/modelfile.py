"""The model file: one safetensors file with one copy of the weights and the menu in its header.

The header is JSON: format version, builder and arguments, space, orders, inputs, and the menu with
its figures. Tensors are `weights/NAME` (shared), `planes/PLACE/NAME` (the bits of shared weights
that are stored as integers) and `entries/ENTRY/NAME` (an entry's own). Nothing in it is executed;
every number is bounded and checked before anything is allocated.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nestling import container, quantize, rewrite
from nestling.coding import SCALE, Coding, attach, check_storable, is_attached, unfit
from nestling.construction import copied
from nestling.entry import Entry, checked_name
from nestling.errors import FileError, ModelError, NestlingError, SpecError, did_you_mean
from nestling.header import (
    items,
    mapping,
    name,
    number,
    permutation,
    prose,
    score,
    space_from_json,
    space_to_json,
    text,
)
from nestling.models import build, built
from nestling.planes import bytes_of, codes_of, planes_of
from nestling.profile import ForeignProfile, Profile, beside
from nestling.quantize import FULL, MOST
from nestling.setting import Setting, holder_of
from nestling.signature import Signature
from nestling.spec import Attribute, Space, Spec
from nestling.supernet import Supernet
from nestling.surroundings import undisturbed
from nestling.weights import duplicate, fill, is_channels_last, lay_out, misfit, tensors_of

VERSION = 1
MOST_ENTRIES = 1_000


class Contents(NamedTuple):
    """What a file holds: the parts of a menu, in its order."""

    net: Supernet
    entries: tuple[Entry, ...]
    metric: str
    order: int
    profile: Profile
    facts: Mapping[str, Any]


def save(menu: Contents, path: Path, *, integers: bool = False) -> Path:
    """Write a menu and its weights to one file, and its profile beside it.

    Args:
        menu: what is written.
        path: of the file.
        integers: whether to write weights that no entry has in floating point as integers.

    Raises:
        FileError: the path does not end in `.nest`, or the file cannot be written.
        SpecError: `integers`, but there are no such weights.
        ModelError: `integers`, but these are NaN or infinite, or nearly all beyond their scale.
    """
    if path.suffix != ".nest":
        raise FileError(f"a model file ends in .nest, but the path is {path}; rename it")
    net = menu.net
    tensors = {f"weights/{key}": tensor for key, tensor in tensors_of(net.model).items()}
    for entry in menu.entries:
        tensors |= {f"entries/{entry.name}/{key}": own for key, own in entry.private.items()}
    header = _header(menu)
    if integers:
        header["planes"] = _to_planes(menu, tensors)
        header["digests"] = container.digests_of(tensors, _part_of)
    with _guarded(f"cannot save {path}: the menu", "change what is saved"):
        _check_header(header, {key: tuple(tensor.shape) for key, tensor in tensors.items()})
    container.write(path, header, tensors)
    if menu.profile.tables or menu.profile.narrowings:
        menu.profile.save(beside(path))
    else:
        with contextlib.suppress(OSError):  # one that stays is not used: it has another identity
            beside(path).unlink(missing_ok=True)
    return path


@torch.inference_mode(False)  # weights can be trained on, wherever they are loaded
def read(
    path: str | Path, model: nn.Module | None = None, *, only: Sequence[str] | None = None
) -> Contents:
    """Read a menu with its weights, and the profile beside it if there is one.

    Args:
        path: of the file.
        model: an instance of the user's own class, which is copied and not changed; not needed for
            the builders of `nestling.models`.
        only: names of the entries to read, all by default. Of a file of integers the bit planes
            that none of them has, and what other entries have of their own, are not read.

    Raises:
        FileError: the file is missing, damaged, of another version, or does not fit the model.
        SpecError: the file has no entry of a name, or none is named.
    """
    path = Path(path)
    if only is None:
        header, tensors = container.read(path)
        _check_format(header, path)
    else:
        header, tensors = _read_some(path, only)
    with guarded(path):
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        space, rows, signature = _check_header(header, shapes)
        weights = _part(tensors, "weights/") | _from_planes(header, space, tensors)
        if model is not None:
            model = _materialized(model, signature)
        module = _module(header, path, model, space, weights)
        fill(module, weights)
        if header["channels_last"] is True:
            lay_out(module, torch.channels_last)
        axes = space.axes.items()
        orders = {key: permutation(header["orders"][key], axis.size) for key, axis in axes}
        private = frozenset(name(key) for key in items(header["private"]))
        net = Supernet.restore(module, space, orders, private, signature)
        entries = tuple(_entry(row, space, tensors) for row in rows)
        profile = _profile(path, text(header["id"]))
        facts = dict(mapping(header["facts"]))
        return Contents(net, entries, text(header["metric"]), net.order, profile, facts)


def describe(path: str | Path) -> dict[str, Any]:
    """Return what a file holds, read from its header alone: `info FILE --json`.

    Raises:
        FileError: the file is missing, damaged or of another version.
    """
    path = Path(path)
    header = container.read_header(path)
    _check_format(header, path)
    with guarded(path):
        space = space_from_json(header["space"])
        rows = [_row(space, row) for row in items(header["menu"])]
        for row in rows:
            row.pop("private")
        maker = header["builder"]
        return {
            "format": VERSION,
            "model": {"class": text(header["class"])} if maker is None else dict(mapping(maker)),
            "metric": text(header["metric"]),
            "facts": dict(mapping(header["facts"])),
            "axes": {
                axis.name: {"size": axis.size, "kind": axis.kind, "counts": list(axis.counts)}
                for axis in space.axes.values()
            },
            "menu": rows,
        }


@contextlib.contextmanager
def guarded(path: Path) -> Iterator[None]:
    """Turn whatever a damaged or hostile file provokes into one clear error.

    Raises:
        FileError: the block failed.
    """
    with _guarded(str(path), "get an intact copy"):
        yield


@contextlib.contextmanager
def _guarded(what: str, cure: str) -> Iterator[None]:
    try:
        yield
    except FileError:
        raise
    except NestlingError as error:
        raise FileError(f"{what} does not hold together: {error}; {cure}") from error
    except Exception as error:
        kind = type(error).__name__
        raise FileError(
            f"{what} does not hold together ({kind}: {error!s:.500}); {cure}"
        ) from error


# -- writing --------------------------------------------------------------------------------------


def _header(menu: Contents) -> dict[str, Any]:
    net = menu.net
    kind = type(net.model)
    return {
        "format": "nestling",
        "version": VERSION,
        "id": menu.profile.file_id,
        "builder": _builder(net),
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "channels_last": is_channels_last(net.parameters()),
        "inputs": net.signature.to_json(),
        "space": space_to_json(net.space),
        "orders": {name: list(order) for name, order in net.orders.items()},
        "private": sorted(net.private),
        "metric": menu.metric,
        "facts": dict(menu.facts),
        "menu": [entry.to_json() | {"private": sorted(entry.private)} for entry in menu.entries],
    }


def _builder(net: Supernet) -> dict[str, Any] | None:
    """Return the call that makes the model; None where layers were changed since it was made."""
    model = net.model
    made = built(model)
    if made is None:
        return None
    call = {"name": made.name, "arguments": dict(made.arguments)}
    skeleton = _skeleton(call)
    own = _own(tensors_of(model), net.space)
    same = str(skeleton) == str(model) and not misfit(skeleton, own)
    return call if same else None


def _own(tensors: Mapping[str, Tensor], space: Space) -> dict[str, Tensor]:
    """Return the tensors of the model's own class: all but scales and clips of few bits."""
    extras = {name for coding in space.codings for name in coding.extras}
    return {key: tensor for key, tensor in tensors.items() if key not in extras}


def _skeleton(call: Mapping[str, Any]) -> nn.Module:
    """Return the model of a builder without memory for its weights."""
    with torch.device("meta"):
        return build(call["name"], mapping(call["arguments"]))


def _to_planes(menu: Contents, tensors: dict[str, Tensor]) -> dict[str, int]:
    """Replace weights that no entry has in floating point by bit planes; return their bits.

    As many bits are kept as the entry of most bits has.
    """
    space, found = menu.net.space, {}
    for coding in space.codings:
        present = [each.spec for each in menu.entries if not space.absent(each.spec)(coding.module)]
        bits = max((coding.weight_bits(spec) for spec in present), default=FULL)
        if bits < FULL:
            name = coding.parameter("weight")
            weight, scale = (tensors[f"weights/{coding.parameter(k)}"] for k in ("weight", SCALE))
            check_storable(coding.module, weight, scale)
            codes = quantize.integers(weight, quantize.positive(scale), bits)
            del tensors[f"weights/{name}"]
            for place, plane in enumerate(planes_of(codes, bits), 1):
                tensors[f"planes/{place}/{name}"] = plane
            found[name] = bits
    if not found:
        raise SpecError(
            "integers= writes weights that no entry of the menu has in floating point, but there "
            "are none; leave such entries out first: menu.only('m100-b4').save(path, integers=True)"
        )
    return found


# -- reading --------------------------------------------------------------------------------------


def _check_format(header: Mapping[str, Any], path: Path) -> None:
    if header.get("format") != "nestling":
        raise FileError(
            f"{path} is no Nestling model file; give the .nest file that menu.save wrote"
        )
    if header.get("version") != VERSION:
        raise FileError(
            f"{path} has format version {header.get('version')!r:.80}, but this Nestling reads "
            f"version {VERSION}; install the Nestling that wrote it, or save the model again"
        )
    with guarded(path):
        rows = items(mapping(header["space"]).get("codings", []))
        if any(len(items(row)) == 4 for row in rows):  # before clips were listed
            raise FileError(
                f"{path} was written when one clip served all numbers of bits of a layer's inputs; "
                "install the Nestling that wrote it, or train the model anew"
            )


def _read_some(path: Path, only: Sequence[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the header of a file as if it held some entries alone, and their tensors.

    A file without digests of single tensors can only be believed as a whole: all of it is read, and
    what is not needed is let go.

    Raises:
        FileError: as `read`.
        SpecError: there is no entry of a name, or none is named.
    """
    whole = header = container.read_header(path)
    _check_format(header, path)
    with guarded(path):
        known = [_entry_name(row["name"]) for row in items(header["menu"])]
    asked = [only] if isinstance(only, str) else list(only)
    for each in asked:
        if each not in known:
            near = did_you_mean(str(each), known)
            raise SpecError(f"{path} has no entry {each!r:.80}{near}; it has {', '.join(known)}")
    if not asked:
        raise SpecError(f"only= names at least one entry of {path}; it has {', '.join(known)}")
    with guarded(path):
        header = _narrowed(header, set(asked))
        kept = _tensors(header)
        digests = None
        if "digests" in header:
            told = mapping(header["digests"])
            digests = {part: text(told[part]) for part in map(_part_of, kept)}
        again, tensors = container.read(path, _part_of, digests)
        if again != whole:
            raise ValueError("another file took its place while it was read")
        return header, {key: tensors[key] for key in kept}


def _narrowed(header: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return a header with some entries alone, and with the bit planes that these have."""
    space = space_from_json(header["space"])
    rows = [row for row in items(header["menu"]) if row["name"] in names]
    specs = [Spec(space, mapping(row["spec"])) for row in rows]
    planes = {}
    for key, (coding, stored) in _planes(header, space).items():
        wanted = [coding.weight_bits(s) for s in specs if not space.absent(s)(coding.module)]
        planes[key] = min(stored, max(wanted, default=1))
    return {**header, "menu": rows, "planes": planes}


def _part_of(tensor: str) -> str:
    """Return the part of a file that is read or passed over as a whole, by a tensor's name.

    Bit planes one by one, the shared weights together, and all that an entry has of its own.
    """
    kind, _, rest = tensor.partition("/")
    if kind == "planes":
        return tensor
    return f"{kind}/{rest.partition('/')[0]}" if kind == "entries" else kind


def _tensors(header: Mapping[str, Any]) -> list[str]:
    """Return the names of the tensors that a header tells of."""
    stored = {key: number(bits) for key, bits in mapping(header["planes"]).items()}
    shared = space_from_json(header["space"]).layouts
    found = [f"weights/{key}" for key in shared if key not in stored]
    found += [f"planes/{n}/{key}" for key, bits in stored.items() for n in range(1, bits + 1)]
    return found + [
        f"entries/{row['name']}/{name(key)}"
        for row in items(header["menu"])
        for key in items(row["private"])
    ]


def _check_header(
    header: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Space, list[dict[str, Any]], Signature]:
    """Return the space, the menu's rows and the inputs, which fit one another and the tensors.

    Raises:
        ValueError: they do not.
    """
    space = space_from_json(header["space"])
    wanted = {f"weights/{key}": layout.shape({}) for key, layout in space.layouts.items()}
    rows = [_row(space, row) for row in items(header["menu"])]
    if not 1 <= len(rows) <= MOST_ENTRIES or len({row["name"] for row in rows}) < len(rows):
        raise ValueError(f"a menu lists 1 to {MOST_ENTRIES} subnets, each under its own name")
    private = {name(key) for key in items(header["private"])}
    for key in private:
        if key not in space.layouts or space.layouts[key].parameter:
            raise ValueError(f"there is no buffer {key!r}")
    for row in rows:
        shared = row["spec"] == dict(space.full) or not private
        present = set(space.present(row["spec"]))
        parameters = {key for key in present if space.layouts[key].parameter}
        own = set(row["private"])  # its norm statistics and maybe norm weights, or all there is
        statistics = [private & present] + ([set()] if shared else [])
        if not own <= present or (own != present and own - parameters not in statistics):
            raise ValueError(f"{row['name']!r} has tensors of its own that are no norm statistics")
        for key in row["private"]:
            wanted[f"entries/{row['name']}/{key}"] = space.layouts[key].shape(row["spec"])
    for key, (coding, bits) in _planes(header, space).items():
        size = math.prod(wanted.pop(f"weights/{key}"))
        wanted |= {f"planes/{place}/{key}": (bytes_of(size),) for place in range(1, bits + 1)}
        for row in rows:
            if bits < coding.weight_bits(row["spec"]) and not space.absent(row["spec"])(key):
                raise ValueError(f"{row['name']!r} has more bits than are stored of {key!r}")
    for key in [*wanted, *shapes]:
        if wanted.get(key) != shapes.get(key):
            raise ValueError(
                f"the tensor {key[:200]!r} has the shape {shapes.get(key, 'missing')}, but the "
                f"header says {wanted.get(key, 'nothing')}"
            )
    return space, rows, Signature.from_json(mapping(header["inputs"]))


def _planes(header: Mapping[str, Any], space: Space) -> dict[str, tuple[Coding, int]]:
    """Return the weights that the file holds as bit planes: their coding, how many planes."""
    codings = {coding.parameter("weight"): coding for coding in space.codings}
    found = {}
    for key, bits in mapping(header.get("planes", {})).items():
        if key not in codings or not 1 <= number(bits) <= MOST:
            raise ValueError(f"{key[:200]!r} is no weight that {bits!r:.40} bits can hold")
        found[key] = codings[key], bits
    return found


def _from_planes(
    header: Mapping[str, Any], space: Space, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the weights that are stored as bit planes: the numbers that their integers are."""
    found = {}
    for key, (coding, bits) in _planes(header, space).items():
        planes = [tensors[f"planes/{place}/{key}"] for place in range(1, bits + 1)]
        scale = quantize.positive(tensors[f"weights/{coding.parameter(SCALE)}"])
        codes = codes_of(planes, space.layouts[key].shape({}))
        found[key] = quantize.numbers(codes, scale, bits)
    return found


def _module(
    header: Mapping[str, Any],
    path: Path,
    model: nn.Module | None,
    space: Space,
    weights: Mapping[str, Tensor],
) -> nn.Module:
    """Return the module that the weights go into: a copy of the user's, or what the builder makes.

    It is copied so that two files can be loaded with one instance.
    """
    maker = header["builder"]
    if model is not None and not isinstance(model, nn.Module):
        raise FileError(
            f"model= takes an instance of your class, not {model!r:.80}; write model=MyNet()"
        )
    if model is None and maker is None:
        kind = text(header["class"])
        raise FileError(
            f"{path} holds a model of the class {kind}, whose source a file does not carry; give "
            f"an instance of it: nestling.load({str(path)!r}, model={kind.rpartition('.')[2]}())"
        )
    module = _skeleton(mapping(maker)) if model is None else model
    fresh = not is_attached(module, space.codings)
    problem = misfit(module, _own(weights, space) if fresh else weights)
    if problem:
        raise FileError(
            f"{path} does not fit the model: {problem}; make the model with the class and the "
            "arguments that it was trained with"
        )
    try:
        _check_space(module, space)
    except (ValueError, AttributeError) as error:
        if model is None or isinstance(error, FileError):
            raise
        raise FileError(
            f"{path} does not fit the model that model= gives, which is built with other sizes or "
            f"of another class: {error}; make it with the arguments that it was trained with"
        ) from error
    if model is None:
        with torch.random.fork_rng(devices=[]):
            return attach(build(maker["name"], maker["arguments"]), space.codings)
    try:
        return attach(copied(model), space.codings)
    except NestlingError as error:
        raise FileError(f"model= is copied, so that it stays as it is, but {error}") from error


def _materialized(model: nn.Module, signature: Signature) -> nn.Module:
    """Return the model, or a copy that has run once where layers of it are lazy.

    Raises:
        FileError: such a copy does not run on made-up inputs.
    """
    if not isinstance(model, nn.Module) or not any(map(is_lazy, model.parameters())):
        return model
    try:
        with undisturbed(model), torch.no_grad():
            copy = duplicate(model)
            args, kwargs = signature.example(2, torch.device("cpu"))
            copy.eval()(*args, **kwargs)
    except Exception as error:
        raise FileError(
            f"model= has lazy layers, whose sizes the first run makes, but it fails on made-up "
            f"inputs: {error!s:.300}; run it once yourself before it is given"
        ) from error
    for module, given in zip(copy.modules(), model.modules(), strict=True):
        module.training = given.training
    return copy


def _check_space(module: nn.Module, space: Space) -> None:
    """Check what the space says of the module's parameters and of its size attributes."""
    parameters = dict(module.named_parameters()).keys()
    extras = {key for coding in space.codings for key in coding.extras}
    for key, layout in space.layouts.items():
        if key not in extras and layout.parameter != (key in parameters):
            raise ValueError(f"{key!r} is {'no ' if layout.parameter else ''}a parameter")
    for attribute in space.attributes:
        value = _attribute_value(module.get_submodule(attribute.module), attribute)
        if type(value) is not int or value != attribute.extent.size:
            where = f"{attribute.module}.{attribute.name}".lstrip(".")
            size = attribute.extent.size
            raise ValueError(f"{where} is {value!r:.80}, where the file has {size}")
    for block in space.blocks:
        module.get_submodule(block.module)  # an error if there is none
    for coding in space.codings if not is_attached(module, space.codings) else ():
        why = unfit(module.get_submodule(coding.module))
        if why:
            raise ValueError(f"the layer {coding.module!r} cannot be quantised: {why}")
    for given in space.rewrites:
        try:
            rewrite.check(module.get_submodule(given.module), given)
        except ModelError as error:
            raise ValueError(str(error)) from error
    _check_settings(module, space)


def _check_settings(module: nn.Module, space: Space) -> None:
    """Check that settings stand for numbers that the module's configs hold, and are as large.

    What a class defines (methods, properties) is no number of a config, and writing it would run or
    hide the class's code. A config may leave it to the class what a size is (None): then it is one
    that tensors have, or a number of layers.
    """
    dims = [extent.size for layout in space.layouts.values() for extent in layout.extents]
    largest = max(*dims, sum(1 for _ in module.modules()), 0)
    for setting in space.settings:
        owner = module.get_submodule(setting.module)
        holder, key = holder_of(owner, setting.name)
        size, where = setting.extent.size, f"{setting.module}.{setting.name}".lstrip(".")
        default = inspect.getattr_static(type(holder), key, None)
        if key not in vars(holder) or callable(default) or hasattr(type(default), "__get__"):
            raise ValueError(f"{where} is no number of a config")
        value = _attribute_value(owner, setting)
        if setting.length:
            value = len(value) if isinstance(value, (tuple, list)) else None
        derived = vars(holder)[key] is None and setting.index is None and not setting.length
        fits = size <= largest if derived else type(value) is int and value == size
        if not fits:
            raise ValueError(f"{where} is {value!r:.40}, not {size}")


def _attribute_value(owner: nn.Module, attribute: Attribute | Setting) -> object:
    holder, key = holder_of(owner, attribute.name)
    value = vars(holder).get(key)
    if attribute.index is None:
        return value
    at = number(attribute.index)
    return value[at] if isinstance(value, (tuple, list)) and at < len(value) else None


def _entry_name(value: Any) -> str:
    try:
        return checked_name(value)
    except SpecError as error:
        raise ValueError(str(error)) from error


def _row(space: Space, row: Any) -> dict[str, Any]:
    if not isinstance(row["offered"], bool):
        raise ValueError("offered is neither true nor false")
    return {
        "name": _entry_name(row["name"]),
        "spec": dict(Spec(space, mapping(row["spec"]))),
        "macs": number(row["macs"]),
        "params": number(row["params"]),
        "bytes": number(row["bytes"]),
        "accuracy": score(row["accuracy"]),
        "offered": row["offered"],
        "reason": prose(row.get("reason", "")),
        "scored": None if row.get("scored") is None else number(row["scored"]),
        "private": [name(key) for key in items(row["private"])],
    }


def _entry(row: Mapping[str, Any], space: Space, tensors: Mapping[str, Tensor]) -> Entry:
    own = {key: tensors[f"entries/{row['name']}/{key}"] for key in row["private"]}
    return Entry(**{**row, "spec": Spec(space, row["spec"]), "private": own})


def _profile(path: Path, identity: str) -> Profile:
    place = beside(path)
    if place.exists():
        try:
            return Profile.load(place, identity)
        except ForeignProfile as error:
            warnings.warn(f"latencies are unknown: {error}", stacklevel=2)
    return Profile(identity, {})


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
