"""Discovery: a space from one traced run of the model."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nestling.axes import expression as algebra
from nestling.axes.attributes import known_attributes
from nestling.axes.expression import Atom, Expression, Reason, Times
from nestling.axes.preparation import batch_of, with_batch
from nestling.axes.structure import tensors_in
from nestling.axes.tracer import SizeArgument, Trace, trace
from nestling.extent import Along, Concat, Extent, Fixed, Product, axes_of
from nestling.spec import Axis, Frozen, Layout, Space, Work, allowed_counts

KINDS = ("heads", "head_size", "paths", "channels", "embedding", "neurons")  # strongest first
PLAIN = ("channels", "neurons", "embedding")  # kinds that need no mention in an axis's name


@dataclass
class Discovery:
    """What one traced run found: a space that is yet to be proven.

    Attributes:
        space: the candidate space.
        trace: the trace; the proof replays its norm-like ops.
        atoms: axis name to the trace's atom.
        sizes: sizes that the code passed to ops, as extents.
        outputs: the outputs of the run that the user needs.
    """

    space: Space
    trace: Trace
    atoms: dict[str, Atom]
    sizes: list[tuple[SizeArgument, Extent]]
    outputs: list[Tensor]


def discover(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    *,
    outputs: Callable[[Any], Any] = lambda out: out,
    step: int | Mapping[str, int] | None = None,
) -> Discovery:
    """Run a model once and return the axes that its ops leave free.

    Args:
        model: in evaluation mode; it is run, not changed.
        args: positional example inputs.
        kwargs: keyword example inputs.
        outputs: picks what the user needs from what the model returns.
        step: what the counts go in, for all axes or by axis name.
    """
    record, tensors, returned = trace(model, args, kwargs)
    needed = tensors_in(outputs(returned))
    for tensor in needed:
        for expression in record.of(tensor):
            algebra.freeze(expression, Reason("size of the model's output"))
    names = _name_axes(record, tensors)
    layouts = _layouts(model, tensors, names)
    sizes = [(size, _resolve(size.expression, names)) for size in record.sizes]
    space = Space(
        axes=_axes(record, names, layouts, step),
        frozen=tuple(_frozen(model, tensors)),
        layouts=layouts,
        attributes=tuple(known_attributes(model, layouts, sizes)),
        works=tuple(_works(record, names, _batches(model, args, kwargs, record))),
    )
    atoms = {name: atom for atom, name in names.items()}
    return Discovery(space, record, atoms, sizes, needed)


def _name_axes(record: Trace, tensors: Mapping[str, list[Expression]]) -> dict[Atom, str]:
    """Name every live atom that a parameter has, by what produces it."""
    found: dict[Atom, list[tuple[str, int]]] = {}
    for name, expressions in tensors.items():
        for dim, expression in enumerate(expressions):
            for atom in dict.fromkeys(algebra.live(algebra.normal(expression))):
                found.setdefault(atom, []).append((name, dim))
    producers: dict[Atom, list[str]] = {}
    for expression, module, _ in record.produced:
        for atom in dict.fromkeys(algebra.atoms(algebra.normal(expression))):
            producers.setdefault(atom, []).append(module)
    kinds = _kinds(record)
    chosen: dict[Atom, str] = {}
    for atom, places in found.items():
        paths = [path for path in producers.get(atom, []) if path] or [
            name.rpartition(".")[0] or name for name, _ in places
        ]
        kind = kinds.get(atom, "channels")
        base = _common_path(paths)
        chosen[atom] = base if kind in PLAIN else f"{base}.{kind}"
    return _distinct(chosen)


def _kinds(record: Trace) -> dict[Atom, str]:
    kinds: dict[Atom, str] = {}
    for expression, _, kind in record.produced:
        for atom in algebra.atoms(algebra.normal(expression)):
            known = kinds.get(atom, kind)
            kinds[atom] = min(known, kind, key=KINDS.index)
    return kinds


def _common_path(paths: Sequence[str]) -> str:
    """Return the longest module path that all share, or else the one that most share."""
    unique = list(dict.fromkeys(paths))
    if len(unique) == 1:
        return unique[0]
    split = [path.split(".") for path in unique]
    common: list[str] = []
    for level in zip(*split, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    if common:
        return ".".join(common)
    tops = Counter(path[0] for path in split)
    most = max(tops.values())
    top = next(path[0] for path in split if tops[path[0]] == most)
    return _common_path([path for path in unique if path.split(".")[0] == top])


def _distinct(chosen: Mapping[Atom, str]) -> dict[Atom, str]:
    """Number the names that several axes share, in the order of the net."""
    shared = Counter(chosen.values())
    seen: Counter[str] = Counter()
    names = {}
    for atom, name in chosen.items():
        seen[name] += 1
        names[atom] = f"{name}#{seen[name]}" if shared[name] > 1 else name
    return names


def _resolve(expression: Expression, names: Mapping[Atom, str]) -> Extent:
    expression = algebra.normal(expression)
    if isinstance(expression, Atom):
        name = names.get(expression)
        return Fixed(expression.size) if name is None else Along(name, expression.size)
    if isinstance(expression, Times):
        factors = _merge([_resolve(factor, names) for factor in expression.factors], product=True)
        return factors[0] if len(factors) == 1 else Product(tuple(factors))
    parts = _merge([_resolve(part, names) for part in expression.parts], product=False)
    return parts[0] if len(parts) == 1 else Concat(tuple(parts))


def _merge(items: list[Extent], product: bool) -> list[Extent]:
    """Join neighbouring fixed extents."""
    merged: list[Extent] = []
    for item in items:
        last = merged[-1] if merged else None
        if isinstance(item, Fixed) and isinstance(last, Fixed):
            merged[-1] = Fixed(last.size * item.size if product else last.size + item.size)
        else:
            merged.append(item)
    return merged


def _layouts(
    model: nn.Module, tensors: Mapping[str, list[Expression]], names: Mapping[Atom, str]
) -> dict[str, Layout]:
    parameters = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    return {
        name: Layout(
            tuple(_resolve(expression, names) for expression in expressions),
            name in parameters,
            (parameters[name] if name in parameters else buffers[name]).element_size(),
        )
        for name, expressions in tensors.items()
    }


def _axes(
    record: Trace,
    names: Mapping[Atom, str],
    layouts: Mapping[str, Layout],
    step: int | Mapping[str, int] | None,
) -> dict[str, Axis]:
    inner = {
        axis
        for layout in layouts.values()
        for extent in layout.extents
        for axis in _inner_axes(extent)
    }
    kinds = _kinds(record)
    axes = {}
    for atom, name in names.items():
        kind = kinds.get(atom, "channels")
        own = step.get(name) if isinstance(step, Mapping) else step
        counts = allowed_counts(atom.size, kind, own)
        axes[name] = Axis(name, atom.size, kind, counts, outer=name not in inner)
    return axes


def _inner_axes(extent: Extent) -> list[str]:
    """Return the axes that stand inside the units of another axis."""
    match extent:
        case Product(factors):
            inner: list[str] = []
            seen = False
            for factor in factors:
                own = list(axes_of(factor))
                inner += own if seen else _inner_axes(factor)
                seen = seen or bool(own)
            return inner
        case Concat(parts):
            return [axis for part in parts for axis in _inner_axes(part)]
    return []


def _frozen(model: nn.Module, tensors: Mapping[str, list[Expression]]) -> list[Frozen]:
    rows = []
    for name, parameter in model.named_parameters():
        for dim, expression in enumerate(tensors[name]):
            reason = _why_frozen(expression)
            if reason is not None and reason.text != "kernel size":
                size = parameter.shape[dim]
                rows.append(Frozen(name, dim, size, reason.op, reason.module, reason.text))
    return rows


def _why_frozen(expression: Expression) -> Reason | None:
    """Return why nothing of a dimension can be cut; None if something can."""
    if expression.size == 1 or algebra.live(expression):
        return None
    reasons = [atom.frozen for atom in algebra.atoms(expression) if atom.size > 1]
    single = Reason("it is coupled with parts of itself, down to single units")
    return next((reason for reason in reasons if reason is not None), single)


def _works(record: Trace, names: Mapping[Atom, str], batches: Sequence[int]) -> list[Work]:
    return [
        Work(module, tuple(_merge([_resolve(e, names) for e in expressions], product=True)), batch)
        for (module, expressions), batch in zip(record.works, batches, strict=True)
    ]


def _batches(
    model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], record: Trace
) -> list[int]:
    """Return what each work is divided by: the batch, or 1 for what is done once for all examples.

    A run on another batch tells: a product of weights alone costs the same there.
    """
    batch = batch_of((args, kwargs))
    if batch == 1:
        return [1] * len(record.works)
    for other in (1, 2 * batch):
        try:
            again, _, _ = trace(copy.deepcopy(model), *with_batch((args, kwargs), other))
        except Exception:  # noqa: BLE001  (the user's code may not take every batch)
            continue
        if [module for module, _ in again.works] == [module for module, _ in record.works]:
            pairs = zip(record.works, again.works, strict=True)
            return [1 if _size(one) == _size(two) else batch for (_, one), (_, two) in pairs]
    return [batch] * len(record.works)


def _size(expressions: Sequence[Expression]) -> int:
    return math.prod(expression.size for expression in expressions)
