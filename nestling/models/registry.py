"""Registry: which builders exist, and how a module was built.

`@builder` makes a plain function known by its name and lets the module it returns remember the
call. A model file stores that name and those arguments, never code: `build` makes the same
architecture from them.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, get_type_hints

import torch
from torch import nn

from nestling.errors import ModelError, did_you_mean
from nestling.models.arguments import Json, checked
from nestling.models.initialize import initialize

P = ParamSpec("P")
M = TypeVar("M", bound=nn.Module)

MOST_PARAMETERS = 2**28
"""The largest net a builder makes, in parameters: 1 GiB of float32."""

_BUILDERS: dict[str, Callable[..., nn.Module]] = {}


@dataclass(frozen=True)
class Built:
    """The call that made a module: a builder's name and all its arguments, as JSON data."""

    name: str
    arguments: dict[str, Json]


def builder(make: Callable[P, M]) -> Callable[P, M]:
    """Register a function that describes an architecture, under its own name.

    The wrapped function checks every argument against its annotation (see `arguments`), measures
    the net before any memory is taken for it, initialises it with `initialize`, and sets
    `nestling_builder` on it. What a builder has made once, `build` can therefore make again.

    Args:
        make: a function of annotated arguments, all with defaults, that returns a module.

    Raises:
        ModelError: the name is taken. The wrapped function raises it for arguments that are
            unknown or out of range, and for nets of more than `MOST_PARAMETERS`.

    Example:
        >>> from nestling.models import built, resnet20
        >>> built(resnet20(width=8)).arguments["width"]
        8
    """
    name = make.__name__
    if name in _BUILDERS:
        raise ModelError(f"a builder named {name!r} exists already: names are unique")
    signature = inspect.signature(make)
    hints = get_type_hints(make, include_extras=True)

    @functools.wraps(make)
    def call(*args: P.args, **kwargs: P.kwargs) -> M:
        arguments = _bind(name, signature, hints, args, kwargs)
        chosen: dict[str, Any] = dict(arguments)
        with torch.device("meta"):
            _check_size(name, make(**chosen))  # type: ignore[call-arg]
        module = initialize(make(**chosen))  # type: ignore[call-arg]
        module.nestling_builder = Built(name, arguments)  # type: ignore[assignment]
        return module

    _BUILDERS[name] = call
    return call


def build(name: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Make a net from the name and the arguments of its builder.

    Both may come from a file by a stranger: whatever they hold, the result is a net of at most
    `MOST_PARAMETERS` or one error.

    Args:
        name: a builder's name, one of `names()`.
        arguments: its arguments; those left out take their defaults.

    Returns:
        The net, newly initialised, on the default device.

    Raises:
        ModelError: the name is unknown, or the arguments are unknown, wrong or too large.

    Example:
        >>> net = build("mlp", {"in_features": 64, "hidden": [32]})
        >>> built(net).arguments["hidden"]
        [32]
    """
    if not isinstance(name, str) or name not in _BUILDERS:
        near = did_you_mean(name[:64], _BUILDERS) if isinstance(name, str) else ""
        raise ModelError(
            f"no builder is named {reprlib.repr(name)}: choose one of {', '.join(names())}{near}"
        )
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, Mapping) or not all(isinstance(key, str) for key in arguments):
        raise ModelError(
            f"the arguments of {name} are {reprlib.repr(arguments)}: "
            "they must be a mapping of argument names to values"
        )
    try:
        return _BUILDERS[name](**arguments)
    except ModelError:
        raise
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"{name} cannot be built with {reprlib.repr(dict(arguments))}: {error}"
        ) from error


def names() -> list[str]:
    """Return the names of all builders, sorted.

    Example:
        >>> "resnet20" in names()
        True
    """
    return sorted(_BUILDERS)


def built(module: nn.Module) -> Built | None:
    """Return how a module was built, or None if no builder of ours made it.

    It tells of the call alone: layers that were replaced afterwards are not noticed.

    Example:
        >>> from torch import nn
        >>> built(nn.Linear(2, 2)) is None
        True
    """
    found = getattr(module, "nestling_builder", None)
    return found if isinstance(found, Built) else None


def _bind(
    name: str,
    signature: inspect.Signature,
    hints: Mapping[str, Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> dict[str, Json]:
    """Return all arguments of a call, defaults applied, as checked JSON data."""
    known = list(signature.parameters)
    for key in kwargs:
        if key not in signature.parameters:
            raise ModelError(
                f"{name} has no argument {reprlib.repr(key)}: it takes {', '.join(known)}"
                + did_you_mean(key[:64], known)
            )
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ModelError(f"{name}: {error}; it takes {', '.join(known)}") from error
    bound.apply_defaults()
    return {
        key: checked(f"argument {key!r} of {name}", hints[key], value)
        for key, value in bound.arguments.items()
    }


def _check_size(name: str, skeleton: nn.Module) -> None:
    size = sum(t.numel() for t in itertools.chain(skeleton.parameters(), skeleton.buffers()))
    if size > MOST_PARAMETERS:
        raise ModelError(
            f"{name} would have {size:,} parameters: "
            f"a builder makes at most {MOST_PARAMETERS:,}; choose smaller sizes"
        )
