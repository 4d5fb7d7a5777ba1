"""Methods: the named recipes. A method is a file here with a function of its name.

A recipe puts a ranker, an objective and a search together: given a `Run`, it trains and returns the
subnets to offer, by name. A new file is found by its name; nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import nn

from nestling import catalogue
from nestling.catalogue import Catalogue
from nestling.spec import Spec

Recipe: TypeAlias = Callable[..., Mapping[str, tuple[Spec, nn.Module]]]


_ALL = Catalogue(__name__, "method")


def names() -> list[str]:
    """Return the names of all methods, as `method=` takes them."""
    return _ALL.names()


def find(name: str) -> Recipe:
    """Return the recipe of a name.

    Raises:
        ModelError: there is no such method.
    """
    return _ALL.find(name)


def options(recipe: Recipe) -> list[str]:
    """Return the names of the options that a recipe takes, such as `fractions` of "uniform"."""
    return catalogue.options(recipe)


def check_options(name: str, recipe: Recipe, given: Mapping[str, Any]) -> None:
    """Check that a recipe takes all of the options, with these values.

    Raises:
        ModelError: it has no such option.
        NestlingError: a value that the option's annotation does not allow.
    """
    _ALL.check_options(name, recipe, given)
