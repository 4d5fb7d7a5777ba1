"""Fixed: one entry, by its name or the best within a budget, whatever the load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nestling.errors import BudgetError, did_you_mean
from nestling.governor.checks import positive
from nestling.governor.forecast import Forecast
from nestling.governor.records import Policy


def fixed(
    forecast: Forecast,
    *,
    subnet: str | None = None,
    fraction: float | None = None,
    latency_ms: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    bytes: float | None = None,
) -> Policy:
    """Return the policy that always chooses the best entry within every budget that is given.

    Args:
        forecast: of the menu.
        subnet: the name of an entry, instead of budgets; without both it is the best one.
        fraction: share of the full net's MACs.
        latency_ms: milliseconds of a call with one example, as profiled.
        macs: multiply-accumulates an example.
        params: number of parameters.
        bytes: of the weights.

    Raises:
        BudgetError: no entry meets the budgets (the message names the fastest).
    """
    budgets = {
        "fraction": fraction, "latency_ms": latency_ms, "macs": macs, "params": params,
        "bytes": bytes,
    }  # fmt: skip
    given = {name: value for name, value in budgets.items() if value is not None}
    chosen = max(within(forecast, subnet, given))

    def judge(
        rung: int, usual: float, excess: float, rate: float, spent: float
    ) -> tuple[bool, int]:
        return rung <= chosen, forecast.largest  # one below it is on its way up

    goal = f"always {forecast.names[chosen]}"
    return Policy(goal, forecast, judge, least=chosen)


def within(
    forecast: Forecast, subnet: str | None = None, budgets: Mapping[str, Any] | None = None
) -> list[int]:
    """Return the rungs within every budget, ascending; that of a name alone; all without both.

    Raises:
        BudgetError: there are none (the message names the fastest), or a budget is unknown or no
            sensible number.
    """
    given = {name: positive(name, value) for name, value in (budgets or {}).items()}
    if subnet is not None and given:
        raise BudgetError(f"an entry is fixed by subnet= or by {', '.join(given)}=; leave one out")
    if subnet is not None:
        return [forecast.rung(subnet)]
    prices = {**forecast.costs, "latency_ms": tuple(row[1] for row in forecast.times)}
    for name in given:
        if name not in prices:
            raise BudgetError(
                f"a budget is {', '.join(f'{cost}=' for cost in prices)} or subnet=, but got "
                f"{name}={did_you_mean(name, [*prices, 'subnet'])}"
            )
    found = [
        rung
        for rung in range(forecast.top + 1)
        if all(prices[name][rung] <= limit for name, limit in given.items())
    ]
    if not found:
        wanted = ", ".join(f"{name}={limit:g}" for name, limit in given.items())
        needs = ", ".join(f"{name}={prices[name][0]:.6g}" for name in given)
        raise BudgetError(
            f"no entry meets {wanted}: the fastest here is {forecast.names[0]!r}, which needs "
            f"{needs}"
        )
    return found
