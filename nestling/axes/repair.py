"""Repair: find the size attribute that the model's own code reads.

When a cut subnet fails, its module calls are compared one by one with the reference. At the first
module that goes wrong, the integers that equal a size its code passed to an op are tried; one is
kept if the subnet then gets further. Values alone prove nothing: another integer may be equal, and
another size may be cut to the same count. So attributes are looked for at counts at which the sizes
differ first, and where the way that was taken ends, other ways that led as far are taken.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nestling import extent as extents
from nestling.axes.comparison import Tolerance, compare
from nestling.axes.reference import returned
from nestling.axes.scales import Follows
from nestling.axes.tracer import run
from nestling.axes.trials import Call, Trials
from nestling.extent import Along, Concat, Counts, Extent, Product
from nestling.setting import holder_of, is_config
from nestling.spec import Attribute, Axis, Space

TRIES = 40  # trials for one wrong module
AGAIN = 24  # trials for other ways, once the first one has ended
WHOLES = 8  # ways to read all numbers of a module at once
CUTS = 12  # counts among which those are chosen that tell sizes apart
MANY = 1_000_000  # ops of one module call, at most


@dataclass(frozen=True)
class Way:
    """Attributes that were added to a space, and how far the subnet gets with them.

    Attributes:
        space: with the attributes.
        follows: numbers of the masked model that follow kept sizes with them (`axes.scales`).
        far: how many module calls agree with the reference (see `first_wrong`).
        where: the first module that does not.
    """

    space: Space
    follows: Follows
    far: float
    where: str


def repaired(trials: Trials, space: Space, counts: Counts) -> Space | None:
    """Return the space with the size attributes that make a cut work; None if none do."""
    clear = _telling(trials, space, counts)
    if clear is None:
        return _searched(trials, space, counts)
    better = _searched(trials, _searched(trials, space, clear) or space, counts)
    return better if better is not None and trials.check(better, clear).holds else None


def _searched(trials: Trials, space: Space, counts: Counts) -> Space | None:
    """Follow the way that gets furthest; where it ends, go back to others that led as far."""
    before = given = trials.follows
    expected = trials.calls(space, counts)
    again: list[int] = []  # trials that are left, once the first way has ended
    ways = [iter([_way(trials, space, counts, expected)])]
    while ways:
        way = next(ways[-1], None)
        if way is None:
            ways.pop()
            again = again or [AGAIN]
            continue
        if way.follows is not given or again:
            trials.follows = given = way.follows
            expected = trials.calls(way.space, counts)
        if way.far < float("inf"):
            ways.append(_further(trials, way, counts, expected, again))
        elif trials.check(way.space, counts).holds:
            return way.space
    trials.follows = before
    return None


def _further(
    trials: Trials, way: Way, counts: Counts, expected: Sequence[Call], again: list[int]
) -> Iterator[Way]:
    """Yield the way with attributes of the wrong module that let the subnet get further.

    Best is another module call that agrees with the reference. Where a module needs several
    attributes at once, more ops of the right shapes are a step on the way. Those after the first
    lead just as far.

    Args:
        trials: of the model.
        way: so far.
        counts: the cut.
        expected: calls of the reference, for that way.
        again: holds how many trials are left, once the caller has come back.
    """
    goal = math.floor(way.far) + 1
    left = TRIES
    sizes: set[int] = set()  # of the attributes that led to the next call
    near = trials.sizes(way.space).get(way.where.rpartition(".")[0], {})
    for path in (way.where, *_silent(trials, way.where), *_above(way.where)):
        steps: list[Way] = []
        alone = False  # whether a step needs one attribute only
        for added in _together(trials, way.space, path, counts):
            if sizes and sizes.isdisjoint(a.extent.size for a in added):
                continue  # no number that was mistaken for one of them
            if not any(a.extent in near.get(a.extent.size, ()) for a in added):
                continue  # the size of a module far away
            if not left or (alone and len(_roles(added)) > 1) or not _may_try(again):
                break
            left -= 1
            trials.follows = way.follows
            trial = replace(way.space, attributes=(*way.space.attributes, *added))
            next_way = _way(trials, trial, counts, expected)
            if next_way.far >= goal:
                sizes.update(a.extent.size for a in added)
                yield next_way
            elif next_way.far > way.far:
                steps.append(next_way)
                alone = alone or len(_roles(added)) == 1
        if sizes:
            return
        if steps:
            furthest = max(step.far for step in steps)
            yield from (step for step in steps if step.far == furthest)
            return


def _may_try(again: list[int]) -> bool:
    """Count a trial, once the first way has ended; return whether there was one left."""
    if again:
        again[0] -= 1
    return not again or again[0] >= 0


def _roles(attributes: Sequence[Attribute]) -> set[tuple[str, int | None]]:
    return {(a.name, a.index) for a in attributes}


def _together(trials: Trials, space: Space, path: str, counts: Counts) -> Iterator[list[Attribute]]:
    """Yield what is tried at once: an attribute of all modules of a class, then all of this one,
    in each way to read them.

    Those whose like was found before, in another module of the class, come first.
    """
    modules = dict(trials.model.named_modules())
    kind = type(modules[path])
    taken = _taken(trials, space)
    known = {_role(a, space) for a in space.attributes if type(modules[a.module]) is kind}
    own = list(_candidates(trials, space, path, counts, taken))
    ordered = sorted(own, key=lambda a: _role(a, space) not in known)
    alike: list[dict[object, Attribute]] = []  # of the other modules of the class
    if ordered:
        others = [p for p, module in modules.items() if type(module) is kind and p != path]
        for other in others:
            found = list(_candidates(trials, space, other, counts, taken))
            alike.append({_role(a, space): a for a in reversed(found)})
    for attribute in ordered:
        role = _role(attribute, space)
        yield [attribute, *(theirs[role] for theirs in alike if role in theirs)]
    whole: dict[object, list[Attribute]] = {}
    for attribute in ordered:
        whole.setdefault((attribute.name, attribute.index), []).append(attribute)
    if len(whole) > 1:
        yield from map(list, itertools.islice(itertools.product(*whole.values()), WHOLES))


def _role(attribute: Attribute, space: Space) -> object:
    return attribute.name, attribute.index, _shape(attribute.extent, space)


def _shape(extent: Extent, space: Space) -> object:
    """Return how an extent is built of axes of which kinds, whatever their names and sizes."""
    match extent:
        case Product(inner) | Concat(inner):
            return type(extent), *(_shape(part, space) for part in inner)
        case Along(axis):
            return type(extent), space.axes[axis].kind
    return type(extent)


def first_wrong(
    trials: Trials, space: Space, counts: Counts, expected: Sequence[Call]
) -> tuple[float, str]:
    """Return how many module calls agree with the reference, and the first that does not.

    The fraction tells how many ops of that one had the right shapes.
    """
    far, where, _ = _compared(trials, space, counts, expected)
    return far, where


def _compared(
    trials: Trials, space: Space, counts: Counts, expected: Sequence[Call]
) -> tuple[float, str, bool]:
    """Return what `first_wrong` does, and whether only the values there are wrong."""
    try:
        subnet = trials.subnet(space, counts)
    except Exception:  # noqa: BLE001  (an attribute that does not fit)
        return -1, "", False
    progress = Progress(trials, expected, counts)
    with progress.watch(subnet):
        try:
            run(subnet, trials.args, trials.kwargs, progress)
        except Exception:  # noqa: BLE001  (the user's code runs here)
            progress.stop()
    if progress.wrong is None:
        return float("inf"), "", False
    far = progress.agreed + min(progress.ops, MANY - 1) / MANY
    return far, progress.wrong, progress.only_values


def _way(trials: Trials, space: Space, counts: Counts, expected: Sequence[Call]) -> Way:
    """Return how far a subnet gets.

    Where only values are wrong, it is compared again with the numbers that its code computes from
    kept sizes (`axes.scales`); these stay noted in `trials` if it gets to another call.
    """
    far, where, only_values = _compared(trials, space, counts, expected)
    before = trials.follows
    if only_values and trials.follow(space, counts):
        further, other = first_wrong(trials, space, counts, trials.calls(space, counts))
        if further >= math.floor(far) + 1:
            return Way(space, trials.follows, further, other)
        trials.follows = before
    return Way(space, before, far, where)


class _WrongError(Exception):
    """A module went wrong: there is no need to run the rest."""


class Progress(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches a subnet's module calls and ops, and ends the run at the first that goes wrong.

    Attributes:
        agreed: module calls whose results agree with the reference.
        ops: ops since then that gave the traced shapes.
        wrong: path of the first module that does not agree.
        only_values: whether what it returned has the right shapes.
    """

    def __init__(self, trials: Trials, expected: Sequence[Call], counts: Counts) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trials = trials
        self.counts = counts
        self.expected = expected
        self.tolerance: Tolerance = trials.tolerance
        self.agreed = self.ops = 0
        self.wrong: str | None = None
        self.only_values = False
        self.running: list[str] = []
        self.shapes = trials.shapes_after(0, counts)
        self.astray = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an op, and compare its name and shapes with the traced one."""
        out = func(*args, **(kwargs or {}))
        if self.wrong is None and not self.astray:
            shapes = [leaf.shape for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
            self.astray = next(self.shapes, None) != (func.overloadpacket.__name__, shapes)
            self.ops += not self.astray
        return out

    @contextmanager
    def watch(self, subnet: nn.Module) -> Iterator[None]:
        """Compare every call of the subnet while the block runs."""
        handles = [
            module.register_forward_pre_hook(
                lambda *_, path=path: self.running.append(path), prepend=True
            )
            for path, module in subnet.named_modules()
        ]
        with returned(subnet, self._look):
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()

    def stop(self) -> None:
        """Note that the running module raised an error."""
        if self.wrong is None:
            self.wrong = self.running[-1] if self.running else ""

    def _look(self, path: str, tensors: Sequence[Tensor]) -> None:
        self.running.pop()
        if self.wrong is not None:
            return  # the code has caught the error
        call = self.expected[self.agreed] if self.agreed < len(self.expected) else None
        same = call is not None and call.path == path
        if call is not None and same and compare(tensors, call.tensors, self.tolerance).holds:
            self.agreed += 1
            self.ops, self.astray = 0, False
            self.shapes = self.trials.shapes_after(call.ops, self.counts)
            return
        self.wrong = path
        if call is not None and same:
            self.only_values = [t.shape for t in tensors] == [t.shape for t in call.tensors]
        raise _WrongError(path)


def _candidates(
    trials: Trials,
    space: Space,
    path: str,
    counts: Counts,
    taken: Container[tuple[int, str, int | None]],
) -> Iterator[Attribute]:
    """Yield the integers of a module that equal a size of its own that is cut."""
    module = trials.model.get_submodule(path)
    integers = list(_integers(module))
    sizes = trials.sizes(space).get(path, {}) if integers else {}
    for key, index, value in integers:
        found = [part for part in sizes.get(value, ()) if extents.count(part, counts) != value]
        if found:
            holder, name = holder_of(module, key)
            if (id(holder), name, index) not in taken:
                yield from (Attribute(path, key, index, extent) for extent in found)


def _taken(trials: Trials, space: Space) -> set[tuple[int, str, int | None]]:
    """Return the numbers that follow axes already, by who holds them."""
    return {
        (id(holder), name, a.index)
        for a in space.attributes
        for holder, name in [holder_of(trials.model.get_submodule(a.module), a.name)]
    }


def _telling(trials: Trials, space: Space, counts: Counts) -> Counts | None:
    """Return counts of the same axes at which sizes differ that are cut alike; None if none do.

    Where one of eight heads of eight is left, an embedding of eight looks like all heads together.
    """
    rivals: set[tuple[Extent, Extent]] = set()
    for path, module in trials.model.named_modules():
        sizes = trials.sizes(space).get(path, {})
        for value in {value for _, _, value in _integers(module)}:
            rivals.update(itertools.combinations(sizes.get(value, ()), 2))

    def confused(some: Counts) -> int:
        pairs = ((extents.count(a, some), extents.count(b, some), a.size) for a, b in rivals)
        return sum(one == other < size for one, other, size in pairs)

    generator = random.Random(0)
    best, least = None, confused(counts)
    for _ in range(CUTS if least else 0):
        some = {name: _other(space.axes[name], counts[name], generator) for name in counts}
        if confused(some) < least:
            best, least = some, confused(some)
    return best


def _other(axis: Axis, given: int, generator: random.Random) -> int:
    """Return some count that cuts an axis: an allowed one where the given one is."""
    grid = axis.counts[:-1] if given in axis.counts[:-1] else range(1, axis.size)
    return generator.choice(grid) if axis.kind != "depth" and grid else given


def _silent(trials: Trials, path: str) -> Iterator[str]:
    """Yield the parts of a module that it never calls: their methods run in its name."""
    called = {called for called, _ in trials.discovery.trace.calls}
    for name, _ in trials.model.get_submodule(path).named_children():
        inner = f"{path}.{name}" if path else name
        if inner not in called:
            yield inner
            yield from _silent(trials, inner)


def _above(path: str) -> Iterator[str]:
    while path:
        path = path.rpartition(".")[0]
        yield path


def _integers(module: nn.Module) -> Iterator[tuple[str, int | None, int]]:
    """Yield the integers that a module holds, then those of a config that it holds."""
    yield from _numbers_in(vars(module), "")
    for key, value in vars(module).items():
        if not key.startswith("_") and is_config(value):
            yield from _numbers_in(vars(value), f"{key}.")


def _numbers_in(
    attributes: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, int | None, int]]:
    for key, value in attributes.items():
        if key.startswith("_") or key == "training":
            continue
        if isinstance(value, int) and not isinstance(value, bool):
            yield prefix + key, None, value
        elif isinstance(value, (tuple, list)):
            for index, item in enumerate(value):
                if isinstance(item, int) and not isinstance(item, bool):
                    yield prefix + key, index, item
