"""Searches: which subnets are worth having. One file each, found by its name.

A search is a generator function of a space and options. It yields requests (`Score`, `Pick`,
`Tune`, `Cost`), is sent the answers, and returns the specs that it has found with their accuracies;
`conduct` runs it. A new file with a function of its name is a new search; nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nestling.catalogue import Catalogue
from nestling.search.driver import conduct
from nestling.search.evolution import evolution
from nestling.search.greedy import greedy
from nestling.search.path import path
from nestling.search.pricing import check_cost, cost_of, costs, measured_latency
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
    "check_cost",
    "check_options",
    "conduct",
    "cost_of",
    "costs",
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


_ALL = Catalogue(__name__, "search", plural="searches", generator=True)


def names() -> list[str]:
    """Return the names of all searches.

    Example:
        >>> nestling.search.names()
        ['evolution', 'greedy', 'path', 'progressive', 'uniform']
    """
    return _ALL.names()


def find(name: str) -> Callable[..., Search]:
    """Return the search of a name.

    Raises:
        ModelError: there is no such search.
    """
    return _ALL.find(name)


def check_options(name: str, search: Callable[..., Search], given: Mapping[str, Any]) -> None:
    """Check that a search takes all of the options.

    Raises:
        ModelError: it does not.
    """
    _ALL.check_options(name, search, given)
