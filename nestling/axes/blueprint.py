"""Blueprints: modules that are built again from the config that they keep.

Building on the meta device costs milliseconds and no memory, so a module can be built from many
configs to see what each number of the config changes.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from nestling import extent as extents
from nestling.extent import Extent, Product
from nestling.setting import holder_of, is_config
from nestling.setting import write as set_number
from nestling.spec import Space

DEEPEST = 3  # levels of configs inside configs
CONFIG = "config"  # the attribute under which libraries keep what a model was built from


@dataclass(frozen=True)
class Number:
    """A number of a config, by the way to it.

    Attributes:
        name: from the module that holds the config, such as `config.hidden_size`.
        index: its place in a list; None for a number by itself.
        value: what it is in the full net.
    """

    name: str
    index: int | None
    value: int


@dataclass
class Blueprint:
    """A module's class and a copy of its config, from which the module can be built again.

    Attributes:
        path: of the module in the model.
        space: of the model.
        kind: the module's class.
        config: a copy; numbers that were None and stand for sizes are written out in it.
        plain: the module as built from the config.
        shapes: of the tensors that are saved, as built from the config.
        written: names of the numbers that were None.
        guessed: names of the numbers that change no shape, so that only parts which hold the same
            number tell what they may mean.
    """

    path: str
    space: Space
    kind: type[nn.Module]
    config: Any
    plain: nn.Module
    shapes: dict[str, tuple[int, ...]]
    written: set[str] = field(default_factory=set)
    guessed: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, model: nn.Module, path: str, space: Space) -> Blueprint | None:
        """Return the blueprint of a module; None if its class does not build it from its config."""
        module = model.get_submodule(path)
        given = vars(module)[CONFIG]
        config = copy.deepcopy(given)
        if not {id(each) for each in nested(given)}.isdisjoint(map(id, nested(config))):
            return None  # the copy is the user's own object, in which no number may be changed
        plain = built(type(module), config)
        if plain is None or shapes_of(plain) != shapes_of(module):
            return None
        found = cls(path, space, type(module), config, plain, shapes_of(plain))
        found._write_out()
        return found

    def changed(self, numbers: Iterable[tuple[Number, int]]) -> nn.Module | None:
        """Return the module built from the config with other numbers; None where that fails."""
        config = copy.deepcopy(self.config)
        try:
            for number, value in numbers:
                set_in(config, number, value)
        except Exception:  # noqa: BLE001  (a config may check what it is given)
            return None
        return built(self.kind, config)

    def extents(self, name: str) -> tuple[Extent, ...] | None:
        """Return what the dimensions of one of the module's tensors are made of."""
        layout = self.space.layouts.get(f"{self.path}.{name}" if self.path else name)
        return layout.extents if layout is not None else None

    def inside(self, path: str, size: int) -> list[Extent]:
        """Return the elastic extents of a size inside the tensors of one of the module's parts."""
        place = ".".join(filter(None, (self.path, path)))
        prefix = f"{place}." if place else ""
        dims = [e for n, x in self.space.layouts.items() if n.startswith(prefix) for e in x.extents]
        pieces = {piece: None for extent in dict.fromkeys(dims) for piece in pieces_of(extent)}
        return [p for p in pieces if p.size == size and any(extents.axes_of(p))]

    def _write_out(self) -> None:
        """Write down the sizes that the class derives where the config says None."""
        largest = max(axis.size for axis in self.space.axes.values())
        for name, value in list(entries(self.config, CONFIG)):
            if value is not None:
                continue
            trial = self.changed([(Number(name, None, 0), 2 * largest)])
            if trial is None or trial.state_dict().keys() != self.shapes.keys():
                continue
            moved = list(changes(self.shapes, shapes_of(trial)))
            sizes = {old for _, _, old, new in moved if new == 2 * largest}
            if not moved or len(sizes) != 1:
                continue
            number = Number(name, None, sizes.pop())
            again = self.changed([(number, number.value)])
            if again is not None and shapes_of(again) == self.shapes:
                set_in(self.config, number, number.value)
                self.written.add(name)


