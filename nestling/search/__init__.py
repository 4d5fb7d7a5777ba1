"""Searches: which subnets are worth having. One file each, found by its name.

A search is a generator function of a space and options. It yields requests (`Score`, `Pick`,
`Tune`, `Cost`), is sent the answers, and returns the specs that it has found with their accuracies;
`conduct` runs it. A new file with a function of its name is a new search; nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nestling.catalogue import Catalogue
from nestling.errors import ModelError
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
    "check_given",
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
names, check_options = _ALL.names, _ALL.check_options
find: Callable[[str], Callable[..., Search]] = _ALL.find


def check_given(search: str, search_options: Mapping[str, Any] | None) -> None:
    """Check a search by name with its options, as far as that is known without a net.

    Raises:
        ModelError: no such search or option, options that are no mapping, or "path", which needs
            what no method that searches has.
        NestlingError: a value that the option's annotation does not allow.
    """
    if search == "path":
        raise ModelError(
            "the search 'path' needs the widths that a ranker has recorded; use the method 'norms'"
        )
    made = find(search)
    if search_options is not None and not isinstance(search_options, Mapping):
        raise ModelError(
            f"search_options= is a mapping of names to values, such as {{'groups': 4}}, not "
            f"{search_options!r:.80}"
        )
    check_options(search, made, search_options or {})
