"""Methods: the named recipes. A method is a file here with a function of its name.

A recipe puts a ranker, an objective and a search together: given a `Run`, it trains and returns the
subnets to offer, by name. A new file is found by its name; nothing else changes.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import nn

from nestling.errors import ModelError, did_you_mean
from nestling.spec import Spec

Recipe: TypeAlias = Callable[..., Mapping[str, tuple[Spec, nn.Module]]]


def names() -> list[str]:
    """Return the names of all methods, as `method=` takes them."""
    return sorted(info.name.replace("_", "-") for info in pkgutil.iter_modules(__path__))


def find(name: str) -> Recipe:
    """Return the recipe of a name.

    Raises:
        ModelError: there is no such method.
    """
    if name not in names():
        near = did_you_mean(str(name), names())
        raise ModelError(f"unknown method {name!r}{near}; the methods are {', '.join(names())}")
    module_name = name.replace("-", "_")
    module: Any = importlib.import_module(f"{__name__}.{module_name}")
    recipe: Recipe = getattr(module, module_name)
    return recipe


def options(recipe: Recipe) -> list[str]:
    """Return the names of the options that a recipe takes, such as `fractions` of "uniform"."""
    parameters = inspect.signature(recipe).parameters.values()
    return [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]


def check_options(name: str, recipe: Recipe, given: Mapping[str, Any]) -> None:
    """Check that a recipe takes all of the options.

    Raises:
        ModelError: it does not.
    """
    known = options(recipe)
    for option in given:
        if option not in known:
            near = did_you_mean(option, known)
            raise ModelError(
                f"the method {name!r} has no option {option!r}{near}; its options are "
                f"{', '.join(known) or 'none'}"
            )
