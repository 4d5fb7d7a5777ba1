"""From a user's model to a proven space: the checks, the wishes and the runs it takes."""

from __future__ import annotations

import copy
import fnmatch
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nestling.axes.configuration import configured
from nestling.axes.discovery import discover
from nestling.axes.proof import Prover, double
from nestling.axes.structure import tensors_in
from nestling.axes.suitability import is_quantised, refuse_unsuitable
from nestling.axes.tracer import run
from nestling.binding import keeps_statistics
from nestling.description import Cause, causes
from nestling.errors import ModelError, SpecError, brief, did_you_mean
from nestling.skeleton import copy_skeleton, is_ordinary
from nestling.spec import Frozen, Space
from nestling.weights import duplicate, loose_tensors, tensors_of

__all__ = [
    "check_model",
    "check_skeleton",
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
    tie: Iterable[str | Sequence[str]],
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
    for group in [tie] if isinstance(tie, str) else tie:
        space = _tied(space, prover, _group(space, group), step)
    space = _without_single(space, prover, step)
    space = _without_single(prover.prove(space), prover, step)
    if not space.axes:
        reasons = "; ".join(map(_told, causes(space)[:5])) or "no parameters"
        raise ModelError(
            f"nothing in {type(model).__name__} is elastic: {reasons}. A net needs at least one "
            "hidden dimension that ops with rules produce and consume; see outputs= and freeze="
            + _about_quantised(model)
        )
    return with_itemsizes(configured(space, prover.trials), model)


def _told(cause: Cause) -> str:
    """Return a reason, with what the user can do where the reason is no matter of course."""
    cure = "" if cause.advice.expected else cause.advice.text
    return f"{cause.reason} ({cure})" if cure else cause.reason


def _about_quantised(model: nn.Module) -> str:
    found = [name for name, module in model.named_modules() if is_quantised(module)]
    if not found:
        return ""
    return (
        f". Its module {found[0]!r} is quantised, with packed weights that cannot be cut: make the "
        "supernet before quantising, and quantise nestling.pack(subnet)"
    )


def _group(space: Space, group: str | Sequence[str]) -> list[str]:
    """Return the axes of a group: names, or patterns that stand for all axes that they match."""
    found: list[str] = []
    for name in [group] if isinstance(group, str) else group:
        alike = [axis for axis in space.axes if fnmatch.fnmatchcase(axis, name)]
        found += [name] if name in space.axes or not alike else alike
    found = list(dict.fromkeys(found))
    if len(found) < 2 and (not found or found[0] in space.axes):
        raise SpecError(
            f"tie= takes groups of at least two axes, but {group!r} is of one axis, which there is "
            "nothing to tie to; write tie=[('first', 'second')] or a pattern of several axes such "
            "as tie='layers.*.mlp'"
        )
    return found


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
    try:
        list(model.modules())
    except TypeError as error:
        raise ModelError(
            f"torch cannot list the modules of {type(model).__name__}: {error}; give the class "
            "that defines __eq__ (a dataclass does) `__hash__ = nn.Module.__hash__`"
        ) from error


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
    """Return a copy of the model, with tensors of its own.

    Raises:
        ModelError: it cannot be copied, or its copy is not the same model; it is a wrapper, or has
            weights that cannot be cut into views.
    """
    refuse_unsuitable(model)
    try:
        twin = duplicate(model)
    except RecursionError as error:
        raise ModelError(
            f"{type(model).__name__} is nested too deeply to be copied; raise Python's limit with "
            "sys.setrecursionlimit, or nest fewer modules"
        ) from error
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be copied: {_uncopyable(model)}{error}; a model must "
            "survive copy.deepcopy: take the attribute out while the supernet is made, make it in "
            "forward, or give its class a __deepcopy__"
        ) from error
    _check_copy(model, twin)
    return twin


def _uncopyable(model: nn.Module) -> str:
    """Return which attribute cannot be copied, as the beginning of a sentence."""
    memo: dict[int, Any] = {id(module): module for module in model.modules()}
    for tensor in (*model.parameters(), *model.buffers(), *loose_tensors(model)):
        memo[id(tensor)] = tensor
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            try:
                copy.deepcopy(value, dict(memo))
            except Exception:  # noqa: BLE001  (the user's code runs here)
                name = f"{path}.{key}" if path else key
                return f"its attribute {name!r} (a {type(value).__name__}) fails with "
    return ""


def _check_copy(model: nn.Module, twin: nn.Module) -> None:
    """Raise `ModelError` unless a copy has all that the model has, and tensors of its own."""
    for (path, one), other in zip(model.named_modules(), twin.modules(), strict=False):
        for name in _slots(type(one)):
            if hasattr(one, name) and not hasattr(other, name):
                raise ModelError(
                    f"{type(one).__name__} keeps {f'{path}.{name}' if path else name!r} in "
                    "__slots__, which a copy of a module loses; leave __slots__ out of its class"
                )
    kinds: set[Any] = {type(module) for module in model.modules()}
    if all(map(is_ordinary, kinds)):
        return
    given, own = tensors_of(model), tensors_of(twin)
    for name, tensor in given.items():
        if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
            continue
        if tensor is own.get(name):
            raise ModelError(
                f"a copy of {type(model).__name__} shares {name!r} with the model, which would be "
                "changed along; let its __deepcopy__ (or that of the module inside) copy weights"
            )
        if name not in own or not _same(tensor, own[name]):
            raise ModelError(
                f"a copy of {type(model).__name__} has other weights than the model itself "
                f"({name!r}); let its __deepcopy__ or __reduce_ex__ copy them"
            )


