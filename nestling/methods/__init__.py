"""Methods: the named recipes. A method is a file here with a function of its name.

A recipe puts a ranker, an objective and a search together: given a `Run`, it trains and returns the
subnets to offer, by name. A new file is found by its name; nothing else changes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import nn

from nestling import catalogue
from nestling.catalogue import Catalogue
from nestling.spec import Spec
from nestling.training import Run

Recipe: TypeAlias = Callable[..., Mapping[str, tuple[Spec, nn.Module]]]

_ALL = Catalogue(__name__, "method")
names, options = _ALL.names, catalogue.options
check_options = _ALL.check_options


def find(name: str) -> Recipe:
    """Return the recipe of a name; when it is called, it checks its options first, as `fit` does.

    Raises:
        ModelError: there is none.

    Example:
        >>> modules = nestling.methods.find("uniform")(run, fractions=(1.0, 0.5))
    """
    recipe: Recipe = _ALL.find(name)

    @functools.wraps(recipe)
    def checked(run: Run, **given: Any) -> Mapping[str, tuple[Spec, nn.Module]]:
        check_options(name, recipe, given)
        return recipe(run, **given)

    return checked
