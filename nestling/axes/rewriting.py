"""Rewriting: find the literal numbers in a module's own code that follow the axes.

When no attribute helps, the code itself holds a size. The model is run once more to see which call
of the module's own code every op comes from; each number inside such a call is matched with a size
that the ops were given there, and a number elsewhere in the method (`heads = 8`) with a size of its
value. The proof decides.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import CodeType, FunctionType
from typing import Any, TypeAlias

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from nestling.axes.repair import first_wrong, repaired
from nestling.axes.tracer import run
from nestling.axes.trials import Trials
from nestling.extent import Concat, Counts, Extent, axes_of
from nestling.rewrite import Edit, Literal, Rewrite, literals, method_of
from nestling.spec import Space

Span: TypeAlias = tuple[tuple[int, int], tuple[int, int]]
"""Where an expression begins and ends in the source: (line, column) both."""


@dataclass(frozen=True)
class Noted:
    """A size that an op was given."""

    value: int
    extent: Extent


def rewritten(trials: Trials, space: Space, counts: Counts) -> Space | None:
    """Return the space with the rewritten methods that make a cut work; None if none do."""
    expected = trials.calls(space, counts)
    while True:
        far, where = first_wrong(trials, space, counts, expected)
        better = None
        for path in dict.fromkeys((where, where.rpartition(".")[0])):
            for found in _rewrites(trials, space, path):
                trial = replace(space, rewrites=(*space.rewrites, found))
                if first_wrong(trials, trial, counts, expected)[0] > far:
                    better = _with_note(trial, trials.model, path)
                    break
            if better is not None:
                break
        if better is None:
            return None
        space = better
        done = repaired(trials, space, counts)
        if done is not None:
            return done


def _with_note(space: Space, model: nn.Module, path: str) -> Space:
    kind = type(model.get_submodule(path)).__name__
    note = (
        f"{path or 'the model'} ({kind}) holds sizes as numbers in its code: subnets run the same "
        "code with the numbers that their widths ask for"
    )
    return replace(space, notes=(*space.notes, note))


def _rewrites(trials: Trials, space: Space, path: str) -> Iterator[Rewrite]:
    """Yield what may follow axes in a module's code: what calls were given, then all that fits."""
    module = trials.model.get_submodule(path)
    if any(given.module == path for given in space.rewrites):
        return
    methods = {
        name: function
        for name in dir(type(module))
        if name not in vars(module) and (function := method_of(type(module), name)) is not None
    }
    callers = _Callers(module, methods)
    run(trials.model, trials.args, trials.kwargs, callers)
    sites: dict[tuple[str, int], list[Noted]] = {}
    for size, extent in trials.discovery.sizes:
        if size.module == path and size.op in callers.sites:
            noted = Noted(size.value, trials.current(extent))
            sites.setdefault(callers.sites[size.op], []).append(noted)
    exact = [
        edit for name, function in methods.items() for edit in _in_calls(name, function, sites)
    ]
    if exact:
        yield Rewrite(path, tuple(exact))
    sizes = [noted for each in sites.values() for noted in each]
    loose = [e for name, function in methods.items() for e in _anywhere(name, function, sizes)]
    taken = {(edit.method, edit.number) for edit in exact}
    more = [edit for edit in loose if (edit.method, edit.number) not in taken]
    if more:
        yield Rewrite(path, (*exact, *more))


class _Callers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes for every op of a run which call of a module's own methods it comes from.

    Attributes:
        sites: number of the op to method and instruction.
    """

    def __init__(self, module: nn.Module, methods: Mapping[str, FunctionType]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.module = module
        self.names = {function.__code__: name for name, function in methods.items()}
        self.ops = 0
        self.sites: dict[int, tuple[str, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the op, and note the innermost frame of the module's own code."""
        frame = sys._getframe(1)
        while frame is not None:
            name = self.names.get(frame.f_code)
            if name is not None and self._is_own(frame):
                self.sites[self.ops] = name, frame.f_lasti
                break
            frame = frame.f_back  # type: ignore[assignment]
        self.ops += 1
        return func(*args, **(kwargs or {}))

    def _is_own(self, frame: Any) -> bool:
        names = frame.f_code.co_varnames
        return bool(names) and frame.f_locals.get(names[0]) is self.module


def _in_calls(
    name: str, function: FunctionType, sites: Mapping[tuple[str, int], Sequence[Noted]]
) -> Iterator[Edit]:
    """Yield the numbers that stand inside calls and are sizes that the ops were given there."""
    code = function.__code__
    spans = {at: span for method, at in sites if method == name and (span := _span(code, at))}
    inside: dict[int, list[tuple[int, Literal]]] = {}
    for number, literal in enumerate(literals(function)):
        own = _span(code, literal.instruction.offset)
        around = [at for at, span in spans.items() if own is not None and _holds(span, own)]
        if around:
            nearest = min(around, key=lambda at: _length(spans[at]))
            inside.setdefault(nearest, []).append((number, literal))
    for at, numbers in inside.items():
        for number, extent in _matched(numbers, sites[name, at]):
            if any(axes_of(extent)):
                yield Edit(name, number, extent)


def _matched(
    numbers: Sequence[tuple[int, Literal]], noted: Sequence[Noted]
) -> Iterator[tuple[int, Extent]]:
    """Match numbers with sizes of their value, both from the last: shapes end in literals.

    The end of a slice is where it begins and how long it is together.
    """
    left = list(noted)
    for number, literal in reversed(numbers):
        at = next((i for i in reversed(range(len(left))) if left[i].value == literal.value), None)
        ends = _end_of_slice(literal.value, noted)
        if ends is not None and literal.value > 0:
            yield number, ends
        elif at is not None:
            yield number, left[at].extent
            del left[at:]


def _end_of_slice(value: int, noted: Sequence[Noted]) -> Extent | None:
    """Return what the end of a slice is; a slice notes how long it is and where it begins."""
    if len(noted) != 2 or noted[0].value + noted[1].value != value:
        return None
    length, low = noted
    return Concat((low.extent, length.extent)) if low.value else length.extent


def _anywhere(name: str, function: FunctionType, sizes: Sequence[Noted]) -> Iterator[Edit]:
    """Yield the numbers of a method that are the value of one elastic size and of no other."""
    meanings: dict[int, set[Extent]] = {}
    for noted in sizes:
        if any(axes_of(noted.extent)):
            meanings.setdefault(noted.value, set()).add(noted.extent)
    for number, literal in enumerate(literals(function)):
        found = meanings.get(literal.value, set())
        if len(found) == 1:
            yield Edit(name, number, *found)


def _span(code: CodeType, offset: int) -> Span | None:
    """Return where the expression of an instruction stands; None where Python does not know."""
    for index, (line, last, column, end) in enumerate(code.co_positions()):
        if index == offset // 2:
            if None in (line, last, column, end):
                return None
            return (line, column), (last, end)  # type: ignore[return-value]
    return None


def _holds(outer: Span, inner: Span) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def _length(span: Span) -> tuple[int, int]:
    """Return how long an expression is, in lines and columns."""
    return span[1][0] - span[0][0], span[1][1] - span[0][1]
