"""Lineage: which tensor comes from which, in one run of a model.

Every tensor gets a number, and every op that hands a tensor on (a sum, a pointwise op of one
tensor, a view, a norm) notes from which tensor its result comes. `nestling.axes.residual` reads
from that which modules add to what they are given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

SUMS = ("add", "add_")
FUSED = ("addcmul", "addcmul_", "addmm", "baddbmm")  # a product added to their first argument
NORMS = (
    *("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm", "native_group_norm"),
    *("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"),
)
VIEWS = (
    *("clone", "alias", "detach", "_to_copy", "contiguous", "native_dropout", "dropout"),
    *("view", "_unsafe_view", "reshape", "permute", "transpose", "t", "squeeze", "unsqueeze"),
)
SCALED = ("mul", "mul_", "div", "div_", "sub", "sub_", "add", "add_")  # what norms by hand do
STATISTICS = (
    *("mean", "sum", "var", "std", "pow", "square", "abs", "mul", "sqrt", "rsqrt", "reciprocal"),
    *("add", "add_", "clamp", "clamp_min", "maximum", "div", "_to_copy", "linalg_vector_norm"),
    *("sub", "var_mean", "norm", "expand", "unsqueeze"),
)
FAR = 4096  # tensors that a search may visit
NEAR = 16  # tensors between a value and its statistic


@dataclass(frozen=True)
class Step:
    """An op without whose other input a block is the identity.

    Attributes:
        op: number of the op in the trace.
        place: of a positional argument.
        zero: whether that argument is set to zero (a summand), or the op is passed over, so that
            this argument is what it returns (a norm).
    """

    op: int
    place: int
    zero: bool = True


@dataclass(frozen=True)
class Origin:
    """Where a tensor comes from: another one, by a step or (None) by an op that hands it on."""

    source: int
    step: Step | None = None


@dataclass(frozen=True)
class Number:
    """A tensor in what a module returned."""

    value: int


@dataclass(frozen=True)
class Fields:
    """A dict, named tuple or object in what a module returned.

    Attributes:
        kind: as in `nestling.passage.Named`.
        names: of the fields.
        items: what stands in them.
    """

    kind: str
    names: tuple[str, ...]
    items: tuple[Any, ...]


@dataclass
class Call:
    """One call of a module.

    Attributes:
        path: of the module.
        given: the way to each tensor that it was given, with number and shape.
        returned: what it returned, with `Number` for tensors and `Fields` for named values.
        order: how many calls ended before it.
        ended: how many ops ran before it ended.
    """

    path: str
    given: list[tuple[tuple[int | str, ...], int, torch.Size]]
    returned: Any = None
    order: int = 0
    ended: int = 0


@dataclass
class Lineage:
    """Which tensor comes from which, in one run.

    Attributes:
        origins: tensor number to where the tensor comes from.
        calls: the finished calls of modules.
        shapes: tensor number to shape.
        used: tensor number to the last op that read it.
    """

    origins: dict[int, list[Origin]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    shapes: dict[int, torch.Size] = field(default_factory=dict)
    used: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._numbers: Any = WeakTensorKeyDictionary()
        self._parents: dict[int, tuple[str, tuple[int, ...]]] = {}
        self._weights: set[int] = set()  # parameters, and what is computed from them alone
        self._normed: set[int] = set()  # what comes out of a norm written by hand
        self._ops = 0

    def number(self, tensor: Tensor) -> int:
        """Return the number of a tensor; numbers grow in the order in which tensors are met."""
        if tensor not in self._numbers:
            number = self._renew(tensor)
            if isinstance(tensor, nn.Parameter):
                self._weights.add(number)
        return int(self._numbers[tensor])

    def note(self, op: int, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> None:
        """Note where the result of an op comes from, and what it read."""
        self._ops = op + 1
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        numbers = tuple(self.number(tensor) for tensor in inputs)
        for number in numbers:
            self.used[number] = op
        result = out[0] if isinstance(out, (tuple, list)) and out else out
        if not isinstance(result, Tensor):
            return
        origins = list(self._origins(op, func, args, inputs, result))
        name = func.overloadpacket.__name__
        number = self._renew(result)  # also in place: it is another value now
        self._parents[number] = name, numbers
        if numbers and self._weights.issuperset(numbers):
            self._weights.add(number)
        if origins:
            self.origins[number] = origins
            by_hand = any(o.step is not None and not o.step.zero for o in origins)
            carried = name in VIEWS and origins[0].source in self._normed
            if carried or (by_hand and name not in NORMS):
                self._normed.add(number)

    def enter(self, path: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """Return the record of a call that begins."""
        places = [*_places(args), *_places(kwargs)]
        return Call(path, [(place, self.number(t), t.shape) for place, t in places])

    def leave(self, call: Call, returned: Any) -> None:
        """Note what a call returned."""
        call.returned = self._numbered(returned)
        call.order, call.ended = len(self.calls), self._ops
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

    def _renew(self, tensor: Tensor) -> int:
        number = self._numbers[tensor] = len(self.shapes)
        self.shapes[number] = tensor.shape
        return number

    def _origins(
        self, op: int, func: Any, args: Sequence[Any], tensors: Sequence[Tensor], result: Tensor
    ) -> Iterator[Origin]:
        name = func.overloadpacket.__name__
        pair = len(args) > 1 and len(tensors) == 2 and isinstance(args[1], Tensor)
        norm = self._norm_by_hand(name, args, result) if pair and name in SCALED else None
        if norm is not None:
            yield Origin(self.number(args[norm]), Step(op, norm, zero=False))
        elif name in SUMS and pair:
            for place in (0, 1):
                if args[place].shape == result.shape:
                    yield Origin(self.number(args[place]), Step(op, 1 - place))
        elif name in ("sub", "sub_", *FUSED) and isinstance(args[1], Tensor):
            if isinstance(args[0], Tensor) and args[0].shape == result.shape:
                yield Origin(self.number(args[0]), Step(op, 1))
        elif name in NORMS:
            yield Origin(self.number(args[0]), Step(op, 0, zero=False))
        elif name in VIEWS or torch.Tag.pointwise in func.tags:
            alone = len(tensors) == 1 and tensors[0] is args[0]
            if alone and args[0].numel() == result.numel():
                yield Origin(self.number(args[0]))

    def _norm_by_hand(self, name: str, args: Sequence[Any], result: Tensor) -> int | None:
        """Return which argument an op norms: by a statistic of it, or by a weight after that."""
        turned = name.rstrip("_") in ("mul", "add")
        for place in (0, 1) if turned else (0,):
            value, other = args[place], args[1 - place]
            if not isinstance(value, Tensor) or value.shape != result.shape:
                continue
            if other.numel() >= value.numel():
                continue
            number, by = self.number(value), self.number(other)
            if number in self._normed and by in self._weights:
                return place
            if not name.startswith("add") and self._is_statistic(by, number):
                return place
        return None

    def _is_statistic(self, number: int, of: int) -> bool:
        """Return whether a tensor is computed from another one alone, as a variance is."""
        seen: set[int] = set()
        pending, reached = [number], False
        while pending:
            at = pending.pop()
            if at == of:
                reached = True
                continue
            name, parents = self._parents.get(at, ("", ()))
            if name not in STATISTICS or not parents or len(seen) > NEAR:
                return False
            seen.add(at)
            pending.extend(parent for parent in parents if parent not in seen)
        return reached

    def _numbered(self, value: Any) -> Any:
        """Return what a module returned with numbers for tensors; anything odd stays as it is."""
        if isinstance(value, Tensor):
            return Number(self.number(value))
        if type(value) in (tuple, list):
            return type(value)(self._numbered(item) for item in value)
        named = _named(value)
        if named is None:
            return value
        kind, parts = named
        return Fields(kind, tuple(parts), tuple(self._numbered(item) for item in parts.values()))


def _named(value: Any) -> tuple[str, dict[str, Any]] | None:
    """Return kind and fields of a dict, named tuple or object."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return "named tuple", dict(zip(value._fields, value, strict=True))
    records = is_dataclass(value) and not isinstance(value, type)
    parts = {f.name: getattr(value, f.name, None) for f in fields(value)} if records else {}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return "dict" if type(value) is dict else "output", {**dict(value), **parts}
    return ("object", parts) if records else None


def _places(values: Any, path: tuple[int | str, ...] = ()) -> Iterator[tuple[Any, Tensor]]:
    """Yield the way to every tensor in arguments and in the tuples, lists and dicts among them."""
    if isinstance(values, Tensor):
        yield path, values
    elif isinstance(values, (tuple, list)):
        for index, value in enumerate(values):
            yield from _places(value, (*path, index))
    elif type(values) is dict:
        for key, value in values.items():
            if isinstance(key, str) and key.isidentifier() and key[:1] != "_":
                yield from _places(value, (*path, key))
