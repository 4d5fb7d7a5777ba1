"""The table of op rules: one row per ATen op says how its dimensions couple.

A rule is a function `rule(trace, out, *args, **kwargs)` that is called after the op has run. It
reads the expressions of the inputs (`trace.of`), unifies what the op couples (`trace.unify`) and
gives the outputs their expressions (`trace.put`). To teach Nestling an op of your own:

    >>> @nestling.axes.rules.rule("my_swish")
    ... def my_swish(trace, out, x, beta):
    ...     trace.put(out, trace.of(x))          # same dimensions out as in
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

if TYPE_CHECKING:
    from nestling.axes.tracer import Trace  # noqa: F401  (named in the type alias)

Couple: TypeAlias = Callable[..., None]
Resize: TypeAlias = Callable[[list[Any], dict[str, Any]], None]
Evaluate: TypeAlias = Callable[[Callable[..., Any], list[Any], dict[str, Any]], Any]


@dataclass(frozen=True)
class Rule:
    """How an op couples dimensions, and how it is replayed over the kept units.

    Attributes:
        couple: the rule itself.
        replayed: whether the value depends on how many units there are (norms, means, softmax), so
            that the proof must evaluate it over the kept units alone.
        resize: for a replay, corrects the op's size arguments in place after its tensors were cut.
        evaluate: for a replay, calls the op where the kept units alone are no arguments for it.
    """

    couple: Couple
    replayed: bool = False
    resize: Resize | None = None
    evaluate: Evaluate | None = None


RULES: dict[str, Rule] = {}


def rule(
    *names: str,
    replayed: bool = False,
    resize: Resize | None = None,
    evaluate: Evaluate | None = None,
) -> Callable[[Couple], Couple]:
    """Return a decorator that enters a rule for the ops of these names.

    Args:
        *names: of ops, without the overload. `"my_swish"` is that of any library,
            `"mine::my_swish"` that of `mine` alone; the latter rules over the former.
        replayed: see `Rule`.
        resize: see `Rule`.
        evaluate: see `Rule`.
    """

    def enter(couple: Couple) -> Couple:
        for name in names:
            RULES[name.partition(".")[0]] = Rule(couple, replayed, resize, evaluate)
        return couple

    return enter


def lookup(func: torch._ops.OpOverload) -> Rule | None:
    """Return the rule for an op: by name, by the name it is the in-place form of, or by tag."""
    names = (func._schema.name, func.overloadpacket.__name__)  # "aten::add_" and "add_"
    for name in (*names, *(each.rstrip("_") for each in names if each.endswith("_"))):
        if name in RULES:
            return RULES[name]
    if torch.Tag.pointwise in func.tags:
        return RULES["pointwise"]
    return None