def built(kind: type[nn.Module], config: Any) -> nn.Module | None:
    """Return a class's module for a config, without memory; None where it cannot be built."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return kind(copy.deepcopy(config))
        except Exception:  # noqa: BLE001  (the user's code runs here)
            return None


def configured_modules(model: nn.Module) -> Iterator[str]:
    """Yield the outermost modules that hold a config."""
    found: list[str] = []
    for path, module in model.named_modules():
        if is_config(vars(module).get(CONFIG)) and not any(is_inside(path, one) for one in found):
            found.append(path)
            yield path


def other_configs(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the configs of a module's parts that are objects of their own, each once."""
    seen = {id(config) for config in nested(vars(module).get(CONFIG))}
    for path, part in module.named_modules():
        config = vars(part).get(CONFIG)
        if is_config(config) and id(config) not in seen:
            seen |= {id(each) for each in nested(config)}
            yield path, config


def nested(config: Any, levels: int = DEEPEST) -> Iterator[Any]:
    """Yield a config and the configs inside it."""
    yield config
    if levels:
        for value in vars(config).values():
            if is_config(value):
                yield from nested(value, levels - 1)


def entries(config: Any, way: str, levels: int = DEEPEST) -> Iterator[tuple[str, Any]]:
    """Yield all that a config and the configs inside it hold, by the way to it."""
    for key, value in vars(config).items():
        if key.startswith("_"):
            continue
        if is_config(value):
            if levels:
                yield from entries(value, f"{way}.{key}", levels - 1)
        else:
            yield f"{way}.{key}", value


def numbers_in(config: Any) -> Iterator[Number]:
    """Yield the whole numbers above one of a config, also those in lists."""
    for name, value in entries(config, CONFIG) if config is not None else ():
        for index, item in (
            enumerate(value) if isinstance(value, (list, tuple)) else [(None, value)]
        ):
            if isinstance(item, int) and not isinstance(item, bool) and item > 1:
                yield Number(name, index, item)


def set_in(config: Any, number: Number, value: int) -> None:
    """Set a number of a config."""
    holder = nn.Module()
    holder.__dict__[CONFIG] = config
    owner, key = holder_of(holder, number.name)
    set_number(owner, key, value, index=number.index)


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that are saved of a module."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def changes(
    before: Mapping[str, tuple[int, ...]], after: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, int, int, int]]:
    """Yield name, dimension, old and new size of every dimension that has changed."""
    for name, shape in before.items():
        for dim, (old, new) in enumerate(zip(shape, after[name], strict=True)):
            if old != new:
                yield name, dim, old, new


def is_inside(path: str, other: str) -> bool:
    """Return whether a module's path is another one's or below it."""
    return other == "" or path == other or path.startswith(f"{other}.")


def pieces_of(extent: Extent) -> Iterator[Extent]:
    """Yield all that an extent is made of, neighbouring factors of a product together too."""
    for part in extents.parts_of(extent):
        yield part
        if isinstance(part, Product):
            factors = part.factors
            for start, stop in itertools.combinations(range(len(factors) + 1), 2):
                if 1 < stop - start < len(factors):
                    yield Product(factors[start:stop])


def rebuilt(subnet: nn.Module, paths: Iterable[str]) -> nn.Module:
    """Return a subnet whose configured modules were built again from their configs."""
    outermost = [p for p in paths if not any(is_inside(p, q) for q in paths if q != p)]
    for path in outermost:
        module = subnet.get_submodule(path)
        with _no_initialisation(), torch.random.fork_rng(devices=[]):
            again = type(module)(copy.deepcopy(vars(module)[CONFIG]))
        like = next(p for p in module.parameters() if p.is_floating_point())
        again.to(like.device, like.dtype)
        again.load_state_dict(module.state_dict())
        if not path:
            return again.eval()
        subnet.set_submodule(path, again)
    return subnet.eval()


class _NoInitialisation(TorchFunctionMode):
    """Leaves out the random numbers that initialise weights: they are replaced anyway."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run a function, unless it only fills a parameter with random numbers."""
        random = getattr(func, "__name__", "") in ("normal_", "uniform_", "trunc_normal_")
        if random and args and isinstance(args[0], nn.Parameter):
            return args[0]
        return func(*args, **(kwargs or {}))


def _no_initialisation() -> TorchFunctionMode:
    return _NoInitialisation()
