"""Residual blocks: which modules add to what they are given, so that a subnet can pass them by.

A module is a *block* when exactly one way leads from what it returns to what it was given (see
`nestling.axes.lineage`), across at least one sum: without the other summands it returns its input.
Norms after a sum (post-norm blocks) are passed over with the block. A module is a *branch* when
what it returns is a summand, and the other summand comes from where the module's input comes from.
Blocks of one class that follow one another, from one parent, are a stage, and a stage is an axis of
kind depth. Nothing is believed: the proof runs the full model with the other summands set to zero,
and the subnet with the blocks passed by.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from nestling.axes.lineage import Call, Fields, Lineage, Number, Origin, Step
from nestling.extent import Counts
from nestling.passage import Given, Named, Passage, Several
from nestling.spec import Axis, Block, Space


@dataclass(frozen=True)
class Candidate:
    """A module that may be passed by, with the steps that take its contribution away."""

    path: str
    passage: Passage
    steps: tuple[Step, ...]
    shape: torch.Size
    order: int


@dataclass(frozen=True)
class Stage:
    """A depth axis with its blocks, and the steps that each block takes away."""

    axis: Axis
    blocks: tuple[Block, ...]
    steps: Mapping[str, tuple[Step, ...]]


def stages(model: nn.Module, lineage: Lineage) -> list[Stage]:
    """Return the stages of residual blocks that a run of the model shows.

    Args:
        model: that was run.
        lineage: of that run.
    """
    once = _called_once(model, lineage)
    found_blocks = (_block(lineage, call) for call in once)
    blocks = {block.path: block for block in found_blocks if block is not None}
    found = _runs(model, once, blocks)
    inside = [c.path for run in found for c in run.candidates]
    summands = _summands(lineage)
    branches = {
        call.path: candidate
        for call in once
        if call.path not in blocks
        and not any(_is_within(call.path, path) or _is_within(path, call.path) for path in inside)
        and (candidate := _branch(lineage, call, summands)) is not None
    }
    return _named([*_chosen(found), *_chosen(_runs(model, once, branches))])


def dropped(steps: Mapping[str, Sequence[Step]], space: Space, counts: Counts) -> dict[int, Step]:
    """Return the ops that a spec's passed blocks change, by their number in the trace.

    Args:
        steps: block path to the steps that take its contribution away.
        space: says which blocks a spec passes by.
        counts: kept units by axis name.
    """
    found = (step for block in space.passed(counts) for step in steps[block.module])
    return {step.op: step for step in found}


def noted(steps: Mapping[str, Sequence[Step]], space: Space) -> Space:
    """Return the space with a note on the depth axes whose blocks are passed with their norms."""
    axes = dict.fromkeys(
        block.axis for block in space.blocks if any(not step.zero for step in steps[block.module])
    )
    notes = (f"{axis}: the norms after the sums are passed by with the blocks" for axis in axes)
    return replace(space, notes=(*space.notes, *notes))


@dataclass(frozen=True)
class _Run:
    """Candidates that follow one another; `anchor` comes before them and always stays."""

    parent: str
    candidates: tuple[Candidate, ...]
    anchor: str

    @property
    def is_numbered(self) -> bool:
        """Whether the blocks stand in a list."""
        return all(c.path.rpartition(".")[2].isdigit() for c in self.candidates)


def _called_once(model: nn.Module, lineage: Lineage) -> list[Call]:
    """Return the calls of modules that ran once and whose tensors can go.

    A tensor that modules inside and outside of a block share belongs to the first of them; inside
    of a block it can go where the block holds all of them, or where the first is outside of it.
    """
    numbers: dict[str, int] = {}
    for call in lineage.calls:
        numbers[call.path] = numbers.get(call.path, 0) + 1
    homes: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                homes.setdefault(id(tensor), []).append(path)
    shared = [paths for paths in homes.values() if len(paths) > 1]

    def closed(path: str) -> bool:
        inside = [[_is_within(each, path) for each in paths] for paths in shared]
        return all(all(each) or not each[0] for each in inside)

    single = (call for call in lineage.calls if call.path and numbers[call.path] == 1)
    return [call for call in single if closed(call.path)]


class _NoBlockError(Exception):
    """A module returns something that does not come from what it was given."""


def _block(lineage: Lineage, call: Call) -> Candidate | None:
    """Return the module as a block, if what it returns is its input but for some summands."""
    given = {number: place for place, number, _ in reversed(call.given)}
    shapes = {number: shape for _, number, shape in call.given}
    steps: list[Step] = []
    main: list[torch.Size] = []

    def from_given(number: int) -> Passage:
        ways = [(number, ())] if number in given else lineage.ways(number, given)
        if not ways and lineage.used.get(number, -1) < call.ended:
            return None  # nobody reads it: weights of an attention, for pictures
        if len(ways) != 1 or shapes[ways[0][0]] != lineage.shapes[number]:
            raise _NoBlockError
        end, passed = ways[0]
        if passed and not passed[-1].zero:
            raise _NoBlockError  # a norm before the sums is none of the block's own
        if passed:
            main.append(lineage.shapes[number])
        steps.extend(passed)
        return Given(given[end])

    def source(leaf: Any) -> Passage:
        match leaf:
            case Number(number):
                return from_given(number)
            case Fields(kind, names, items):
                return Named(kind, names, tuple(map(source, items)))
            case tuple() | list():
                return Several(tuple(map(source, leaf)), isinstance(leaf, list))
            case None:
                return None
        raise _NoBlockError

    try:
        passage = source(call.returned)
    except (_NoBlockError, ValueError):
        return None
    return Candidate(call.path, passage, tuple(steps), main[0], call.order) if main else None


def _branch(lineage: Lineage, call: Call, summands: Mapping[int, Origin]) -> Candidate | None:
    """Return the module as a branch, if what it returns is only a summand beside its input."""
    if not isinstance(call.returned, Number) or call.returned.value not in summands:
        return None
    beside = summands[call.returned.value]
    shape = lineage.shapes[call.returned.value]
    like = next((place for place, _, size in call.given if size == shape), None)
    before: set[int] = set().union(*(lineage.ancestors(number) for _, number, _ in call.given))
    if like is None or beside.step is None or not before & lineage.ancestors(beside.source):
        return None
    return Candidate(call.path, Given(like, zero=True), (beside.step,), shape, call.order)


def _summands(lineage: Lineage) -> dict[int, Origin]:
    """Return the tensors that are only handed on to a sum, with what they are added to there."""
    found: dict[int, Origin] = {}
    for origins in lineage.origins.values():
        sums = [o for o in origins if o.step is not None and o.step.zero]
        for beside, summand in zip(sums, reversed(sums), strict=True):
            number: int | None = summand.source if len(sums) == 2 else None
            while number is not None:
                found[number] = beside
                handed = lineage.origins.get(number, [])
                number = handed[0].source if handed and handed[0].step is None else None
    return found


def _runs(
    model: nn.Module, calls: Sequence[Call], candidates: Mapping[str, Candidate]
) -> list[_Run]:
    """Return the runs of candidates of one class, parent and shape that can be a stage."""
    siblings: dict[tuple[str, tuple[type, ...]], list[str]] = {}
    for call in calls:
        key = call.path.rpartition(".")[0], _form(model.get_submodule(call.path))
        siblings.setdefault(key, []).append(call.path)
    runs = [
        run
        for (parent, _), paths in siblings.items()
        for run in _runs_of(parent, paths, candidates)
    ]
    return [run for run in runs if len(run.candidates) + bool(run.anchor) > 1]


def _runs_of(
    parent: str, paths: Sequence[str], candidates: Mapping[str, Candidate]
) -> Iterator[_Run]:
    run: list[Candidate] = []
    anchor = ""
    for path in paths:
        candidate = candidates.get(path)
        if run and (candidate is None or candidate.shape != run[0].shape):
            yield _Run(parent, tuple(run), anchor)
            run, anchor = [], ""
        if candidate is None:
            anchor = path
        else:
            run.append(candidate)
    if run:
        yield _Run(parent, tuple(run), anchor)


def _form(module: nn.Module) -> tuple[type, ...]:
    """Return what modules of one stage have in common: their class, and that of a Sequential's."""
    parts = module.children() if type(module) is nn.Sequential else ()
    return type(module), *map(type, parts)


