"""Searches: which subnets are worth having. One file each, found by its name.

A search is a generator function of a space and options. It yields requests (`Score`, `Pick`,
`Tune`, `Cost`), is sent the answers, and returns the specs that it has found with their accuracies;
`conduct` runs it. A new file with a function of its name is a new search; nothing else changes.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable

from nestling.errors import ModelError, did_you_mean
from nestling.search.driver import conduct
from nestling.search.evolution import evolution
from nestling.search.greedy import greedy
from nestling.search.path import path
from nestling.search.pricing import measured_latency
from nestling.search.progressive import progressive, reselected
from nestling.search.request import (
    Choice,
    Cost,
    Found,
    Pick,
    Progress,
    Score,
    Search,
    Tune,
    front,
)
from nestling.search.scoring import Scorer
from nestling.search.tuning import Tuner
from nestling.search.uniform import ladder, uniform

__all__ = [
    "Choice",
    "Cost",
    "Found",
    "Pick",
    "Progress",
    "Score",
    "Scorer",
    "Tune",
    "Tuner",
    "conduct",
    "evolution",
    "find",
    "front",
    "greedy",
    "ladder",
    "measured_latency",
    "names",
    "path",
    "progressive",
    "reselected",
    "uniform",
]


def names() -> list[str]:
    """Return the names of all searches.

    Example:
        >>> nestling.search.names()
        ['evolution', 'greedy', 'path', 'progressive', 'uniform']
    """
    found = []
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        if inspect.isgeneratorfunction(getattr(module, info.name, None)):
            found.append(info.name)
    return sorted(found)


def find(name: str) -> Callable[..., Search]:
    """Return the search of a name.

    Raises:
        ModelError: there is no such search.
    """
    if name not in names():
        near = did_you_mean(str(name), names())
        raise ModelError(f"unknown search {name!r}{near}; the searches are {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    search: Callable[..., Search] = getattr(module, name)
    return search
