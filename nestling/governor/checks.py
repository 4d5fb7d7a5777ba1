"""Checks: the numbers that a policy is given."""

from __future__ import annotations

import math
from typing import Any

from nestling.errors import BudgetError


def positive(name: str, value: Any) -> float:
    """Return a number above 0 that is finite.

    Raises:
        BudgetError: it is none.

    Example:
        >>> positive("ms", 20)
        20.0
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise BudgetError(f"{name}= is a finite number above 0, but it is {value!r:.80}")
    return float(value)