def _slots(kind: type) -> Iterator[str]:
    for base in kind.__mro__:
        names = vars(base).get("__slots__", ())
        yield from [names] if isinstance(names, str) else names


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | (one != one)).all())


def check_skeleton(model: nn.Module) -> None:
    """Raise `ModelError` unless a copy can be given other tensors, as subnets are."""
    tensors = tensors_of(model)
    memo: dict[int, Any] = {id(tensor): tensor for tensor in tensors.values()}
    memo.update({id(tensor): tensor for tensor in loose_tensors(model)})
    probe = tensors_of(copy_skeleton(model, memo))
    for name, tensor in tensors.items():
        if probe.get(name) is not tensor:
            raise ModelError(
                f"{type(model).__name__} cannot be copied with slices for its weights: its copy "
                f"has new tensors ({name!r}); let its __deepcopy__ or __reduce_ex__ (or that of "
                "the module inside) copy its attributes with the memo that it is given"
            )


class _Strangers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which tensors of the user's own model are used while a copy of it runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = {id(tensor): name for name, tensor in tensors_of(model).items()}
        self.met: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the op as it is."""
        self.met += [
            self.names[id(leaf)] for leaf in tree_leaves((args, kwargs)) if id(leaf) in self.names
        ]
        return func(*args, **(kwargs or {}))


def first_run(
    model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], given: nn.Module
) -> None:
    """Run once, so that lazy modules are built and the user's own errors are told apart.

    Args:
        model: the copy, in evaluation mode.
        args: positional inputs.
        kwargs: keyword inputs.
        given: the user's model, of which it is a copy.

    Raises:
        ModelError: the model fails, returns nothing to prove, or does not run by itself.
    """
    kind = type(model).__name__
    called: list[nn.Module] = []
    handle = model.register_forward_pre_hook(lambda module, _: called.append(module))
    strangers = _Strangers(given)
    try:
        returned = run(model, args, kwargs, strangers)
    except Exception as error:
        raise ModelError(
            f"{kind} fails in its own forward on the example inputs "
            f"(shapes {_shapes((args, kwargs))}): {brief(error)}; give Supernet inputs that the "
            f"model accepts{_input_hint(args)}"
        ) from error
    finally:
        handle.remove()
    if strangers.met:
        raise ModelError(
            f"a copy of {kind} still refers to the model that was given (it used that one's "
            f"{strangers.met[0]!r}), through a closure such as a lambda over self or a wrapped or "
            "compiled forward, so no subnet could have weights of its own; use methods in place "
            "of closures, and compile subnets rather than the model"
        )
    if not called:
        raise ModelError(
            f"{kind} overrides __call__ without nn.Module's, so that no hook runs, on which "
            "subnets rely; put that code into forward"
        )
    _check_returned(returned, kind, (args, kwargs))


def _check_returned(returned: Any, kind: str, inputs: Any) -> None:
    """Raise `ModelError` unless a model of a kind returns what subnets can be compared by."""
    tensors = tensors_in(returned)
    if not tensors:
        raise ModelError(
            f"{kind} returns no tensor (it returns {type(returned).__name__}), so "
            "nothing can be proven; return tensors, or pick them with outputs="
        )
    if any(tensor.is_nested for tensor in tensors):
        raise ModelError(
            f"{kind} returns a nested tensor, whose entries cannot be compared one by one; return "
            "its values() or a padded tensor"
        )
    if not any(tensor.numel() for tensor in tensors):
        raise ModelError(
            f"{kind} returns only empty tensors on the example inputs (shapes "
            f"{_shapes(inputs)}), so nothing can be proven; give inputs of at least one example"
        )


def _shapes(inputs: Any) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors_in(inputs)]


def _input_hint(args: Sequence[Any]) -> str:
    """Return what to do about inputs of a kind that models rarely take; "" for all others."""
    for value in args:
        kind = type(value)
        if isinstance(value, Mapping):
            return ": keyword inputs go into kwargs=, as in Supernet(model, kwargs=batch)"
        if kind.__module__.partition(".")[0] == "numpy":
            return f": tensors, so torch.from_numpy(...) of the {kind.__name__}"
        if isinstance(value, (tuple, list)) and all(isinstance(each, int) for each in value):
            return f": tensors, so torch.randn{tuple(value)} where a shape is given"
    return ""


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
    trial = duplicate(model).train()
    before = {name: (buffer, buffer._version) for name, buffer in trial.named_buffers()}
    with warnings.catch_warnings():
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
