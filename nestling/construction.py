"""From a user's model to a proven space: the checks, the wishes and the runs it takes."""

from __future__ import annotations

import copy
import fnmatch
import warnings
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from nestling.axes.discovery import discover
from nestling.axes.proof import Prover, double
from nestling.axes.structure import tensors_in
from nestling.axes.tracer import run
from nestling.errors import ModelError, SpecError, did_you_mean
from nestling.spec import Frozen, Space
from nestling.subnet import keeps_statistics
from nestling.weights import tensors_of

__all__ = [
    "check_model",
    "check_step",
    "copied",
    "first_run",
    "picker",
    "private_buffers",
    "proven_space",
    "with_itemsizes",
]


def proven_space(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    pick: Callable[[Any], Any],
    freeze: Iterable[str],
    tie: Iterable[Sequence[str]],
    step: int | Mapping[str, int] | None,
) -> Space:
    """Discover the axes, apply the user's wishes, and prove what remains."""
    wide, (wide_args, wide_kwargs) = double(model, (tuple(args), kwargs))
    found = discover(wide, wide_args, wide_kwargs, outputs=pick, step=step)
    space = found.space
    _check_named_steps(space, step)
    prover = Prover(wide, wide_args, wide_kwargs, found, pick)
    for pattern in [freeze] if isinstance(freeze, str) else freeze:
        for name in _matching(found.space, pattern):
            if name in space.axes:
                prover.let_go(name)
                space = space.without(name, Frozen("", 0, 0, "", "", f"freeze={pattern!r}"))
    for group in tie:
        if isinstance(group, str):
            raise SpecError(
                f"tie= takes groups of axis names, but got the single name {group!r}; "
                "write tie=[('first', 'second')]"
            )
        space = _tied(space, prover, list(group), step)
    space = _without_single(space, prover, step)
    space = _without_single(prover.prove(space), prover, step)
    if not space.axes:
        reasons = "; ".join(dict.fromkeys(row.reason for row in space.frozen)) or "no parameters"
        raise ModelError(
            f"nothing in {type(model).__name__} is elastic: {reasons}. A net needs at least one "
            "hidden dimension that ops with rules produce and consume; see outputs= and freeze="
        )
    return with_itemsizes(space, model)


def _tied(
    space: Space, prover: Prover, group: list[str], step: int | Mapping[str, int] | None
) -> Space:
    """Return the space with a group made one axis; explicit steps rule over usual ones."""
    tied = prover.tie(space, group)
    explicit = [name for name in group if isinstance(step, Mapping) and name in step]
    if not explicit:
        return tied
    common = set.intersection(*(set(space.axes[name].counts) for name in explicit))
    axis = replace(tied.axes[group[0]], counts=tuple(sorted(common)))
    return replace(tied, axes={**tied.axes, group[0]: axis})


def _without_single(space: Space, prover: Prover, step: int | Mapping[str, int] | None) -> Space:
    """Return the space with those axes frozen whose steps leave nothing but the full size."""
    for name, axis in list(space.axes.items()):
        if len(axis.counts) > 1:
            continue
        own = step.get(name) if isinstance(step, Mapping) else step
        alone = own is not None and own >= axis.size
        given = f"step={own} leaves" if alone else "the steps of the axes tied to it leave"
        prover.let_go(name)
        space = space.without(name, Frozen("", 0, 0, "", "", f"{given} only the full size"))
    return space


def with_itemsizes(space: Space, model: nn.Module) -> Space:
    """Return the space with the bytes of the user's dtypes (the proof ran in float64)."""
    tensors = tensors_of(model)
    layouts = {
        name: replace(layout, itemsize=tensors[name].element_size())
        for name, layout in space.layouts.items()
    }
    return replace(space, layouts=layouts)


