"""Arguments of builders: their annotations say what is allowed, and are enforced.

A model file names its builder and the builder's arguments, so these come from strangers. A builder
therefore writes its bounds where it writes its types, `width: Annotated[int, Between(1, 4096)]`,
and `checked` turns a value into the plain JSON value that is stored, or refuses it.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, Literal, get_args, get_origin

from nestling.errors import ModelError, did_you_mean

Json = bool | int | float | str | list["Json"]


@dataclass(frozen=True)
class Between:
    """The closed range in which a number, or the length of a list, must lie."""

    low: float
    high: float


Classes = Annotated[int, Between(1, 100_000)]
Width = Annotated[int, Between(1, 4096)]
Channels = Annotated[int, Between(1, 4096)]


def checked(what: str, annotation: Any, value: Any) -> Json:
    """Return `value` as plain JSON data if it fits `annotation`.

    Understood are `bool`, `int`, `float`, `Literal` of strings and `Sequence` of these, the last
    four also within `Annotated[..., Between(low, high)]`. NumPy's numbers become Python's, tuples
    become lists.

    Args:
        what: how an error calls the value, such as `"argument 'width' of resnet20"`.
        annotation: the type hint to meet.
        value: what was given, by a user or a file.

    Raises:
        ModelError: the value is of another type or out of its range.
        TypeError: the annotation is none of those understood (a mistake in the builder).

    Example:
        >>> checked("argument 'width'", Annotated[int, Between(1, 4096)], 16)
        16
    """
    bounds = None
    if get_origin(annotation) is Annotated:
        annotation, bounds = get_args(annotation)
    if get_origin(annotation) is Literal:
        return _choice(what, get_args(annotation), value)
    if get_origin(annotation) is Sequence:
        return _list(what, get_args(annotation)[0], bounds, value)
    if annotation is bool:
        if not isinstance(value, bool):
            raise ModelError(f"{what} is {reprlib.repr(value)}: it takes True or False")
        return value
    if annotation is int or annotation is float:
        return _number(what, annotation, bounds, value)
    raise TypeError(f"{what} is annotated {annotation}, which cannot be checked")


def _choice(what: str, choices: tuple[str, ...], value: Any) -> str:
    if isinstance(value, str) and value in choices:
        return value
    near = did_you_mean(value[:64], choices) if isinstance(value, str) else ""
    raise ModelError(f"{what} is {reprlib.repr(value)}: choose one of {choices}{near}")


def _number(what: str, kind: type[int] | type[float], bounds: Between | None, value: Any) -> Json:
    fits = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    # Compared before it is converted: float(10**400) overflows, and nan fails every comparison.
    if fits and (bounds is None or bounds.low <= value <= bounds.high):
        return kind(value)
    noun = "a whole number" if kind is int else "a number"
    span = f" from {bounds.low} to {bounds.high}" if bounds else ""
    raise ModelError(f"{what} is {reprlib.repr(value)}: it takes {noun}{span}")


def _list(what: str, element: Any, bounds: Between | None, value: Any) -> list[Json]:
    if not isinstance(value, list | tuple):
        raise ModelError(f"{what} is {reprlib.repr(value)}: it takes a list or a tuple")
    if bounds and not bounds.low <= len(value) <= bounds.high:
        raise ModelError(
            f"{what} has {len(value)} entries: it takes from {bounds.low} to {bounds.high}"
        )
    return [checked(f"entry {i} of {what}", element, entry) for i, entry in enumerate(value)]