def _chosen(runs: Sequence[_Run]) -> list[_Run]:
    """Return the runs that hold no block of another run: those of groups of blocks go.

    A run of parts with names of their own (the attentions of one block) goes in favour of a run of
    numbered blocks around it.
    """
    numbered = [run for run in runs if run.is_numbered]
    left = [
        run for run in runs if run.is_numbered or not any(_holds(other, run) for other in numbered)
    ]
    return [run for run in left if not any(_holds(run, other) for other in left)]


def _holds(run: _Run, other: _Run) -> bool:
    """Return whether a block of the other run is inside of a block of a run."""
    return any(
        inner.path != outer and _is_within(inner.path, outer)
        for outer in (*(c.path for c in run.candidates), *([run.anchor] if run.anchor else []))
        for inner in other.candidates
    )


def _named(runs: Sequence[_Run]) -> list[Stage]:
    """Return the runs as axes, named by their parent; by their first block where it has more."""
    parents = [run.parent for run in runs]
    found = []
    for run in sorted(runs, key=lambda run: run.candidates[0].order):
        alone = parents.count(run.parent) == 1 and run.parent
        first = run.anchor or run.candidates[0].path
        name = f"{run.parent if alone else first}.depth"
        offset = int(bool(run.anchor))
        size = len(run.candidates) + offset
        blocks = tuple(
            Block(candidate.path, name, place, candidate.passage)
            for place, candidate in enumerate(run.candidates, offset)
            if place
        )
        axis = Axis(name, size, "depth", tuple(range(1, size + 1)), outer=False)
        found.append(Stage(axis, blocks, {c.path: c.steps for c in run.candidates}))
    return found


def _is_within(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")
