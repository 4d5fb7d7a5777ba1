"""Plan: which backend runs each entry of a menu, by what was measured on this device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from nestling.backends import AUTO, find, installed
from nestling.costs.latency import Latency
from nestling.profile import Key, Profile

EAGER = "eager"
CLOSE = 1.01  # so much slower a backend may be where it needs less memory
Tables = Mapping[str, Mapping[str, Latency]]
"""Latencies by backend and entry."""


def tables_for(profile: Profile, key: Callable[[str], Key], backend: str) -> Tables:
    """Return what a profile says of the backends that may run a call.

    Args:
        profile: of the menu.
        key: returns under which conditions a backend would run the call.
        backend: the only one, or "auto" for all that are installed.
    """
    asked = installed() if backend == AUTO else [EAGER, backend]
    found = {name: profile.tables.get(key(name), {}) for name in asked}
    return {name: table for name, table in found.items() if table}


def plan(entries: Iterable[str], tables: Tables, backend: str) -> dict[str, str]:
    """Return the backend of every entry: the fastest as measured; eager where nothing was.

    Where several are as fast but for a percent, the one that needs least memory takes it: views,
    then packed copies, then a runtime's own form.

    Example:
        >>> quick, slow = Latency(1.0, 0.9, 1.1, 20), Latency(2.0, 1.9, 2.1, 20)
        >>> plan(["full"], {"eager": {"full": slow}, "packed": {"full": quick}}, "auto")
        {'full': 'packed'}
    """
    if backend != AUTO:
        return dict.fromkeys(entries, backend)
    return {entry: _fastest(entry, tables) for entry in entries}


def _fastest(entry: str, tables: Tables) -> str:
    known = {name: table[entry].median for name, table in tables.items() if entry in table}
    if not known:
        return EAGER
    limit = CLOSE * min(known.values())
    close = [name for name, median in known.items() if median <= limit]
    return min(close, key=lambda name: (_weight(name), known[name]))


def _weight(backend: str) -> int:
    """Return how much a backend keeps beside the shared weights: nothing, a copy, or more."""
    found = find(backend)
    return found.copies + bool(found.bound)
