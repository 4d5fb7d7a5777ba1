"""Repair: find the size attribute that the model's own code reads.

When a cut subnet fails, its module calls are compared one by one with the reference. At the first
module that goes wrong, the integers that equal a size its code passed to an op are tried; one is
kept if the subnet then gets further. Values alone prove nothing: another integer may be equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nestling import extent as extents
from nestling.axes.comparison import Tolerance, compare
from nestling.axes.reference import returned
from nestling.axes.tracer import run
from nestling.axes.trials import Call, Trials
from nestling.extent import Concat, Counts, Extent, Product
from nestling.spec import Attribute, Space
from nestling.subnet import holder_of, is_config

TRIES = 40  # trials for one wrong module
MANY = 1_000_000  # ops of one module call, at most


def repaired(trials: Trials, space: Space, counts: Counts) -> Space | None:
    """Return the space with the size attributes that make a cut work; None if none do."""
    expected = trials.calls(space, counts)
    far, where = first_wrong(trials, space, counts, expected)
    while far != float("inf"):
        follows = trials.follows
        found = _further(trials, space, counts, expected, far, where)
        if found is None:
            return None
        space, far, where = found
        if trials.follows is not follows:
            expected = trials.calls(space, counts)
    return space if trials.check(space, counts).holds else None


def _further(
    trials: Trials, space: Space, counts: Counts, expected: Sequence[Call], far: float, where: str
) -> tuple[Space, float, str] | None:
    """Return the space with attributes of the wrong module that let the subnet get further.

    Best is another module call that agrees with the reference. Where a module needs several
    attributes at once, more ops of the right shapes are a step on the way.
    """
    tries = 0
    step: tuple[Space, float, str] | None = None
    for path in _upwards(where):
        candidates = list(_candidates(trials, space, path, counts))
        for added in _together(trials, space, candidates, counts):
            if tries == TRIES or (len(_roles(added)) > 1 and step is not None):
                return step
            tries += 1
            trial = replace(space, attributes=(*space.attributes, *added))
            reached, wrong = first_wrong(trials, trial, counts, expected)
            if reached < math.floor(far) + 1:
                found = _following(trials, trial, counts, math.floor(far) + 1)
                reached, wrong = found or (reached, wrong)
            if reached >= math.floor(far) + 1:
                return trial, reached, wrong
            if reached > (far if step is None else step[1]):
                step = trial, reached, wrong
        if step is not None:
            return step
    return step


def _roles(attributes: Sequence[Attribute]) -> set[tuple[str, int | None]]:
    return {(a.name, a.index) for a in attributes}


def _together(
    trials: Trials, space: Space, candidates: Sequence[Attribute], counts: Counts
) -> Iterator[list[Attribute]]:
    """Yield what is tried at once: an attribute of all modules of a class, then all of this one.

    Those whose like was found before, in another module of the class, come first.
    """
    modules = dict(trials.model.named_modules())
    known = {(type(modules[a.module]), a.name, a.index) for a in space.attributes}
    ordered = sorted(
        candidates, key=lambda a: (type(modules[a.module]), a.name, a.index) not in known
    )
    for attribute in ordered:
        alike = [attribute]
        for path, module in modules.items():
            if type(module) is type(modules[attribute.module]) and path != attribute.module:
                own = _candidates(trials, space, path, counts)
                alike += [a for a in own if _same_role(a, attribute)][:1]
        yield alike
    whole = {(a.name, a.index): a for a in reversed(ordered)}
    if len(whole) > 1:
        yield list(whole.values())


def _same_role(one: Attribute, other: Attribute) -> bool:
    same = (one.name, one.index) == (other.name, other.index)
    return same and _shape(one.extent) == _shape(other.extent)


def _shape(extent: Extent) -> object:
    """Return how an extent is built, whatever its axes are called and however long they are."""
    match extent:
        case Product(inner) | Concat(inner):
            return type(extent), *map(_shape, inner)
    return type(extent)


def first_wrong(
    trials: Trials, space: Space, counts: Counts, expected: Sequence[Call]
) -> tuple[float, str]:
    """Return how many module calls agree with the reference, and the first that does not.

    The fraction tells how many ops of that one had the right shapes.
    """
    try:
        subnet = trials.subnet(space, counts)
    except Exception:  # noqa: BLE001  (an attribute that does not fit)
        return -1, ""
    progress = Progress(trials, expected, counts)
    with progress.watch(subnet):
        try:
            run(subnet, trials.args, trials.kwargs, progress)
        except Exception:  # noqa: BLE001  (the user's code runs here)
            progress.stop()
    if progress.wrong is None:
        return float("inf"), ""
    return progress.agreed + min(progress.ops, MANY - 1) / MANY, progress.wrong


def _following(
    trials: Trials, space: Space, counts: Counts, far: float
) -> tuple[float, str] | None:
    """Compare again with numbers that the code computes from the attribute (`axes.scales`)."""
    before = trials.follows
    if trials.follow(space, counts):
        reached = first_wrong(trials, space, counts, trials.calls(space, counts))
        if reached[0] >= far:
            return reached
        trials.follows = before
    return None


class Progress(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches a subnet's module calls and ops, and stops counting at the first that goes wrong.

    Attributes:
        agreed: module calls whose results agree with the reference.
        ops: ops since then that gave the traced shapes.
        wrong: path of the first module that does not agree.
    """

    def __init__(self, trials: Trials, expected: Sequence[Call], counts: Counts) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trials = trials
        self.counts = counts
        self.expected = expected
        self.tolerance: Tolerance = trials.tolerance
        self.agreed = self.ops = 0
        self.wrong: str | None = None
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
            return
        call = self.expected[self.agreed] if self.agreed < len(self.expected) else None
        if (
            call is not None
            and call.path == path
            and compare(tensors, call.tensors, self.tolerance).holds
        ):
            self.agreed += 1
            self.ops, self.astray = 0, False
            self.shapes = self.trials.shapes_after(call.ops, self.counts)
        else:
            self.wrong = path


def _candidates(trials: Trials, space: Space, path: str, counts: Counts) -> Iterator[Attribute]:
    """Yield the integers of a module that equal a size of its own that is cut."""
    sizes: dict[int, list[Extent]] = {}
    for extent in _own_sizes(trials, space, path):
        for part in extents.pieces_of(extent):  # code computes sizes from smaller ones
            same = sizes.setdefault(part.size, [])
            if part not in same and extents.count(part, counts) != part.size:
                same.append(part)
    taken = {
        (id(holder), name, a.index)
        for a in space.attributes
        for holder, name in [holder_of(trials.model.get_submodule(a.module), a.name)]
    }
    module = trials.model.get_submodule(path)
    for key, index, value in _integers(module):
        found = sizes.get(value, [])
        if found:
            holder, name = holder_of(module, key)
            if (id(holder), name, index) not in taken:
                yield from (Attribute(path, key, index, extent) for extent in found)


def _own_sizes(trials: Trials, space: Space, path: str) -> Iterator[Extent]:
    """Yield the sizes that a module's code passed to ops, then those of its parameters."""
    inside = f"{path}." if path else ""
    for argument, extent in trials.discovery.sizes:
        if argument.module == path or argument.module.startswith(inside):
            yield trials.current(extent)
    for name, layout in space.layouts.items():
        if name.startswith(inside):
            yield from layout.extents


def _upwards(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


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
