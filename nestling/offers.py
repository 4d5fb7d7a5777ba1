"""Offers: which entries of a menu are worth having on a device, and why the others are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from nestling.coding import is_of_bits
from nestling.costs.latency import Latency
from nestling.entry import Entry, is_as_good, score
from nestling.narrowing import Narrowing


def settle_offers(
    entries: Sequence[Entry], table: Mapping[str, Latency], narrowing: Narrowing | None = None
) -> tuple[Entry, ...]:
    """Return the entries with `offered` False, and the reason, where another one takes their place.

    An entry is not offered where another one is clearly faster (the 95 % intervals of the medians
    do not overlap) and at least as good, and not by luck (`nestling.entry.is_as_good`); or where
    the narrowing shows it to be no faster than a larger one of the menu, which is at least as good
    and not measured as slower. It stays listed, so that a noisy machine does not change the menu's
    length. At least one entry is always offered. One in fewer bits is there for its size, and for
    runtimes of integers; it gives way only to another of as few, whatever its latency here.
    """
    slower = {entry.name: _slower(entry, entries, table) for entry in entries}
    standing = [entry for entry in entries if not slower[entry.name]]

    def settled(entry: Entry) -> Entry:
        why = slower[entry.name] or _idle(entry, standing, table, narrowing)
        return replace(entry, offered=not why, reason=why)

    return tuple(map(settled, entries))


def _slower(entry: Entry, entries: Sequence[Entry], table: Mapping[str, Latency]) -> str:
    """Return which other entry is clearly faster and at least as good; empty if there is none."""
    mine = table.get(entry.name)
    rivals = [
        other
        for other in entries
        if mine is not None
        and other is not entry
        and other.name in table
        and table[other.name].high < mine.low
        and not _in_fewer_bits(entry, other)
        and is_as_good(other, entry)
    ]
    if mine is None or not rivals:
        return ""
    best = max(rivals, key=score)
    times = f"{table[best.name].median:.3g} ms, not {mine.median:.3g}"
    return f"slower than {best.name} ({times}) and no better"


def _in_fewer_bits(entry: Entry, other: Entry) -> bool:
    """Return whether weights or inputs of an entry are in fewer bits than those of another one."""
    bits = (name for name in entry.spec if is_of_bits(name))
    return any(entry.spec[name] < other.spec[name] for name in bits)


def _idle(
    entry: Entry,
    entries: Sequence[Entry],
    table: Mapping[str, Latency],
    narrowing: Narrowing | None,
) -> str:
    """Return which larger entry takes the place of one that is no faster; empty if none does.

    A narrowing rounds the two to the same subnet, so that a menu made here would have one of them.
    """
    used = dict(entry.spec) if narrowing is None else narrowing.used(entry.spec)
    if narrowing is None or used == dict(entry.spec):
        return ""
    for other in sorted(entries, key=lambda each: each.macs):
        takes = (
            other.macs > entry.macs
            and all(other.spec[axis] >= count for axis, count in entry.spec.items())
            and narrowing.used(other.spec) == used
            and is_as_good(other, entry)
        )
        times = table.get(entry.name), table.get(other.name)
        if takes and (times[0] is None or times[1] is None or times[1].low <= times[0].high):
            return f"no faster than {other.name} here and no better"
    return ""
