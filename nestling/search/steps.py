"""Steps: the counts that a search lowers an axis to, one group of units at a time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from numbers import Real

from nestling.axis import BITS, ORDERED, Axis
from nestling.errors import SpecError, did_you_mean
from nestling.spec import Space, Spec

EPOCHS = 2  # longest fine-tuning in a search: the paper's cap on ImageNet; 50 on CIFAR
FLOOR = 0.25  # share of its units that every axis keeps

Floor = float | Mapping[str, float]
"""The share of its units that every axis keeps, or that share by axis name (others keep 0.25).

Axes of bits, whose counts were listed one by one, go down to the least of them unless named.
"""


def stairs(space: Space, groups: int | None, floor: Floor) -> dict[str, tuple[int, ...]]:
    """Return the counts that each axis passes on its way down, its size first, its floor last.

    The floor is the smallest allowed count of at least that share. With groups, the counts between
    are the allowed ones nearest to equal parts; an axis of fewer allowed counts passes them all.

    Args:
        space: of the net.
        groups: equal parts of an axis, one of which is a step; None steps through every count, as
            axes of bits always are.
        floor: share of its units that every axis keeps, above 0 and at most 1, or by axis name.

    Raises:
        SpecError: groups or floor are no such numbers, or name an unknown axis.

    Example:
        >>> stairs(net.space, 4, 0.25)["layer1"]
        (16, 12, 8, 4)
    """
    check_steps(groups, floor)
    floors = _floors(space, floor)
    return {n: _stairs_of(axis, groups, floors[n]) for n, axis in space.axes.items()}


def lowered(space: Space, spec: Spec, steps: Mapping[str, tuple[int, ...]]) -> dict[str, Spec]:
    """Return, by axis, the spec with that axis a step lower; axes at their floor are left out."""
    found = {}
    for name, counts in steps.items():
        below = [count for count in counts if count < spec[name]]
        if below:
            found[name] = Spec(space, {**spec, name: below[0]})
    return found


def narrowed(
    space: Space, spec: Spec, steps: Mapping[str, tuple[int, ...]], groups: int | None
) -> list[Spec]:
    """Return ever narrower specs that keep equal shares of a spec's units, widest first.

    Every axis keeps the share of its own count in the spec, to the nearest allowed count, down to
    its floor, where the last spec has all of them. Layers, bits and units inside other ones, such
    as parts of heads, stay as they are in the spec: fewer of these change what a net can do, not
    how wide it is.

    Args:
        space: of the net.
        spec: that is narrowed.
        steps: the counts of the axes that may go, as `stairs` gives them; the last is the floor.
        groups: the shares are (2 groups - 1) / (2 groups), (2 groups - 2) / (2 groups) ... 0; None
            is as for 8, the share of a unit of an axis of 16.
    """
    parts = 2 * (groups or 8)
    wide = [n for n in steps if space.axes[n].outer and space.axes[n].kind not in ORDERED]
    found: dict[Spec, None] = {}
    for part in range(parts - 1, -1, -1):
        counts = {
            n: max(space.axes[n].nearest(spec[n] * part / parts), min(steps[n][-1], spec[n]))
            for n in wide
        }
        found[Spec(space, {**spec, **counts})] = None
    found.pop(spec, None)
    return list(found)


def number_of(steps: Mapping[str, tuple[int, ...]], spec: Spec) -> int:
    """Return how many steps there are from a spec to all floors."""
    return sum(count < spec[name] for name, counts in steps.items() for count in counts)


def _stairs_of(axis: Axis, groups: int | None, floor: float) -> tuple[int, ...]:
    # A hair below, since 0.3 * 10 is more than 3.
    lowest = axis.counts[bisect_left(axis.counts, floor * axis.size - 1e-9)]
    if groups is None or axis.kind == BITS:
        return tuple(count for count in reversed(axis.counts) if count >= lowest)
    parts = (axis.nearest(axis.size * part / groups) for part in range(groups, 0, -1))
    kept = {count for count in parts if count >= lowest} | {lowest, axis.size}
    return tuple(sorted(kept, reverse=True))


def _floors(space: Space, floor: Floor) -> dict[str, float]:
    named = floor if isinstance(floor, Mapping) else {}
    for name in named:
        if name not in space.axes:
            near = did_you_mean(str(name), space.axes)
            raise SpecError(f"floor= names the unknown axis {name!r}{near}")
    most = FLOOR if isinstance(floor, Mapping) else floor
    return {
        name: float(named.get(name, axis.counts[0] / axis.size if axis.kind == BITS else most))
        for name, axis in space.axes.items()
    }


def check_steps(groups: int | None, floor: Floor) -> None:
    """Check the size of steps and where they end, as far as that is known without a space.

    Raises:
        SpecError: groups or floor are no such numbers.
    """
    whole = isinstance(groups, int) and not isinstance(groups, bool)
    if groups is not None and (not whole or groups < 1):
        raise SpecError(
            f"groups= is a whole number of at least 1, or None for single steps, not {groups!r}"
        )
    for share in floor.values() if isinstance(floor, Mapping) else [floor]:
        if isinstance(share, bool) or not isinstance(share, Real) or not 0 < share <= 1:
            raise SpecError(f"a floor is a share above 0 and at most 1, but it is {share!r}")


def check_shares(name: str, shares: Sequence[float]) -> None:
    """Check shares of the full net's cost.

    Raises:
        SpecError: one is not above 0 and at most 1.
    """
    if isinstance(shares, str) or not isinstance(shares, Collection):
        raise SpecError(f"{name} lists shares, such as (0.5, 0.25), not {shares!r}")
    for share in shares:
        number = isinstance(share, int | float) and not isinstance(share, bool)
        if not number or not 0 < share <= 1:
            raise SpecError(f"{name} lists shares above 0 and at most 1, but one is {share!r}")


def check_tuning(threshold: float | None, epochs: int) -> None:
    """Check when a search fine-tunes the weights that are left, and for how long.

    Raises:
        SpecError: `threshold` is no accuracy, or `epochs` no whole number of at least 1.
    """
    number = isinstance(threshold, Real) and not isinstance(threshold, bool)
    if threshold is not None and not (number and 0 < threshold <= 1):
        raise SpecError(
            f"threshold= is an accuracy above 0 and at most 1, or None, but it is {threshold!r}"
        )
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise SpecError(f"epochs= is a whole number of at least 1, but it is {epochs!r}")
