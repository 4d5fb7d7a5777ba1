"""Settings: the numbers of a model's config that tell its sizes.

Libraries that save a net as weights and a config build it again from that config, so a subnet's
config must tell the subnet's sizes. It can where one number stands for axes that are cut alike: for
`intermediate_size` the hidden neurons of all layers. Where they are not cut alike there is no true
number, and the config keeps that of the full net: a net built from it does not fit the subnet's
weights, and loading them fails at once instead of giving another net in silence.
"""

from __future__ import annotations

import copyreg
import itertools
import math
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from types import FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any, Protocol, TypeAlias

from torch import Tensor, nn

from nestling import extent as extents
from nestling.extent import Along, Concat, Counts, Extent, Fixed, Product

Pair: TypeAlias = tuple[Extent, Extent]

MOST_WAYS = 10_000  # of cutting the axes of one group that are looked at
MOST_STEPS = 200_000  # counts that are tried for them: about a second
_COPIED = ("__deepcopy__", "__reduce_ex__", "__reduce__")  # what says how an object is copied
_PLAIN = (object, SimpleNamespace, OrderedDict, defaultdict)  # whose copies are new objects
_PLAIN_WAYS = {name: [getattr(each, name, None) for each in _PLAIN] for name in _COPIED}


@dataclass(frozen=True, slots=True)
class Setting:
    """A number of a config that follows axes, wherever it can tell the truth.

    Settings that share an axis share their `agree` too: all of them tell the truth or none does.

    Attributes:
        module: path of the module that holds the config.
        name: the way to the number from there, such as `config.text_config.hidden_size`.
        index: its place, where it stands in a list.
        extent: what it counts.
        agree: extents that must leave the same number, pair by pair.
        length: whether it is the length of a list (one entry a layer), not a number itself.
    """

    module: str
    name: str
    index: int | None
    extent: Extent
    agree: tuple[Pair, ...] = ()
    length: bool = False

    def holds(self, counts: Counts) -> bool:
        """Return whether the number can tell the truth about a subnet."""
        return all(extents.count(a, counts) == extents.count(b, counts) for a, b in self.agree)

    def axes(self) -> set[str]:
        """Return the axes that it stands for."""
        named = set(extents.axes_of(self.extent))
        return named.union(*(extents.axes_of(each) for pair in self.agree for each in pair))

    def substituted(self, change: Callable[[Along], Extent]) -> Setting:
        """Return the setting with every axis replaced (to freeze, to rename or to tie axes)."""
        pairs = [tuple(extents.substitute(e, change) for e in pair) for pair in self.agree]
        agree = tuple((a, b) for a, b in dict.fromkeys(pairs) if a != b)
        return replace(self, extent=extents.substitute(self.extent, change), agree=agree)


