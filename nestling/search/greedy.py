"""Greedy search by price: take away what costs the least accuracy for the most saving.

Like the progressive search, but a step counts by the accuracy that is lost per unit of cost that is
saved, for any cost: multiply-accumulates, parameters, or a latency measured on the device.

Source: Yu and Huang, AutoSlim: Towards One-Shot Architecture Search for Channel Numbers
(arXiv 1903.11728), whose greedy slimming is that of `progressive`; the price per unit of cost is
that of Yang et al., NetAdapt (ECCV 2018), in its continuous form.
"""

from __future__ import annotations

from collections.abc import Sequence

from nestling.errors import BudgetError, SpecError
from nestling.search.request import Choice, Cost, Found, Pick, Progress, Score, Search, Worth
from nestling.search.steps import FLOOR, Floor, check_shares, lowered, number_of, stairs
from nestling.spec import Space, Spec

SLACK = 0.002  # losses below this are noise: 5 of 2,500 pictures


def greedy(
    space: Space,
    *,
    groups: int | None = 8,
    floor: Floor = FLOOR,
    targets: Sequence[float] = (),
    slack: float = SLACK,
) -> Search:
    """Search a chain of nested subnets, largest first, each the best bargain from the one before.

    The cost is the one that `conduct` is given. Steps that do not make the net cheaper (as measured
    latencies sometimes have it) are made only where no other is left.

    Args:
        space: of the net.
        groups: equal parts of an axis, one of which goes at a time; None takes single steps.
        floor: share of its units that every axis keeps, or that share by axis name.
        targets: shares of the full net's cost; the search returns, for each, the first net that
            costs no more, and stops at the last. Without targets it returns all, down to the
            floors.
        slack: losses of accuracy below this count as this, so that among steps that cost nothing
            noticeable the largest saving is taken, not the luckiest one.

    Raises:
        SpecError: an option is no such number.
        BudgetError: a target is below what the floors cost.

    Example:
        >>> search = greedy(net.space, targets=(0.75, 0.5, 0.25))
        >>> found = nestling.search.conduct(search, net, score=score, cost=net.space.params)
    """
    check_shares("targets=", targets)
    if isinstance(slack, bool) or not isinstance(slack, int | float) or not 0 < slack <= 1:
        raise SpecError(f"slack= is an accuracy above 0 and at most 1, but it is {slack!r}")
    steps = stairs(space, groups, floor)
    total, spec = number_of(steps), space.full
    accuracy: float = yield Score(spec)
    whole, least = yield Cost((spec, Spec(space, {n: counts[-1] for n, counts in steps.items()})))
    _check_reachable(targets, least / whole)
    now, chain, costs = whole, [Found(spec, accuracy)], [whole]
    while candidates := list(lowered(space, spec, steps).values()):
        if targets and now <= min(targets) * whole:
            break
        yield Progress(len(chain) - 1, total)
        prices: tuple[float, ...] = yield Cost(tuple(candidates))
        order = _worth_trying(prices, now)
        savings = [max(now - prices[place], 0.0) for place in order]
        choice: Choice = yield Pick(
            tuple(candidates[place] for place in order), _bargain(accuracy, savings, slack)
        )
        place = order[choice.place]
        spec, accuracy, now = candidates[place], choice.accuracy, prices[place]
        chain.append(Found(spec, accuracy))
        costs.append(now)
    yield Progress(total, total)
    return _at(chain, costs, [share * whole for share in targets]) if targets else chain


def _check_reachable(targets: Sequence[float], least: float) -> None:
    if targets and min(targets) < least:
        raise BudgetError(
            f"no subnet costs at most {min(targets):.3g} of the full net: with all axes at their "
            f"floors it is {least:.3g}; ask for more in targets=, or lower floor="
        )


def _worth_trying(prices: Sequence[float], now: float) -> list[int]:
    """Return the places of the candidates that are cheaper, cheapest first; all if none is."""
    cheaper = [place for place, price in enumerate(prices) if price < now]
    return sorted(cheaper or range(len(prices)), key=lambda place: prices[place])


def _bargain(accuracy: float, savings: Sequence[float], slack: float) -> Worth:
    """Return the worth of a step: what it saves per accuracy that it loses.

    Where nothing saves, the accuracy itself decides.
    """
    if not any(savings):
        return lambda place, reached: reached
    return lambda place, reached: savings[place] / max(accuracy - reached, slack)


def _at(chain: Sequence[Found], costs: Sequence[float], budgets: Sequence[float]) -> list[Found]:
    """Return the first net within each budget, each once, largest first."""
    found: dict[int, Found] = {}
    for budget in budgets:
        within = [place for place, cost in enumerate(costs) if cost <= budget]
        if within:
            found[within[0]] = chain[within[0]]
    return [found[place] for place in sorted(found)]
