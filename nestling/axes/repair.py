"""Repair: find the size attribute that the model's own code reads.

When a cut subnet fails, its module calls are compared one by one with the reference. At the first
module that goes wrong, the integers that equal a size its code passed to an op are tried; one is
kept if the subnet then gets further. Values alone prove nothing: another integer may be equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor, nn

from nestling import extent as extents
from nestling.axes.comparison import Tolerance, compare
from nestling.axes.reference import returned
from nestling.axes.tracer import run
from nestling.axes.trials import Call, Trials
from nestling.extent import Counts, Extent
from nestling.spec import Attribute, Space

TRIES = 40  # attributes that are tried for one cut


def repaired(trials: Trials, space: Space, counts: Counts) -> Space | None:
    """Return the space with the size attributes that make a cut work; None if none do."""
    expected = trials.calls(space, counts)
    tries = TRIES
    far, where = first_wrong(trials, space, counts, expected)
    while far != float("inf"):
        better = None
        for path in _upwards(where):
            for attribute in _candidates(trials, space, path, counts):
                tries -= 1
                if tries < 0:
                    return None
                trial = replace(space, attributes=(*space.attributes, attribute))
                reached = first_wrong(trials, trial, counts, expected)
                if reached[0] > far:
                    better, (far, where) = trial, reached
                    break
            if better is not None:
                break
        if better is None:
            return None
        space = better
    return space if trials.check(space, counts).holds else None


def first_wrong(
    trials: Trials, space: Space, counts: Counts, expected: Sequence[Call]
) -> tuple[float, str]:
    """Return how many module calls agree with the reference, and the first that does not."""
    try:
        subnet = trials.subnet(space, counts)
    except Exception:  # noqa: BLE001  (an attribute that does not fit)
        return -1, ""
    progress = Progress(expected, trials.tolerance)
    with progress.watch(subnet):
        try:
            run(subnet, trials.args, trials.kwargs, None)
        except Exception:  # noqa: BLE001  (the user's code runs here)
            progress.stop()
    return (float("inf"), "") if progress.wrong is None else (progress.agreed, progress.wrong)


class Progress:
    """Watches a subnet's module calls and stops counting at the first that goes wrong."""

    def __init__(self, expected: Sequence[Call], tolerance: Tolerance) -> None:
        self.expected = expected
        self.tolerance = tolerance
        self.agreed = 0
        self.wrong: str | None = None
        self.running: list[str] = []

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
        else:
            self.wrong = path


def _candidates(trials: Trials, space: Space, path: str, counts: Counts) -> Iterator[Attribute]:
    """Yield the integers of a module that equal a size of its own that is cut."""
    taken = {(a.module, a.name, a.index) for a in space.attributes}
    sizes: dict[int, list[Extent]] = {}
    for extent in _own_sizes(trials, space, path):
        for part in extents.parts_of(extent):  # code computes sizes from smaller ones
            same = sizes.setdefault(part.size, [])
            if part not in same and extents.count(part, counts) != part.size:
                same.append(part)
    for key, index, value in _integers(trials.model.get_submodule(path)):
        for extent in sizes.get(value, []):
            if (path, key, index) not in taken:
                yield Attribute(path, key, index, extent)


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
    for key, value in vars(module).items():
        if key.startswith("_") or key == "training":
            continue
        if isinstance(value, int) and not isinstance(value, bool):
            yield key, None, value
        elif isinstance(value, (tuple, list)):
            for index, item in enumerate(value):
                if isinstance(item, int) and not isinstance(item, bool):
                    yield key, index, item
