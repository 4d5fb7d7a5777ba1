"""Options: what the options of a function may be, written where their types are written.

A plug-in's signature declares its options once, `low: Annotated[float, Checked(check_low)] = 0.25`,
and `check_values` holds given values against it: before data is read or a model looked at, and with
no second list of what there is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias, get_args, get_origin, get_type_hints

from nestling.errors import ModelError, did_you_mean


@dataclass(frozen=True)
class Rule:
    """What one value must be, where no other option counts.

    Attributes:
        words: the rule, as in "epochs= is a whole number of at least 1".
        fits: whether a value keeps it.
        known: the values that there are, where they are few: a near miss is suggested.
    """

    words: str
    fits: Callable[[Any], bool]
    known: tuple[str, ...] = ()

    def check(self, name: str, given: Mapping[str, Any]) -> None:
        """Check the option of a name.

        Raises:
            ModelError: it breaks the rule.
        """
        value = given[name]
        if not self.fits(value):
            near = did_you_mean(value, self.known) if isinstance(value, str) else ""
            raise ModelError(f"{name}= is {self.words}, but it is {value!r:.80}{near}")


@dataclass(frozen=True)
class Checked:
    """A function that raises where an option is none, alone or together with others.

    Attributes:
        call: called with the option and those beside it, by their names.
        beside: names of options that it looks at too.
    """

    call: Callable[..., Any]
    beside: tuple[str, ...] = ()

    def check(self, name: str, given: Mapping[str, Any]) -> None:
        """Check the option of a name.

        Raises:
            NestlingError: as the function has it.
        """
        self.call(**{each: given[each] for each in (name, *self.beside)})


def whole(least: int, *, none: bool = False) -> Rule:
    """Return the rule of a whole number of at least `least`, or None where that is allowed."""
    words = f"a whole number of at least {least}{', or None' if none else ''}"

    def fits(value: Any) -> bool:
        if value is None:
            return none
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    return Rule(words, fits)


def one_of(known: Iterable[str]) -> Rule:
    """Return the rule of one of some words."""
    words = tuple(known)
    return Rule(f"one of {', '.join(words)}", lambda value: value in words, words)


Switch: TypeAlias = Annotated[bool, Rule("True or False", lambda value: isinstance(value, bool))]

LossRule = Rule(
    "a function from (outputs, targets or the teacher's outputs) to a loss, or None for the usual",
    lambda value: value is None or callable(value),
)

DataRule = Rule(
    "batches that can be read again and again, or None for the usual ones",
    lambda value: value is None or isinstance(value, Iterable),
)

EpochsRule = Rule(
    "batches that can be read again and again and have a length, or None for the usual ones",
    lambda value: value is None or (isinstance(value, Iterable) and isinstance(value, Sized)),
)

KindsRule = Rule(
    'a list of kinds of axes, such as ["channels", "depth"], or None for all',
    lambda value: (
        value is None
        or (
            isinstance(value, list | tuple | set | frozenset)
            and bool(value)
            and all(isinstance(kind, str) for kind in value)
        )
    ),
)


def check_values(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Check the values of a function's options, as its annotations have it.

    Args:
        function: whose keyword-only parameters are options.
        given: options by name, all of them known; the others have their defaults.

    Raises:
        NestlingError: one that is none.

    Example:
        >>> check_values(nestling.methods.find("uniform"), {"low": 2})
        Traceback (most recent call last):
        nestling.errors.SpecError: low= is a width above 0 and at most 1, but it is 2
    """
    parameters = inspect.signature(function).parameters.values()
    options = [each for each in parameters if each.kind is each.KEYWORD_ONLY]
    values = {each.name: each.default for each in options if each.default is not each.empty}
    values |= given
    types = get_type_hints(function, include_extras=True) if options else {}
    for option in options:
        for rule in _rules(types.get(option.name)) if option.name in values else ():
            rule.check(option.name, values)


def _rules(annotation: Any) -> list[Rule | Checked]:
    if get_origin(annotation) is not Annotated:
        return []
    return [each for each in get_args(annotation)[1:] if isinstance(each, Rule | Checked)]
