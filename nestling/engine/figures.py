"""Figures: what a loaded model's entries cost on this device, from its profile."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from nestling.backends import AUTO
from nestling.entry import score
from nestling.errors import BudgetError
from nestling.governor import Forecast
from nestling.runtime import LoadedModel

BATCHES = (1, 2, 4, 8, 16, 32)  # that are measured where nothing is known
SECONDS = 0.3  # longest time to measure one entry at one batch


def measured(model: LoadedModel, batches: Collection[int] = BATCHES) -> LoadedModel:
    """Return the model with latencies measured here, of each batch that is not known yet."""
    known = known_batches(model)
    for batch in batches:
        if batch not in known:
            model = model.measured(batch, seconds=SECONDS)
    return model


def forecast(
    model: LoadedModel,
    without: Collection[str] = (),
    fixed: Mapping[str, Collection[int]] | None = None,
) -> Forecast:
    """Return the forecast of the entries on offer, from what was measured on this device.

    Args:
        model: loaded, with its profile.
        without: names of entries that are left out.
        fixed: name -> batches to which fewer examples are filled up; see `Filling`.

    Raises:
        BudgetError: nothing was measured here in the way that the model runs, with one example.
    """
    menu = model.menu
    tables = {batch: model.latencies(batch) for batch in known_batches(model)}
    if 1 not in tables:
        model.latencies(1)  # refuses, with what was measured and the command
    offered = [entry for entry in menu if entry.offered and entry.name not in without]
    if not offered:
        raise BudgetError(
            "no entry of the menu is on offer on this device; see `nestling info FILE` for why"
        )
    space = menu.net.space
    whole = max(1, space.macs(space.full))
    costs = {
        "fraction": {entry.name: entry.macs / whole for entry in offered},
        "macs": {entry.name: float(entry.macs) for entry in offered},
        "params": {entry.name: float(entry.params) for entry in offered},
        "bytes": {entry.name: float(entry.bytes) for entry in offered},
    }
    times = {
        batch: {entry.name: table[entry.name].median for entry in offered if entry.name in table}
        for batch, table in tables.items()
    }
    scores = {entry.name: score(entry) for entry in offered}
    return Forecast.of(scores, times, costs=costs, joules=_joules(model) or None, fixed=fixed)


def known_batches(model: LoadedModel) -> list[int]:
    """Return the batches that were measured on this device, on the backends that the model uses."""
    menu = model.menu
    keys = menu.profile.tables
    here = {key.batch for key in keys if key == menu.key(key.batch, key.backend)}
    if model.backend != AUTO:
        here = {batch for batch in here if menu.key(batch, model.backend) in keys}
    return sorted(here)


def _joules(model: LoadedModel) -> dict[str, float]:
    """Return the joules of one example by entry, where they were measured as the model runs it."""
    menu, found = model.menu, dict[str, float]()
    for entry in menu:
        upkeep = menu.profile.upkeeps.get(menu.key(1, model.backend_of(entry.name)))
        if upkeep is not None and entry.name in upkeep.joules:
            found[entry.name] = upkeep.joules[entry.name]
    return found
