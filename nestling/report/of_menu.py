"""The page of a menu: what the reports show of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nestling.entry import Entry
from nestling.menu import Menu
from nestling.profile import Key, Profile, machine
from nestling.report.own import Own
from nestling.report.rows import Page, Row
from nestling.report.units import human_list


def page_of(
    menu: Menu,
    title: str,
    *,
    key: Key | None = None,
    facts: Mapping[str, str] | None = None,
    own: Own | None = None,
) -> Page:
    """Return what the table, the pictures and the report show of a menu.

    Args:
        menu: with its figures.
        title: the head line.
        key: which profile to show; without one, or where it was not measured, no latencies.
        facts: how the menu was made, beyond what it says itself.
        own: the function that makes the model, where it is of the user's own class.

    Example:
        >>> print(nestling.report.plain(page_of(menu, "my net", key=menu.key(batch=1))))
    """
    table = menu.profile.tables.get(key, {}) if key is not None else {}
    measured = menu.profile.machines.get(key, {}) if key is not None else {}

    def row(entry: Entry) -> Row:
        found = table.get(entry.name)
        score = entry.accuracy
        return Row(
            entry.name,
            entry.macs,
            entry.params,
            entry.bytes,
            score if score is not None and 0 <= score <= 1 else None,
            None if found is None else (found.median, found.low, found.high),
            entry.offered,
            dict(entry.spec),
            entry.reason,
        )

    sizes = {axis.name: axis.size for axis in menu.net.space.axes.values()}
    ranked = sorted(menu, key=lambda entry: -entry.macs)
    told = {name: str(value) for name, value in menu.facts.items() if isinstance(value, str | int)}
    told |= {name: numbers for name in ("mean", "std") if (numbers := human_list(menu.facts, name))}
    conditions = (
        {"batch": str(key.batch), "threads": str(key.threads)} if key is not None and table else {}
    )
    return Page(
        title,
        [row(entry) for entry in ranked],
        sizes,
        menu.metric,
        dict(measured) or machine(),
        {**told, **(facts or {}), **conditions},
        narrowed_lines(menu.profile, sizes, [entry.spec for entry in menu], key),
        own,
    )


def narrowed_lines(
    profile: Profile,
    sizes: Mapping[str, int],
    specs: Sequence[Mapping[str, int]],
    key: Key | None = None,
) -> list[str]:
    """Return which counts are not worth having, a line each.

    Args:
        profile: with the narrowings.
        sizes: axis name -> units of the full net.
        specs: those on offer.
        key: of the figures beside it; lines of other conditions name theirs.
    """
    lines = []
    for each, narrowing in profile.narrowings.items():
        conditions = "" if each == key else f" ({each})"
        lines += [f"{line}{conditions}" for line in narrowing.told(sizes, specs)]
    return lines
