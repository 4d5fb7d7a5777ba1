"""Scales: numbers that code computes from a size, such as the `1 / sqrt(head size)` of attention.

An op only sees the number. A subnet's code may compute it afresh from the smaller size, or go on
with the one that was stored when the model was made; both are right. So the proof looks which one
the subnet uses, and the masked model follows where the number comes from the kept size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from nestling.axes import expression as algebra
from nestling.axes.expression import Atom, Expression

POWERS = (-0.5, 0.5, -1.0, 1.0, -0.25, 0.25)
OPS = ("mul", "div", "mul_", "div_")
CLOSE = 1e-6  # relative; the number may have been rounded to float32


@dataclass(frozen=True)
class Scale:
    """A product or quotient of a tensor and a number.

    Attributes:
        op: its number in the trace.
        powers: (expression, power): sizes near by of which the number is that power.
    """

    op: int
    powers: tuple[tuple[Expression, float], ...]


def number_of(name: str, args: Sequence[Any]) -> float | None:
    """Return the number by which an op scales a tensor; None if it does something else."""
    if name in OPS and len(args) > 1 and isinstance(args[0], Tensor):
        value = args[1]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    return None


def scale_by(op: int, number: float, near: Sequence[Expression]) -> Scale:
    """Return the scale of an op by a number, among expressions whose sizes it may come from."""
    powers = [
        (expression, power)
        for expression in near
        if expression.size > 1 and algebra.live(expression)
        for power in POWERS
        if math.isclose(expression.size**power, number, rel_tol=CLOSE)
    ]
    return Scale(op, tuple(powers))


class Numbers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the numbers by which the ops of a run scale, in order.

    Attributes:
        found: the numbers.
        inside: for each, whether torch's own attention scaled by it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[float] = []
        self.inside: list[bool] = []
        self._attention = _Attention()

    def __enter__(self) -> Any:
        self._attention.__enter__()  # type: ignore[no-untyped-call]
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        self._attention.__exit__(*raised)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the op, and note its number."""
        number = number_of(func.overloadpacket.__name__, args)
        if number is not None:
            self.found.append(number)
            self.inside.append(self._attention.runs)
        return func(*args, **(kwargs or {}))

    def like(self, scales: Sequence[Scale]) -> list[float]:
        """Return the numbers that belong to those of a trace; none if it ran other ops.

        For other head sizes torch may choose another kernel for its attention, such as one that
        scales by ops of its own where that of the trace was one op.
        """
        if len(self.found) <= len(scales):
            return self.found
        outer = [n for n, inside in zip(self.found, self.inside, strict=True) if not inside]
        return outer if len(outer) <= len(scales) else []


class _Attention(TorchFunctionMode):
    """Tells whether torch's own attention is running."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the function, and note whether it is attention."""
        before = self.runs
        self.runs = before or func is F.scaled_dot_product_attention
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.runs = before


def can_follow(scales: Sequence[Scale], counts: Mapping[Atom, int]) -> bool:
    """Return whether any number may come from a size that is cut."""
    return any(_is_cut(e, counts) for scale in scales for e, _ in scale.powers)


Follows: TypeAlias = Mapping[int, tuple[Expression, float]]
"""By op: the size of which its number is a power, and that power."""


def followed(scales: Sequence[Scale], numbers: Numbers, counts: Mapping[Atom, int]) -> Follows:
    """Return the ops whose numbers a subnet computed from its kept sizes.

    Args:
        scales: of the trace.
        numbers: of the subnet's run, which may have ended early.
        counts: kept units of the trace's atoms.
    """
    return {
        scale.op: (expression, power)
        for scale, number in zip(scales, numbers.like(scales), strict=False)
        for expression, power in scale.powers
        if _is_cut(expression, counts)
        and math.isclose(algebra.count(expression, counts) ** power, number, rel_tol=CLOSE)
    }


def numbers_of(follows: Follows, counts: Mapping[Atom, int]) -> dict[int, float]:
    """Return by op the number that it takes for some kept units."""
    return {
        op: float(algebra.count(expression, counts) ** power)
        for op, (expression, power) in follows.items()
        if _is_cut(expression, counts)
    }


def _is_cut(expression: Expression, counts: Mapping[Atom, int]) -> bool:
    return algebra.count(expression, counts) < expression.size
