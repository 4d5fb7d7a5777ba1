"""Several seeds together: what methods reach at a budget, with the spread over their runs.

Nothing is interpolated: at a budget a run has the most accurate of its subnets that cost no more.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from nestling.errors import NestlingError

SHARE = 0.95  # of the interval of the mean
CLOSE = 0.02  # of the largest cost: entries no further apart are one point of a curve


class Result(NamedTuple):
    """One subnet of one run: what it costs and how good it is.

    Attributes:
        label: of the curve: the method, as pictures and tables write it.
        seed: of the run; results of one label and one seed are one run.
        cost: multiply-accumulates, parameters, bytes or milliseconds.
        accuracy: 0 to 1.
    """

    label: str
    seed: int
    cost: float
    accuracy: float


class Summary(NamedTuple):
    """The same figure from several seeds.

    Attributes:
        mean: over the seeds.
        std: standard deviation, with n - 1 in the denominator; None for one seed.
        low: lower end of the 95 % interval of the mean; None for one seed.
        high: its upper end.
        seeds: how many.
    """

    mean: float
    std: float | None
    low: float | None
    high: float | None
    seeds: int


class Point(NamedTuple):
    """One point of a curve that is worked out already.

    Attributes:
        label: of the curve.
        cost: multiply-accumulates, parameters, bytes or milliseconds.
        accuracy: 0 to 1, over the seeds.
    """

    label: str
    cost: float
    accuracy: Summary


def summarize(values: Sequence[float]) -> Summary:
    """Return mean, standard deviation and the 95 % interval of the mean, by Student's t.

    Args:
        values: one a seed.

    Raises:
        NestlingError: there is none, or one is no finite number.

    Source: Student, The Probable Error of a Mean (Biometrika, 1908).

    Example:
        >>> found = summarize([0.90, 0.91, 0.95])
        >>> [round(number, 4) for number in found[:4]]
        [0.92, 0.0265, 0.8543, 0.9857]
    """
    if not values or not all(math.isfinite(value) for value in values):
        raise NestlingError(
            f"a mean over seeds needs at least one value, all finite, but got {list(values)!r:.80}"
        )
    mean, count = statistics.fmean(values), len(values)
    if count == 1:
        return Summary(mean, None, None, None, 1)
    std = statistics.stdev(values)
    margin = student(count - 1) * std / math.sqrt(count)
    return Summary(mean, std, mean - margin, mean + margin, count)


def best_within(results: Iterable[Result], budget: float) -> Result | None:
    """Return the most accurate result that costs no more than a budget; None if none does.

    Of equally accurate ones it is the cheapest.
    """
    within = [each for each in results if each.cost <= budget]
    return max(within, key=lambda each: (each.accuracy, -each.cost), default=None)


def at_budget(results: Iterable[Result], budget: float) -> Summary | None:
    """Return the accuracy of one label at a budget, over its seeds.

    Each seed gives the result that `best_within` finds. None if any seed has nothing so cheap: a
    mean over the other seeds would be one of fewer runs, and no neighbour on the curve of it.
    """
    found = [best_within(run, budget) for run in by_seed(results).values()]
    reached = [each.accuracy for each in found if each is not None]
    return summarize(reached) if reached and len(reached) == len(found) else None


def curve(
    results: Iterable[Result], budgets: Sequence[float] | None = None
) -> list[tuple[float, Summary]]:
    """Return the points of one label, cheapest first: budget, and accuracy at it over the seeds.

    Args:
        results: of one label.
        budgets: where to look; those that not every seed meets are left out. By default where the
            label's own entries lie, see `budgets_of`.
    """
    known = list(results)
    places = budgets_of(known) if budgets is None else sorted(set(budgets))
    found = [(budget, at_budget(known, budget)) for budget in places]
    return [(budget, summary) for budget, summary in found if summary is not None]


def budgets_of(results: Iterable[Result]) -> list[float]:
    """Return the costs at which one label's entries are compared over its seeds, least first.

    Where every seed has as many entries, the n-th cheapest of all seeds are matched: the budget is
    the cost of the dearest of them. Otherwise costs within 2 % of the largest are matched.
    """
    costs = [sorted({each.cost for each in run}) for run in by_seed(results).values()]
    if len({len(each) for each in costs}) == 1:
        return [max(matched) for matched in zip(*costs, strict=True)]
    ordered = sorted({cost for each in costs for cost in each})
    grouped: list[list[float]] = []
    for cost in ordered:
        if grouped and cost - grouped[-1][0] <= CLOSE * ordered[-1]:
            grouped[-1].append(cost)
        else:
            grouped.append([cost])
    return [group[-1] for group in grouped]


def by_label(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Return the results of each label, in the order in which the labels appear first."""
    found: dict[str, list[Result]] = {}
    for each in results:
        found.setdefault(each.label, []).append(each)
    return found


def by_seed(results: Iterable[Result]) -> dict[int, list[Result]]:
    """Return the results of each seed, in the order in which the seeds appear first."""
    found: dict[int, list[Result]] = {}
    for each in results:
        found.setdefault(each.seed, []).append(each)
    return found


@lru_cache
def student(freedom: int, share: float = SHARE) -> float:
    """Return the t within which that share of Student's distribution lies, on both sides of 0.

    Args:
        freedom: degrees of freedom, a whole number of at least 1.
        share: above 0 and below 1.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4, solved by
    bisection of the angle.

    Example:
        >>> round(student(2), 4), round(student(9), 4)
        (4.3027, 2.2622)
    """
    low, high = 0.0, math.pi / 2
    for _ in range(64):
        middle = (low + high) / 2
        if _share_within(middle, freedom) < share:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _share_within(angle: float, freedom: int) -> float:
    """Return the share of the distribution between -t and t, where t = sqrt(freedom) tan(angle)."""
    cosine, odd = math.cos(angle), freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for power in range(2 + odd, freedom - 1, 2):
        term *= cosine**2 * (power - 1) / power
        total += term
    share = math.sin(angle) * total
    return 2 / math.pi * (angle + share) if odd else share
