"""Choice: the best entry of a menu within a budget, found in microseconds."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nestling.entry import Entry, score
from nestling.errors import BudgetError


@dataclass(frozen=True)
class Ladder:
    """Entries by rising cost, and at each cost the best entry that costs no more.

    Attributes:
        cost: what the budget is about, as the user writes it.
        costs: ascending.
        best: the most accurate entry among those up to the same place; ties go to the cheaper.
        cheapest: the entry that costs least.
    """

    cost: str
    costs: tuple[float, ...]
    best: tuple[Entry, ...]
    cheapest: Entry

    @classmethod
    def of(cls, cost: str, entries: Sequence[Entry], price: Callable[[Entry], float]) -> Ladder:
        """Return the ladder of the offered entries."""
        offered = [entry for entry in entries if entry.offered] or list(entries)
        ranked = sorted(offered, key=lambda entry: (price(entry), -score(entry)))
        best: list[Entry] = []
        for entry in ranked:
            last = best[-1] if best else None
            best.append(entry if last is None or score(entry) > score(last) else last)
        return cls(cost, tuple(price(entry) for entry in ranked), tuple(best), ranked[0])

    def choose(self, budget: float) -> Entry:
        """Return the most accurate entry that costs at most the budget.

        Raises:
            BudgetError: no entry is that cheap (the message names the closest), or the budget is
                no number.
        """
        try:
            if budget >= self.costs[0] and budget.__class__ is not bool:
                return self.best[bisect_right(self.costs, budget) - 1]
        except (TypeError, ValueError, RuntimeError):
            pass  # no number; said below, so that the good case costs nothing
        raise BudgetError(self._refusal(budget))

    def _refusal(self, budget: object) -> str:
        """Return why no entry is within a budget."""
        number = isinstance(budget, (int, float)) and not isinstance(budget, bool)
        if not number or not budget > 0:  # type: ignore[operator]
            return (
                f"{self.cost}= is a number above 0, but it is {budget!r:.80}; the smallest that "
                f"any subnet meets is {shown(self.costs[0])}"
            )
        return (
            f"no subnet meets {self.cost}={budget!r}: the closest is {self.cheapest.name!r}, "
            f"which needs {self.cost}={shown(self.costs[0])}; allow at least that"
        )


def shown(cost: float) -> str:
    """Return a cost so that it can be given back as a budget: rounded up, never down."""
    if cost == int(cost):
        return str(int(cost))
    digits = 3 - math.floor(math.log10(cost))
    return f"{math.ceil(cost * 10**digits) / 10**digits:.{max(digits, 0)}f}"
