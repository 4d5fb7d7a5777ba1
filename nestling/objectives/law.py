"""Laws: how likely it is that a step keeps so many units of an axis.

The units of an axis are ordered, and a step drops the last ones. The paper leaves the law open;
two are offered: "uniform" on the counts from a share of the units on, and "geometric", where every
further group of units is kept with one probability, given that the one before it was.

Source: Cui et al., Fully Nested Neural Network for Adaptive Compression and Quantization (IJCAI
2020); Rippel, Gelbart and Adams, Learning Ordered Representations with Nested Dropout (ICML 2014),
for the geometric law.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from numbers import Integral, Real
from typing import TypeAlias

import torch

from nestling.axis import BITS, Axis
from nestling.errors import SpecError, did_you_mean
from nestling.spec import Space, Spec
from nestling.units import axes_of_kinds

LAWS = ("uniform", "geometric")
TIES = ("axis", "kind", "net")
LOW = 0.25  # of its units that an axis keeps at least, under the uniform law
GO_ON = 0.9  # probability of a further group, under the geometric law; 0.8 to 0.95 are usual
GROUPS = 32  # of an axis under the geometric law
LEAST = 2  # groups that the geometric law never drops

Low: TypeAlias = float | Mapping[str, float]
"""A share of the units, for all kinds but bits or by kind (bits have 0, the others 0.25)."""


@dataclass(frozen=True)
class Law:
    """How likely each count of one axis is.

    Attributes:
        counts: what may be drawn, ascending, all allowed by the axis.
        chances: the probability of each; they add up to 1.
    """

    counts: tuple[int, ...]
    chances: tuple[float, ...]

    @cached_property
    def _steps(self) -> tuple[float, ...]:
        return tuple(accumulate(self.chances[:-1]))

    def at(self, level: float) -> int:
        """Return the count at a level of the distribution, from 0 up to 1: its inverse.

        Example:
            >>> Law((4, 8), (0.25, 0.75)).at(0.5)
            8
        """
        return self.counts[bisect_right(self._steps, level)]

    @property
    def mean(self) -> float:
        """The expected count."""
        return sum(n * chance for n, chance in zip(self.counts, self.chances, strict=True))


@dataclass(frozen=True)
class Draws:
    """How the spec of a step is drawn.

    Attributes:
        laws: by axis name; the other axes keep all units.
        tied: which axes have one level together: each "axis" its own, those of a "kind", or all of
            the "net".
    """

    laws: Mapping[str, Law]
    tied: str = "axis"

    def spec(self, space: Space, generator: torch.Generator | None = None) -> Spec:
        """Draw a spec.

        Args:
            space: of the net.
            generator: of the random numbers; torch's global one by default.
        """
        ties = dict.fromkeys(self._tie(space, name) for name in self.laws)
        levels = torch.rand(len(ties), generator=generator, dtype=torch.float64).tolist()
        drawn = dict(zip(ties, levels, strict=True))
        return Spec(space, {n: law.at(drawn[self._tie(space, n)]) for n, law in self.laws.items()})

    def _tie(self, space: Space, name: str) -> str:
        return {"axis": name, "kind": space.axes[name].kind}.get(self.tied, "")

    @property
    def number(self) -> int:
        """How many specs can be drawn where each axis is drawn by itself."""
        return math.prod(len(law.counts) for law in self.laws.values())

    def floors(self, space: Space) -> dict[str, float]:
        """Return the least share of every axis's units that is drawn: what a search may go to."""
        return {
            name: self.laws[name].counts[0] / axis.size if name in self.laws else 1.0
            for name, axis in space.axes.items()
        }


def draws_of(
    space: Space,
    *,
    kinds: Iterable[str] | None = None,
    law: str = "uniform",
    low: Low = LOW,
    go_on: float = GO_ON,
    groups: int | None = None,
    tied: str = "axis",
) -> Draws:
    """Return how specs of a space are drawn.

    Args:
        space: of the net.
        kinds: of the axes that are drawn; all by default.
        law: "uniform" on the counts from `low` on, or "geometric".
        low: least share of the units under the uniform law, rounded down to whole units and up to
            a count that the axis allows; for all axes but those of bits, whose counts were listed
            one by one, or by kind.
        go_on: probability of keeping a further group under the geometric law, above 0 and below 1.
        groups: equal parts of an axis whose units are kept or dropped together; by default 32
            under the geometric law, which keeps the first two always, and single counts under the
            uniform one. Few groups are few different shapes, and so less work for the processor's
            library, which prepares itself for each. Bits are never tied: each listed number of them
            is a group, of which the first is always kept.
        tied: as for `Draws`.

    Raises:
        SpecError: an option that is none, a kind that the net lacks, or nothing that can be
            dropped.

    Example:
        >>> draws_of(net.space, kinds=["depth"]).laws["layer1.depth"].counts
        (1, 2, 3)
    """
    axes = axes_of_kinds(space, kinds)
    check_law(law, low, go_on, groups, tied)
    lows, laws = _lows(low, axes), {}
    for axis in axes:
        if law == "geometric":
            laws[axis.name] = _geometric(axis, go_on, groups or GROUPS)
        else:
            laws[axis.name] = _uniform(axis, lows[axis.kind], groups)
    if all(len(each.counts) == 1 for each in laws.values()):
        raise SpecError(
            f"ordered dropout drops the last units of an axis, but {_why_none(axes)}; give other "
            "kinds=, a smaller low=, or the supernet a smaller step="
        )
    return Draws({name: each for name, each in laws.items() if len(each.counts) > 1}, tied)


