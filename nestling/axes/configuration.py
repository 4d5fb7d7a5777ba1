"""Configuration: which numbers of a model's config tell the sizes that axes cut.

Nothing is matched by name or by value alone. The model's class is built again from a config with
one number changed, on the meta device, where it costs milliseconds: the dimensions that change are
what the number means. What was found is then proven: a smaller net is built from its own config,
given the weights of the subnet, and must compute the same. Numbers for which it does not (a head
size from which the class also derives the scale of the scores) are left as they are.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from nestling import extent as extents
from nestling.axes.blueprint import (
    Blueprint,
    Number,
    changes,
    configured_modules,
    numbers_in,
    other_configs,
    pieces_of,
    rebuilt,
    shapes_of,
)
from nestling.axes.comparison import compare
from nestling.axes.tracer import run
from nestling.axes.trials import Trials
from nestling.extent import Along, Concat, Counts, Extent, Fixed, Product
from nestling.packing import pack
from nestling.setting import Pair, Setting, agreeing, groups_of, holder_of
from nestling.spec import Space

MOST_WAYS = 10_000  # of cutting the axes of one group that are looked at


def configured(space: Space, trials: Trials) -> Space:
    """Return the space with the numbers of the model's configs that follow its axes, proven.

    Args:
        space: proven.
        trials: of the same model.
    """
    settings: list[Setting] = []
    guessed: set[str] = set()
    for path in configured_modules(trials.model):
        blueprint = Blueprint.of(trials.model, path, space)
        if blueprint is not None:
            found = _settings(blueprint)
            # First what the config said nothing of: what the class derives it from may then change.
            settings += sorted(found, key=lambda setting: setting.name not in blueprint.written)
            guessed |= blueprint.guessed
    settings = [s for s in settings if not _taken(s, space, trials.model)]
    return _proven(space, trials, settings, guessed) if settings else space


# -- what a number means --------------------------------------------------------------------------


@dataclass
class Meaning:
    """What the dimensions that a number changes say about it.

    Attributes:
        choices: for each of them, the extents that can be what it counts: one, or several of a
            size.
        pairs: extents that are a multiple of it, or a part, with the factor.
        whole: extents that it changes in no such way, so that they cannot be cut.
    """

    choices: list[list[Extent]] = field(default_factory=list)
    multiples: list[tuple[Extent, int]] = field(default_factory=list)
    parts: list[tuple[Extent, int]] = field(default_factory=list)
    whole: list[Extent] = field(default_factory=list)

    @property
    def noted(self) -> bool:
        """Whether anything is known."""
        return bool(self.choices or self.multiples or self.parts or self.whole)

    def note(self, extent: Extent, value: int, other: int, new: int) -> bool:
        """Note a size that changes to `new` when the number changes; return whether it is clear."""
        fitting = list(_fitting(extent, value, other, new))
        if not any(extents.axes_of(extent)):
            fitting = [Fixed(value)]
        if fitting:
            self.choices.append(fitting)
        elif extent.size * other == new * value and extent.size % value == 0:
            self.multiples.append((extent, extent.size // value))
        elif extent.size * other == new * value and value % extent.size == 0:
            self.parts.append((extent, value // extent.size))
        else:
            return False
        return True

    def setting(self, name: str, index: int | None, path: str) -> Setting | None:
        """Return the setting; None if no axis stands behind the number."""
        sure = [choice[0] for choice in self.choices if len(choice) == 1]
        chosen = [
            next((each for each in choice if each in sure), choice[0]) for choice in self.choices
        ]
        elastic = [each for each in dict.fromkeys(chosen) if any(extents.axes_of(each))]
        if not elastic:
            return None
        first = min(elastic, key=lambda each: not isinstance(each, Along))
        pairs: list[Pair] = [(first, each) for each in dict.fromkeys(chosen) if each != first]
        pairs += [(_product(factor, first), each) for each, factor in self.multiples]
        pairs += [(first, _product(factor, each)) for each, factor in self.parts]
        pairs += [(each, Fixed(each.size)) for each in self.whole]
        agree = tuple(pair for pair in dict.fromkeys(pairs) if pair[0] != pair[1])
        return Setting(path, name, index, first, agree)


def _settings(blueprint: Blueprint) -> list[Setting]:
    """Return the settings of all numbers that mean axes, in the config and in copies of it."""
    sizes = _sizes(blueprint.space)
    numbers = [number for number in numbers_in(blueprint.config) if number.value in sizes]
    probes = [found for number in numbers for found in _probes(blueprint, [number])]
    known = {number for probe in probes for number in probe.numbers}
    # What is added to what it equals, such as a stem and a first stage, changes with it or not
    # at all: alone, either number would make another net.
    for one, other in itertools.combinations([n for n in numbers if n not in known], 2):
        if one.value == other.value:
            probes += _probes(blueprint, [one, other])
    found = {(s.module, s.name, s.index): s for probe in probes for s in probe.settings()}
    for probe in probes:
        for further in (*_copies(blueprint, probe), *_derived(blueprint, probe)):
            found.setdefault((further.module, further.name, further.index), further)
    return list(found.values())


@dataclass(frozen=True)
class Probe:
    """What came of changing numbers of the config, all of one value, to another value.

    Attributes:
        numbers: that were changed.
        other: the other value.
        module: what was built from it.
        setting: what they mean, under the name of the first.
    """

    numbers: tuple[Number, ...]
    other: int
    module: nn.Module
    setting: Setting

    def settings(self) -> list[Setting]:
        """Return the setting of every number."""
        return [replace(self.setting, name=n.name, index=n.index) for n in self.numbers]


def _probes(blueprint: Blueprint, numbers: Sequence[Number]) -> list[Probe]:
    """Return the probe of some numbers of one value; none where they mean no axis."""
    value = numbers[0].value
    for other in dict.fromkeys((2 * value, 3 * value, value // 2, value - 1)):
        module = blueprint.changed([(number, other) for number in numbers]) if other else None
        if module is None:
            continue
        if module.state_dict().keys() == blueprint.shapes.keys():
            setting = _width(blueprint, numbers[0], other, module)
        else:
            setting = _depth(blueprint, numbers[0]) if len(numbers) == 1 else None
        return [Probe(tuple(numbers), other, module, setting)] if setting is not None else []
    return []


def _width(blueprint: Blueprint, number: Number, other: int, module: nn.Module) -> Setting | None:
    """Return what a number means that changes sizes, or the size attributes of modules."""
    meaning = Meaning()
    for name, dim, _, new in changes(blueprint.shapes, shapes_of(module)):
        dims = blueprint.extents(name)
        if dims is not None and not meaning.note(dims[dim], number.value, other, new):
            meaning.whole.append(dims[dim])
    if not meaning.noted:
        blueprint.guessed.add(number.name)
        for path, part in blueprint.plain.named_modules():
            after = vars(module.get_submodule(path))
            for key, old in vars(part).items():
                if type(old) is int and (old, after.get(key)) == (number.value, other):
                    choice = blueprint.inside(path, number.value)
                    meaning.choices += [choice] if choice else []
    return meaning.setting(number.name, number.index, blueprint.path)


def _depth(blueprint: Blueprint, number: Number) -> Setting | None:
    """Return what a number of layers means: one less leaves out the last blocks of some stages."""
    fewer = blueprint.changed([(number, number.value - 1)]) if number.value > 1 else None
    if fewer is None:
        return None
    left = shapes_of(fewer)
    if any(blueprint.shapes.get(name) != shape for name, shape in left.items()):
        return None
    space = blueprint.space
    prefix = f"{blueprint.path}." if blueprint.path else ""
    gone = [prefix + name for name in blueprint.shapes if name not in left]
    last = [block for block in space.blocks if block.place == space.axes[block.axis].size - 1]
    owners = {
        name: next((b for b in last if name.startswith(f"{b.module}.")), None) for name in gone
    }
    axes = dict.fromkeys(block.axis for block in owners.values() if block is not None)
    if None in owners.values() or not axes:
        return None
    counted = [_layers(axis, space.axes[axis].size, number.value) for axis in axes]
    pairs = tuple((counted[0], each) for each in counted[1:])
    return Setting(blueprint.path, number.name, number.index, counted[0], pairs)


def _layers(axis: str, size: int, value: int) -> Extent:
    """Return a number of layers of which an axis can leave out the last ones."""
    return Along(axis, size) if value == size else Concat((Fixed(value - size), Along(axis, size)))


def _fitting(extent: Extent, value: int, other: int, new: int) -> Iterator[Extent]:
    """Yield the parts of a size that can be what a number counts: they make the change right."""
    pieces = [piece for piece in dict.fromkeys(pieces_of(extent)) if piece.size == value]
    for piece in pieces:
        if any(extents.axes_of(piece)) and _replaced(extent, [piece], other) == new:
            yield piece


def _replaced(extent: Extent, pieces: Sequence[Extent], size: int) -> int:
    """Return the size of an extent of which some pieces have another size."""
    if extent in pieces:
        return size
    match extent:
        case Concat(parts):
            return sum(_replaced(part, pieces, size) for part in parts)
        case Product(factors):
            for piece in pieces:
                within = piece.factors if isinstance(piece, Product) else (piece,)
                for start in range(len(factors) - len(within) + 1):
                    if factors[start : start + len(within)] == within:
                        rest = (*factors[:start], *factors[start + len(within) :])
                        return size * _replaced(Product(rest), pieces, size)
            total = 1
            for factor in factors:
                total *= _replaced(factor, pieces, size)
            return total
    return extent.size


def _product(factor: int, extent: Extent) -> Extent:
    return extent if factor == 1 else Product((Fixed(factor), extent))


def _sizes(space: Space) -> set[int]:
    """Return the sizes that something elastic has: a number that is none of them tells none."""
    whole = [e for layout in space.layouts.values() for e in layout.extents]
    whole += [attribute.extent for attribute in space.attributes]
    pieces = {p for e in dict.fromkeys(whole) if any(extents.axes_of(e)) for p in pieces_of(e)}
    sizes = {piece.size for piece in pieces if any(extents.axes_of(piece))}
    return sizes.union(*(_depths(space, axis.name) for axis in space.axes.values()))


def _depths(space: Space, name: str) -> set[int]:
    """Return the numbers of layers that a depth axis can be a part of."""
    axis = space.axes[name]
    return set(range(axis.size, axis.size + 3)) if axis.kind == "depth" else set()


# -- the other places where a number stands -------------------------------------------------------


def _copies(blueprint: Blueprint, probe: Probe) -> Iterator[Setting]:
    """Yield the setting for further configs, which the class has made from the first one."""
    before = dict(other_configs(blueprint.plain))
    for path, config in other_configs(probe.module):
        old = {(n.name, n.index): n.value for n in numbers_in(before.get(path))}
        for each in numbers_in(config):
            known = old.get((each.name, each.index))
            if known == probe.numbers[0].value and each.value == probe.other:
                place = ".".join(filter(None, (blueprint.path, path)))
                yield replace(probe.setting, module=place, name=each.name, index=each.index)


def _derived(blueprint: Blueprint, probe: Probe) -> Iterator[Setting]:
    """Yield settings for what the config works out from a number: products, and a list's length.

    It is worked out anew where the config is made without it; so is a list of one item a layer.
    """
    make = getattr(type(blueprint.config), "from_dict", None)
    tell = getattr(blueprint.config, "to_dict", None)
    number, found = probe.numbers[0], probe.setting
    way = number.name.split(".")
    if make is None or tell is None or len(way) != 2:
        return
    less = number.value - 1 if number.value % 2 else number.value // 2
    for key, value in vars(blueprint.config).items():
        whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
        listed = isinstance(value, list) and len(value) == number.value
        if key.startswith("_") or key == way[1] or not (whole or listed):
            continue
        facts = {name: fact for name, fact in tell().items() if name != key}
        same, fewer = _remade(make, facts), _remade(make, {**facts, **_fact(facts, number, less)})
        if same is None or fewer is None or getattr(same, key, None) != value:
            continue
        new = getattr(fewer, key, None)
        if listed and isinstance(new, list) and new == value[:less]:
            yield replace(found, name=f"{way[0]}.{key}", index=None, length=True)
        elif whole and value % number.value == 0 and new == value // number.value * less:
            extent = _product(value // number.value, found.extent)
            yield replace(found, name=f"{way[0]}.{key}", index=None, extent=extent)


def _fact(facts: Mapping[str, Any], number: Number, value: int) -> dict[str, Any]:
    key = number.name.rpartition(".")[2]
    if number.index is None:
        return {key: value}
    before = facts[key]
    return {key: [*before[: number.index], value, *before[number.index + 1 :]]}


def _remade(make: Any, facts: Mapping[str, Any]) -> Any:
    try:
        return make(copy.deepcopy(dict(facts)))
    except Exception:  # noqa: BLE001  (the library's checks run here)
        return None


# -- the proof ------------------------------------------------------------------------------------


def _proven(
    space: Space, trials: Trials, settings: Sequence[Setting], guessed: Collection[str]
) -> Space:
    """Return the space with the settings from which the class builds the very subnet."""
    together = replace(space, settings=_joined(settings))
    if _holds(together, trials):
        return together
    kept: tuple[Setting, ...] = ()
    notes: tuple[str, ...] = ()
    for group in _components(settings):
        names = ", ".join(dict.fromkeys(setting.name for setting in group))
        for trial, limit in _reduced(space, group, guessed):
            if _holds(replace(space, settings=(*kept, *trial)), trials):
                kept = (*kept, *trial)
                notes += (f"{names}: true {limit}",) if limit else ()
                break
        else:
            notes += (f"{names}: left as in the full net, for built from less it is another net",)
    return replace(space, settings=kept, notes=(*space.notes, *notes))


def _reduced(
    space: Space, group: Sequence[Setting], guessed: Collection[str]
) -> Iterator[tuple[tuple[Setting, ...], str]]:
    """Yield settings that share axes: as they are, without a guess, with a kind of axes whole."""
    for name in (None, *dict.fromkeys(s.name for s in group if s.name in guessed)):
        rest = _joined([setting for setting in group if setting.name != name])
        if rest:
            yield rest, ""
            yield from _restricted(space, rest)


def _restricted(
    space: Space, group: Sequence[Setting]
) -> Iterator[tuple[tuple[Setting, ...], str]]:
    names = sorted({axis for setting in group for axis in setting.axes()})
    kinds = dict.fromkeys(space.axes[name].kind for name in names)
    for kind in sorted(kinds, key=lambda kind: kind != "head_size") if len(kinds) > 1 else ():
        alike = [space.axes[name] for name in names if space.axes[name].kind == kind]
        more = tuple((Along(axis.name, axis.size), Fixed(axis.size)) for axis in alike)
        trial = tuple(replace(s, agree=(*s.agree, *more)) for s in group)
        if _cut(space, trial):
            yield trial, f"while the {kind} axes keep their size"


def _holds(space: Space, trials: Trials) -> bool:
    """Return whether nets of which a config tells the truth are built from it."""
    for counts in _cut(space, space.settings):
        try:
            if not trials.check(space, counts).holds:
                return False
            subnet = pack(trials.subnet(space, counts))
            expected = trials.tensors(run(subnet, trials.args, trials.kwargs, None))
            again = rebuilt(subnet, {setting.module for setting in space.settings})
            found = trials.tensors(run(again, trials.args, trials.kwargs, None))
        except Exception:  # noqa: BLE001  (the user's code runs here)
            return False
        if not compare(found, expected, trials.tolerance).holds:
            return False
    return True


def _cut(space: Space, settings: Sequence[Setting]) -> list[dict[str, int]]:
    """Return counts that cut what the settings can tell: the most axes at once, and the fewest.

    One count has as many axes cut as can be, to as little as can be (but not to single units, which
    prove little); the other cuts as few as can be. None are returned where nothing can be cut.
    """
    narrow: dict[str, int] = {}
    wide: dict[str, int] = {}
    for agree, group in groups_of(settings).items():
        names = set().union(*(setting.axes() for setting in group))
        ways = list(itertools.islice(agreeing(space.axes, agree, names), MOST_WAYS))
        ranked = [(*_rank(space, way), way) for way in ways]
        cutting = [row for row in ranked if row[0] < len(names)]
        if cutting:
            narrow |= min(cutting, key=lambda row: (row[0], row[1]))[2]
            wide |= min(cutting, key=lambda row: (-row[0], row[1]))[2]
    return [way for way in ([narrow] if narrow == wide else [narrow, wide]) if way]


def _rank(space: Space, way: Counts) -> tuple[int, tuple[int, int]]:
    """Return how many axes are whole, then how many have a single unit, and the units of all."""
    whole = sum(space.axes[name].size == count for name, count in way.items())
    return whole, (sum(count == 1 for count in way.values()), sum(way.values()))


def _taken(setting: Setting, space: Space, model: nn.Module) -> bool:
    """Return whether the model's own code reads this number, so that the proof has settled it."""
    holder, key = holder_of(model.get_submodule(setting.module), setting.name)
    for attribute in space.attributes:
        owner, name = holder_of(model.get_submodule(attribute.module), attribute.name)
        if owner is holder and (name, attribute.index) == (key, setting.index):
            return True
    return False


def _joined(settings: Iterable[Setting]) -> tuple[Setting, ...]:
    """Return the settings, those that share an axis with all that any of them has to agree on."""
    joined: list[Setting] = []
    for group in _components(settings):
        agree = tuple(dict.fromkeys(pair for setting in group for pair in setting.agree))
        joined += [replace(setting, agree=agree) for setting in group]
    return tuple(joined)


def _components(settings: Iterable[Setting]) -> list[list[Setting]]:
    """Return the settings in groups that share axes."""
    groups: list[list[Setting]] = []
    for setting in settings:
        mine = [setting]
        for group in [g for g in groups if any(s.axes() & setting.axes() for s in g)]:
            groups.remove(group)
            mine = [*group, *mine]
        groups.append(mine)
    return groups
