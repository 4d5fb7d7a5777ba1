"""Residual blocks: which modules add to what they are given, so that a subnet can pass them by.

While the model is traced, every tensor gets a number, and every op that hands a tensor on (a sum, a
pointwise op of one tensor, a view, a norm) notes from which tensor its result comes. A module is a
*block* when exactly one such way leads from what it returns to what it was given, across at least
one sum: without the other summands it returns its input. A module is a *branch* when what it
returns is a summand, and the other summand comes from where the module's input comes from. Blocks
of one class that follow one another, from one parent, are a stage, and a stage is an axis of kind
depth. Nothing is believed: the proof runs the full model with the other summands set to zero, and
the subnet with the blocks passed by.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from nestling.extent import Counts
from nestling.passage import Given, Passage, Several
from nestling.spec import Axis, Block, Space

SUMS = ("add", "add_")
NORMS = ("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm")
VIEWS = (
    *("clone", "alias", "detach", "_to_copy", "contiguous", "native_dropout", "dropout"),
    *("view", "_unsafe_view", "reshape", "permute", "transpose", "t", "squeeze", "unsqueeze"),
)
FAR = 4096  # tensors that a search may visit


@dataclass(frozen=True)
class Step:
    """An op without whose other input a block is the identity.

    Attributes:
        op: number of the op in the trace.
        dropped: which positional argument is set to zero; None for a norm, which is passed over.
    """

    op: int
    dropped: int | None


@dataclass(frozen=True)
class Origin:
    """Where a tensor comes from: another one, by a step or (None) by an op that hands it on."""

    source: int
    step: Step | None = None


@dataclass
class Call:
    """One call of a module: numbers of the tensors that it was given and that it returned."""

    path: str
    given: list[tuple[tuple[int | str, ...], int, torch.Size]]
    returned: Any = None
    order: int = 0


@dataclass
class Lineage:
    """Which tensor comes from which, in one run.

    Attributes:
        origins: tensor number to where the tensor comes from.
        calls: the finished calls of modules.
        shapes: tensor number to shape.
    """

    origins: dict[int, list[Origin]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    shapes: dict[int, torch.Size] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._numbers: Any = WeakTensorKeyDictionary()

    def number(self, tensor: Tensor) -> int:
        """Return the number of a tensor; numbers grow in the order in which tensors are met."""
        if tensor not in self._numbers:
            self._renew(tensor)
        return int(self._numbers[tensor])

    def note(self, op: int, func: Any, args: Sequence[Any], out: Any) -> None:
        """Note where the result of an op comes from; `inputs` of it must have numbers already."""
        result = out[0] if isinstance(out, (tuple, list)) and out else out
        if not isinstance(result, Tensor):
            return
        origins = list(self._origins(op, func, args, result))
        self._renew(result)  # also in place: it is another value now
        if origins:
            self.origins[self.number(result)] = origins

    def enter(self, path: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """Return the record of a call that begins."""
        places = [*_places(args), *_places(kwargs)]
        return Call(path, [(place, self.number(t), t.shape) for place, t in places])

    def leave(self, call: Call, returned: Any) -> None:
        """Note what a call returned."""
        call.returned = _numbered(returned, self)
        call.order = len(self.calls)
        self.calls.append(call)

    def ways(self, start: int, ends: Iterable[int]) -> list[tuple[int, tuple[Step, ...]]]:
        """Return at most two ways from a tensor back to any of some others: (end, steps)."""
        goals = set(ends)
        oldest = min(goals, default=0)
        found: list[tuple[int, tuple[Step, ...]]] = []
        pending: list[tuple[int, tuple[Step, ...]]] = [(start, ())]
        for _ in range(FAR):
            if not pending or len(found) > 1:
                break
            number, steps = pending.pop()
            if number in goals:
                found.append((number, steps))
                continue
            for origin in self.origins.get(number, []):
                if origin.source >= oldest:
                    step = () if origin.step is None else (origin.step,)
                    pending.append((origin.source, (*steps, *step)))
        return found

    def ancestors(self, start: int) -> set[int]:
        """Return the tensors from which one comes, itself included."""
        found, pending = {start}, [start]
        while pending and len(found) < FAR:
            for origin in self.origins.get(pending.pop(), []):
                if origin.source not in found:
                    found.add(origin.source)
                    pending.append(origin.source)
        return found

    def _renew(self, tensor: Tensor) -> None:
        self._numbers[tensor] = len(self.shapes)
        self.shapes[len(self.shapes)] = tensor.shape

    def _origins(self, op: int, func: Any, args: Sequence[Any], result: Tensor) -> Iterator[Origin]:
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        if name in SUMS and len(tensors) == 2 and isinstance(args[1], Tensor):
            for place in (0, 1):
                if args[place].shape == result.shape:
                    yield Origin(self.number(args[place]), Step(op, 1 - place))
        elif name in NORMS:
            yield Origin(self.number(args[0]), Step(op, None))
        elif len(tensors) == 1 and tensors[0] is args[0] and args[0].numel() == result.numel():
            if name in VIEWS or torch.Tag.pointwise in func.tags:
                yield Origin(self.number(args[0]))


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
    return _named([*_innermost(found), *_innermost(_runs(model, once, branches))])


def dropped(
    stages: Mapping[str, Sequence[Step]], space: Space, counts: Counts
) -> dict[int, int | None]:
    """Return, for each op that a spec's passed blocks change, which of its arguments is zero.

    Args:
        stages: block path to the steps that take its contribution away.
        space: says which blocks a spec passes by.
        counts: kept units by axis name.
    """
    steps = (step for block in space.passed(counts) for step in stages[block.module])
    return {step.op: step.dropped for step in steps}


@dataclass(frozen=True)
class _Run:
    """Candidates that follow one another; `anchor` comes before them and always stays."""

    parent: str
    candidates: tuple[Candidate, ...]
    anchor: str


def _called_once(model: nn.Module, lineage: Lineage) -> list[Call]:
    """Return the calls of modules that ran once and share no tensor with what is outside of them."""
    numbers: dict[str, int] = {}
    for call in lineage.calls:
        numbers[call.path] = numbers.get(call.path, 0) + 1
    homes: dict[int, set[str]] = {}
    for items in (
        model.named_parameters(remove_duplicate=False),
        model.named_buffers(remove_duplicate=False),
    ):
        for name, tensor in items:
            homes.setdefault(id(tensor), set()).add(name)
    shared = [names for names in homes.values() if len(names) > 1]

    def closed(path: str) -> bool:
        return all(len({_is_within(name, path) for name in names}) == 1 for names in shared)

    single = (call for call in lineage.calls if call.path and numbers[call.path] == 1)
    return [call for call in single if closed(call.path)]


def _block(lineage: Lineage, call: Call) -> Candidate | None:
    """Return the module as a block, if what it returns is its input but for some summands."""
    given = {number: place for place, number, _ in reversed(call.given)}
    shapes = {number: shape for _, number, shape in call.given}
    steps: list[Step] = []
    main: list[torch.Size] = []

    def source(leaf: Any) -> Passage:
        if isinstance(leaf, (tuple, list)):
            return Several(tuple(map(source, leaf)), isinstance(leaf, list))
        if leaf is None:
            return None
        if not isinstance(leaf, _Number):
            raise LookupError
        ways = [(leaf.value, ())] if leaf.value in given else lineage.ways(leaf.value, given)
        if len(ways) != 1 or shapes[ways[0][0]] != lineage.shapes[leaf.value]:
            raise LookupError
        if any(step.dropped is not None for step in ways[0][1]):
            main.append(lineage.shapes[leaf.value])
        steps.extend(ways[0][1])
        return Given(given[ways[0][0]])

    try:
        passage = source(call.returned)
    except LookupError:
        return None
    if not main:
        return None
    return Candidate(call.path, passage, tuple(steps), main[0], call.order)


def _branch(lineage: Lineage, call: Call, summands: Mapping[int, Origin]) -> Candidate | None:
    """Return the module as a branch, if what it returns is only a summand beside its input."""
    if not isinstance(call.returned, _Number) or call.returned.value not in summands:
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
        sums = [o for o in origins if o.step is not None and o.step.dropped is not None]
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
    siblings: dict[tuple[str, type], list[str]] = {}
    for call in calls:
        key = call.path.rpartition(".")[0], type(model.get_submodule(call.path))
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


def _innermost(runs: Sequence[_Run]) -> list[_Run]:
    """Return the runs that hold no block of another run."""
    every = [candidate.path for run in runs for candidate in run.candidates]
    return [
        run
        for run in runs
        if not any(
            _is_within(other, mine.path) and other != mine.path
            for mine in run.candidates
            for other in every
        )
    ]


def _named(runs: Sequence[_Run]) -> list[Stage]:
    """Return the runs as axes: named by their parent, or by their first block where there are more."""
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


@dataclass(frozen=True)
class _Number:
    """A tensor in what a module returned."""

    value: int


def _numbered(value: Any, lineage: Lineage) -> Any:
    """Return what a module returned with numbers for tensors; anything odd stays as it is."""
    if isinstance(value, Tensor):
        return _Number(lineage.number(value))
    if type(value) in (tuple, list):
        return type(value)(_numbered(item, lineage) for item in value)
    return value


def _places(values: Any, path: tuple[int | str, ...] = ()) -> Iterator[tuple[Any, Tensor]]:
    """Yield the way to every tensor in arguments and in the tuples, lists and dicts among them."""
    if isinstance(values, Tensor):
        yield path, values
    elif isinstance(values, (tuple, list)):
        for index, value in enumerate(values):
            yield from _places(value, (*path, index))
    elif type(values) is dict:
        for key, value in values.items():
            if isinstance(key, str) and key.isidentifier():
                yield from _places(value, (*path, key))


def _is_within(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")