def _uniform(axis: Axis, low: float, groups: int | None) -> Law:
    # A hair more, since 0.29 * 100 is less than 29.
    least = max(1, math.floor(low * axis.size + 1e-9))
    wanted = axis.counts
    if groups is not None and axis.kind != BITS:
        wanted = tuple(axis.nearest(axis.size * part / groups) for part in range(1, groups + 1))
    counts = tuple(sorted({count for count in wanted if count >= least} | {axis.size}))
    return Law(counts, (1 / len(counts),) * len(counts))


def _geometric(axis: Axis, go_on: float, groups: int) -> Law:
    levels, least = list(axis.counts), 1
    if axis.kind != BITS:
        groups = min(groups, axis.size)
        levels = [axis.nearest(axis.size * part / groups) for part in range(1, groups + 1)]
        least = min(LEAST, groups)
    chances: dict[int, float] = {}
    for number, count in enumerate(levels[least - 1 :]):
        stops = 1.0 if number == len(levels) - least else 1 - go_on
        chances[count] = chances.get(count, 0.0) + go_on**number * stops
    return Law(tuple(chances), tuple(chances.values()))


# -- what may be asked for ------------------------------------------------------------------------


def check_law(law: str, low: Low, go_on: float, groups: int | None, tied: str) -> None:
    """Check how specs shall be drawn, as far as that is known without a space.

    Args:
        law: as for `draws_of`, and so are the others.
        low: its kinds are looked at by `draws_of` alone.
        go_on: a probability.
        groups: of an axis.
        tied: what is drawn together.

    Raises:
        SpecError: an option that is none.
    """
    for name, value, known in (("law", law, LAWS), ("tied", tied, TIES)):
        if value not in known:
            raise SpecError(
                f"{name}= is one of {', '.join(known)}, not {value!r}"
                f"{did_you_mean(str(value), known)}"
            )
    for share in low.values() if isinstance(low, Mapping) else [low]:
        if not _is_number(share) or not 0 < share <= 1:
            raise SpecError(
                f"low= is the least share of its units that an axis keeps, above 0 and at most 1, "
                f"but it is {share!r}"
            )
    if not _is_number(go_on) or not 0 < go_on < 1:
        raise SpecError(
            f"go_on= is a probability above 0 and below 1, but it is {go_on!r}; 0.8 to 0.95 are "
            "usual"
        )
    whole = isinstance(groups, Integral) and not isinstance(groups, bool)
    if groups is not None and not (whole and groups >= 2):
        raise SpecError(
            f"groups= is a whole number of at least 2, or None for the usual ones, not {groups!r}"
        )


def _lows(low: Low, axes: Sequence[Axis]) -> dict[str, float]:
    """Return the least share of each kind.

    Raises:
        SpecError: one is none, or of a kind that is not drawn.
    """
    kinds = list(dict.fromkeys(axis.kind for axis in axes))
    usual = {kind: 0.0 if kind == BITS else LOW for kind in kinds}
    given = low if isinstance(low, Mapping) else {k: low for k in kinds if k != BITS}
    for kind in given:
        if kind not in kinds:
            raise SpecError(
                f"low= names the kind {kind!r}, which is not drawn"
                f"{did_you_mean(str(kind), kinds)}; those that are: {', '.join(kinds)}"
            )
    return {kind: float(given.get(kind, usual[kind])) for kind in kinds}


def _why_none(axes: Sequence[Axis]) -> str:
    single = [axis for axis in axes if len(axis.counts) == 1]
    if len(single) == len(axes):
        return (
            f"each of {', '.join(repr(axis.name) for axis in axes[:4])}"
            f"{' ...' if len(axes) > 4 else ''} is one block, which stays"
        )
    return "no count below the full one is drawn of any"


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
