"""Discovery: a space from one traced run of the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from nestling.axes import expression as algebra
from nestling.axes.attributes import known_attributes
from nestling.axes.expression import Atom, Expression, Reason, Times
from nestling.axes.lineage import Step
from nestling.axes.naming import kinds_of, name_axes
from nestling.axes.residual import Stage, stages
from nestling.axes.structure import batch_of, tensors_in, with_batch
from nestling.axes.tracer import SizeArgument, Trace, trace
from nestling.extent import Along, Concat, Extent, Fixed, Product, axes_of
from nestling.spec import Axis, Frozen, Layout, Space, Work, allowed_counts
from nestling.weights import duplicate


@dataclass
class Discovery:
    """What one traced run found: a space that is yet to be proven.

    Attributes:
        space: the candidate space.
        trace: the trace; the proof replays its norm-like ops.
        atoms: axis name to the trace's atom.
        sizes: sizes that the code passed to ops, as extents.
        outputs: the outputs of the run that the user needs.
        steps: residual block to what takes its contribution away.
    """

    space: Space
    trace: Trace
    atoms: dict[str, Atom]
    sizes: list[tuple[SizeArgument, Extent]]
    outputs: list[Tensor]
    steps: Mapping[str, Sequence[Step]]


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
    record.use(needed)
    for tensor in needed:
        for expression in record.of(tensor):
            algebra.freeze(expression, Reason("size of the model's output"))
    _freeze_buffers(model, record, tensors)
    names, kinds = name_axes(record, tensors), kinds_of(record, tensors)
    layouts = _layouts(model, tensors, names)
    sizes = [(size, _resolve(size.expression, names)) for size in record.sizes]
    depths = stages(model, record.lineage)
    space = Space(
        axes=_axes(names, kinds, layouts, step) | _depth_axes(depths, step),
        frozen=tuple(_frozen(model, tensors)),
        layouts=layouts,
        attributes=tuple(known_attributes(model, layouts, sizes)),
        works=tuple(_works(record, names, _batches(model, args, kwargs, record))),
        blocks=tuple(block for stage in depths for block in stage.blocks),
        producers=tuple(record.producers),
    )
    atoms = {name: atom for atom, name in names.items()}
    steps = {path: steps for stage in depths for path, steps in stage.steps.items()}
    return Discovery(space, record, atoms, sizes, needed, steps)


def _freeze_buffers(
    model: nn.Module, record: Trace, tensors: Mapping[str, list[Expression]]
) -> None:
    """Freeze the dimensions of buffers that no layer makes: tables of coordinates."""
    first = [tensors[name][0] for name, p in model.named_parameters() if p.dim()]
    every = [expression for expression, _, _ in record.produced] + first
    made = {atom for expression in every for atom in algebra.atoms(algebra.normal(expression))}
    for name, _ in model.named_buffers():
        for expression in tensors[name]:
            for atom in algebra.live(algebra.normal(expression)):
                if atom not in made:
                    algebra.freeze(atom, Reason("as wide as a buffer, which nothing computes"))


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
    names: Mapping[Atom, str],
    kinds: Mapping[Atom, str],
    layouts: Mapping[str, Layout],
    step: int | Mapping[str, int] | None,
) -> dict[str, Axis]:
    inner = {
        axis
        for layout in layouts.values()
        for extent in layout.extents
        for axis in _inner_axes(extent)
    }
    axes = {}
    for atom, name in names.items():
        kind = kinds.get(atom, "channels")
        own = step.get(name) if isinstance(step, Mapping) else step
        counts = allowed_counts(atom.size, kind, own)
        axes[name] = Axis(name, atom.size, kind, counts, outer=name not in inner)
    return axes


def _depth_axes(depths: Sequence[Stage], step: int | Mapping[str, int] | None) -> dict[str, Axis]:
    """Return the axes of the stages; a step for all axes is one of widths, and not for these."""
    axes = {}
    for stage in depths:
        axis = stage.axis
        own = step.get(axis.name) if isinstance(step, Mapping) else None
        axes[axis.name] = replace(axis, counts=allowed_counts(axis.size, axis.kind, own))
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
            again, _, _ = trace(duplicate(model), *with_batch((args, kwargs), other))
        except Exception:  # noqa: BLE001  (the user's code may not take every batch)
            continue
        if [module for module, _ in again.works] == [module for module, _ in record.works]:
            pairs = zip(record.works, again.works, strict=True)
            return [1 if _size(one) == _size(two) else batch for (_, one), (_, two) in pairs]
    return [batch] * len(record.works)


def _size(expressions: Sequence[Expression]) -> int:
    return math.prod(expression.size for expression in expressions)