class Axis(Protocol):
    """What is read of an axis; `nestling.spec.Axis` stands below this file."""

    @property
    def size(self) -> int:
        """Units of the full net."""

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers of units that a spec may keep."""


def is_config(value: object) -> bool:
    """Return whether a value is a plain object with sizes, which is copied with the module.

    Classes, functions and enumerations are not: there is one of each for the whole program. Nor is
    what says itself how it is copied, such as a logger: its copy may be the very same object.
    """
    if isinstance(value, (type, ModuleType, FunctionType, MethodType, Enum, Tensor, nn.Module)):
        return False
    kind: Any = type(value)
    ordinary = (
        all(getattr(kind, name, None) in _PLAIN_WAYS[name] for name in _COPIED)
        and kind not in copyreg.dispatch_table
        and not hasattr(kind, "__slots__")
    )
    return ordinary and hasattr(value, "__dict__") and vars(value).keys().isdisjoint(_COPIED)


def holder_of(module: nn.Module, name: str) -> tuple[Any, str]:
    """Return the object that holds an attribute, and its name there: `config.hidden_size`.

    Raises:
        AttributeError: a part of the way is no config.
    """
    *way, last = name.split(".")
    holder: Any = module
    for word in way:
        inner = vars(holder).get(word)
        if not is_config(inner):
            raise AttributeError(f"{type(holder).__name__} holds no config named {word!r}")
        holder = inner
    return holder, last


def own_holder_of(
    module: nn.Module, model: nn.Module, path: str, name: str
) -> tuple[Any, str] | None:
    """Return `holder_of` a subnet's attribute; None where it is the model's own object.

    A class can see to it that its copies are one object (in `__new__`, or by what it is given):
    then the subnet shares it with the model, and nothing may be written there.

    Args:
        module: the subnet.
        model: of which it is a copy.
        path: of the module inside.
        name: the way to the attribute from there.
    """
    holder, last = holder_of(module.get_submodule(path), name)
    shared, _ = holder_of(model.get_submodule(path), name)
    return None if holder is shared else (holder, last)


def apply(module: nn.Module, model: nn.Module, settings: Sequence[Setting], counts: Counts) -> None:
    """Let the configs of a subnet that are its own tell its sizes wherever they can.

    Args:
        module: the subnet.
        model: of which it is a copy.
        settings: of the space.
        counts: kept units by axis name.
    """
    for setting in settings:
        if setting.holds(counts):
            place = own_holder_of(module, model, setting.module, setting.name)
            if place is not None:
                value = extents.count(setting.extent, counts)
                write(*place, value, index=setting.index, length=setting.length)


def write(
    holder: Any, name: str, value: int, *, index: int | None = None, length: bool = False
) -> None:
    """Set a number of a config, or cut one of its lists to a length."""
    before = getattr(holder, name)
    after: Any = value
    if length:
        after = before[:value]
    elif index is not None:
        after = type(before)([*before[:index], value, *before[index + 1 :]])
    if type(after) is not type(before) or after != before:
        setattr(holder, name, after)


def unspoken(axes: Mapping[str, Axis], settings: Sequence[Setting]) -> list[str]:
    """Return the axes for which no number of a config stands."""
    spoken = {axis for setting in settings for axis in setting.axes()}
    return [name for name in axes if name not in spoken]


def conflicts(axes: Mapping[str, Axis], settings: Sequence[Setting], counts: Counts) -> list[str]:
    """Return what the config cannot say of a spec, a line each; nothing where it tells all.

    Example:
        >>> conflicts(net.space.axes, net.space.settings, {"layers.0.mlp": 64, "layers.1.mlp": 32})
        ["config.intermediate_size: 'layers.0.mlp' keeps 64, but 'layers.1.mlp' keeps 32"]
    """
    lines = [
        f"no number of a config stands for {name!r}, of which {counts[name]} are kept"
        for name in unspoken(axes, settings)
        if counts.get(name, axes[name].size) != axes[name].size
    ]
    for agree, group in groups_of(settings).items():
        names = ", ".join(dict.fromkeys(setting.name for setting in group))
        for one, other in agree:
            here, there = extents.count(one, counts), extents.count(other, counts)
            if here != there:
                what = "it must keep" if isinstance(other, Fixed) else f"{shown(other)} keeps"
                lines.append(f"{names}: {shown(one)} keeps {here}, but {what} {there}")
    return lines


def fitted(axes: Mapping[str, Axis], settings: Sequence[Setting], wanted: Counts) -> dict[str, int]:
    """Return the counts nearest to others of which a config can tell the truth.

    Those within the wanted ones are preferred; axes for which no number stands are kept whole.
    Where there are too many ways to look at, those near to the wanted counts are looked at first.

    Args:
        axes: all axes of the space.
        settings: of the space.
        wanted: by axis name; one that is missing keeps all.
    """
    found = {name: axes[name].size for name in unspoken(axes, settings)}
    for agree, group in groups_of(settings).items():
        names = set().union(*(setting.axes() for setting in group))
        most = {name: wanted.get(name, axes[name].size) for name in names}

        ways = list(itertools.islice(agreeing(axes, agree, names, near=most), MOST_WAYS))
        ways.append({name: axes[name].size for name in names})  # it always agrees
        distances = [_distance(way, most) for way in ways]
        found |= ways[distances.index(min(distances))]
    return {name: found[name] for name in axes}


def agreeing(
    axes: Mapping[str, Axis],
    agree: Sequence[Pair],
    names: Collection[str],
    near: Counts | None = None,
) -> Iterator[dict[str, int]]:
    """Yield the counts of some axes under which every pair agrees; the full ones always do.

    It ends after `MOST_STEPS` counts were tried, for sums of many axes agree in too many ways.

    Args:
        axes: all axes of the space.
        agree: the pairs.
        names: the axes that they are about.
        near: counts near to which the others are looked at first; the least ones without.
    """
    leader = _leaders(agree, names)
    options: dict[str, list[int]] = {}
    for name in sorted(names):
        known = options.setdefault(leader[name], list(axes[name].counts))
        options[leader[name]] = [count for count in known if count in axes[name].counts]
    if near is not None:
        for name, counts in options.items():
            counts.sort(key=_distance_to(near[name]))

    def led(at: Along) -> Extent:
        return Along(leader[at.axis], at.size)

    pairs = {(extents.substitute(a, led), extents.substitute(b, led)) for a, b in agree}
    for way in _ways(options, [(one, other) for one, other in pairs if one != other]):
        yield {name: way[leader[name]] for name in names}


def _ways(options: Mapping[str, Sequence[int]], agree: Sequence[Pair]) -> Iterator[dict[str, int]]:
    """Yield the choices of one count an axis under which every pair agrees, the first ones first.

    Counts are chosen axis by axis, and a pair is looked at as soon as the last of its axes has one.

    Args:
        options: counts of each axis; every axis of a pair is among them.
        agree: the pairs.
    """
    order = list(options)
    checks: list[list[Pair]] = [[] for _ in order]
    for one, other in agree:
        if among := {*extents.axes_of(one), *extents.axes_of(other)}:
            checks[max(map(order.index, among))].append((one, other))
    counts: dict[str, int] = {}
    tried = [iter(options[name]) for name in order[:1]]
    for _ in range(MOST_STEPS):
        if not tried:
            return
        place = len(tried) - 1
        count = next(tried[-1], None)
        if count is None:
            tried.pop()
            continue
        counts[order[place]] = count
        if any(extents.count(a, counts) != extents.count(b, counts) for a, b in checks[place]):
            continue
        if place + 1 == len(order):
            yield dict(counts)
        else:
            tried.append(iter(options[order[place + 1]]))


def shown(extent: Extent) -> str:
    """Return an extent as an error names it."""
    match extent:
        case Fixed(size):
            return str(size)
        case Along(axis):
            return repr(axis)
        case Product(factors):
            parts = [f"({shown(f)})" if isinstance(f, Concat) else shown(f) for f in factors]
            return " x ".join(parts)
    return " + ".join(map(shown, extent.parts))


def groups_of(settings: Sequence[Setting]) -> dict[tuple[Pair, ...], list[Setting]]:
    """Return the settings by what has to agree; those without such are told apart by extent."""
    groups: dict[tuple[Pair, ...], list[Setting]] = {}
    for setting in settings:
        key = setting.agree or ((setting.extent, setting.extent),)
        groups.setdefault(key, []).append(setting)
    return groups


def _leaders(agree: Sequence[Pair], names: Collection[str]) -> dict[str, str]:
    """Return for each axis the one that speaks for all that must keep the same count."""
    leader = {name: name for name in names}
    for one, other in agree:
        if isinstance(one, Along) and isinstance(other, Along):
            old, new = leader[other.axis], leader[one.axis]
            leader = {name: new if led == old else led for name, led in leader.items()}
    return leader


def _distance_to(wanted: int) -> Callable[[int], float]:
    return lambda count: abs(math.log(count / wanted))


def _distance(way: Counts, most: Counts) -> tuple[bool, float]:
    """Return whether counts are beyond others anywhere, and how far they are from them."""
    steps = [math.log(count / most[name]) for name, count in way.items()]
    return any(step > 0 for step in steps), sum(map(abs, steps))