def _matching(space: Space, pattern: str) -> list[str]:
    """Return the axes that a name or pattern of axes, modules or parameters means.

    A module or parameter means the axes that it produces; if it produces none, those it consumes.
    """
    if not isinstance(pattern, str):
        raise SpecError(
            f"freeze= takes names or patterns of axes, modules or parameters, but got {pattern!r}"
        )

    def named(tensor: str) -> bool:
        return any(fnmatch.fnmatchcase(tensor, form) for form in (pattern, f"{pattern}.*"))

    def touching(axis: str, dims: Container[int]) -> bool:
        return any(dim in dims and named(tensor) for tensor, dim in space.touches(axis))

    by_name = [name for name in space.axes if fnmatch.fnmatchcase(name, pattern)]
    produced = [name for name in space.axes if name in by_name or touching(name, (0,))]
    found = produced or [name for name in space.axes if touching(name, range(9))]
    if not found:
        near = did_you_mean(pattern, [*space.axes, *space.layouts])
        raise SpecError(
            f"freeze={pattern!r} matches no axis, module or parameter{near}; "
            f"the axes are {', '.join(list(space.axes)[:8])}"
        )
    return found


def check_model(model: object) -> None:
    """Raise `ModelError` unless it is a module."""
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"a supernet is made from an nn.Module, but got {type(model).__name__}; "
            "pass the model itself, not its class or its state dict"
        )


def check_step(step: object) -> None:
    """Raise `SpecError` unless steps are positive whole numbers."""
    values = step.values() if isinstance(step, Mapping) else [] if step is None else [step]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SpecError(f"step= is a whole number of at least 1, but it is {value!r}")


def _check_named_steps(space: Space, step: object) -> None:
    if isinstance(step, Mapping):
        for name in step:
            if name not in space.axes:
                raise SpecError(
                    f"step= names the unknown axis {name!r}{did_you_mean(name, space.axes)}"
                )


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of the model, or raise `ModelError`."""
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be copied: {error}; a model must survive "
            "copy.deepcopy (keep non-leaf tensors out of its attributes)"
        ) from error


def first_run(model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Run once, so that lazy modules are built and the user's own errors are told apart."""
    try:
        returned = run(model, args, kwargs, None)
    except Exception as error:
        shapes = [tuple(tensor.shape) for tensor in tensors_in((args, kwargs))]
        raise ModelError(
            f"{type(model).__name__} fails in its own forward on the example inputs "
            f"(shapes {shapes}): {type(error).__name__}: {error}; give Supernet inputs that the "
            "model accepts"
        ) from error
    if not tensors_in(returned):
        raise ModelError(
            f"{type(model).__name__} returns no tensor (it returns {type(returned).__name__}), so "
            "nothing can be proven; return tensors, or pick them with outputs="
        )


def picker(outputs: Any) -> Callable[[Any], Any]:
    """Return the function that picks the needed outputs from what the model returns."""
    if outputs is None:
        return lambda returned: returned
    if callable(outputs):
        return lambda returned: outputs(returned)
    keys = outputs if isinstance(outputs, (list, tuple)) else [outputs]

    def pick(returned: Any) -> Any:
        try:
            return [
                returned[key]
                if not isinstance(key, str) or isinstance(returned, Mapping)
                else getattr(returned, key)
                for key in keys
            ]
        except (KeyError, IndexError, AttributeError, TypeError) as error:
            raise ModelError(
                f"outputs={outputs!r} does not fit what the model returns "
                f"({type(returned).__name__}): {error}"
            ) from error

    return pick


def private_buffers(
    model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]
) -> frozenset[str]:
    """Return the buffers that training changes: norm statistics, and what else a run writes."""
    names = {
        f"{path}.{key}" if path else key
        for path, module in model.named_modules()
        if keeps_statistics(module)
        for key, buffer in module._buffers.items()
        if buffer is not None
    }
    trial = copy.deepcopy(model).train()
    before = {name: (buffer, buffer._version) for name, buffer in trial.named_buffers()}
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        try:
            run(trial, args, kwargs, None)
        except Exception:  # noqa: BLE001  (one example may be too few to train on)
            return frozenset(names & before.keys())
    for name, buffer in trial.named_buffers():
        known = before.get(name)
        if known is not None and (known[0] is not buffer or known[1] != buffer._version):
            names.add(name)
    return frozenset(names & before.keys())
