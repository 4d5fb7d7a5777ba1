"""Recipes: the methods of the library, and those of rivals that it has not, by name."""

from __future__ import annotations

from nestling import methods
from nestling.catalogue import Catalogue
from nestling.methods import Recipe

_RIVALS = Catalogue("comparison.rivals", "rival")


def find(name: str) -> Recipe:
    """Return the recipe of a name.

    Raises:
        ModelError: there is none.
    """
    return _RIVALS.find(name) if name in _RIVALS.names() else methods.find(name)


def is_rival(name: str) -> bool:
    """Return whether a recipe is none of the library."""
    return name in _RIVALS.names()
