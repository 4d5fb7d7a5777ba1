"""The multi-target path: the widths that one shrinking run went through, as nested subnets.

A ranker that shrinks a net under a growing penalty records how many units of each axis were alive
whenever a target was crossed. These vectors, rounded to allowed counts, are the subnets.

Source: Yang, He, Cao and Fan, Non-uniform DNN Structured Subnets Sampling for Dynamic Inference
(DAC 2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from nestling.errors import BudgetError, SpecError, did_you_mean
from nestling.options import Checked
from nestling.search.request import Cost, Found, Progress, Score, Search
from nestling.search.steps import check_shares
from nestling.spec import Space, Spec


def path(
    space: Space,
    recorded: Sequence[Mapping[str, float]],
    *,
    targets: Annotated[Sequence[float], Checked(_check_targets)] = (),
) -> Search:
    """Search nothing: turn recorded widths into a chain of nested subnets, and score each.

    Every width becomes the nearest allowed count, and never more than the subnet before has, so
    that each contains the next: units that came back to life are not counted.

    Args:
        space: of the net.
        recorded: for each subnet, axis name to units alive; missing axes keep what they had.
        targets: for each of the recorded, the share of the full net's cost that it may have; where
            rounding has made it dearer, the axes that rounding has raised the most are lowered
            again, one count at a time. Without targets, rounding is all.

    Returns:
        The full net and the distinct subnets, largest first.

    Raises:
        SpecError: an unknown axis, a width that is no number, or as many targets as there are not.
        BudgetError: even the narrowest subnet costs more than a target.

    Example:
        >>> search = path(net.space, [{"layer1": 13, "layer2": 20}, {"layer1": 7, "layer2": 12}])
        >>> found = nestling.search.conduct(search, net, score=score)
    """
    _check_targets(targets)
    if targets and len(targets) != len(recorded):
        raise SpecError(
            f"targets= has a share for each of the {len(recorded)} recorded widths, but it has "
            f"{len(targets)}"
        )
    for widths in recorded:
        _check(space, widths)
    spec, chain = space.full, [space.full]
    (whole,) = yield Cost((spec,))
    for number, widths in enumerate(recorded):
        spec = _rounded(space, spec, widths)
        if targets:
            budget = targets[number] * whole
            (cost,) = yield Cost((spec,))
            while cost > budget:
                spec = _trimmed(space, spec, widths, targets[number])
                (cost,) = yield Cost((spec,))
        chain.append(spec)
    distinct, found = list(dict.fromkeys(chain)), []
    for number, spec in enumerate(distinct):
        yield Progress(number, len(distinct))
        accuracy: float = yield Score(spec)
        found.append(Found(spec, accuracy))
    yield Progress(len(distinct), len(distinct))
    return found


def _rounded(space: Space, before: Spec, widths: Mapping[str, float]) -> Spec:
    nearest = {name: space.axes[name].nearest(width) for name, width in widths.items()}
    return Spec(space, {n: min(count, nearest.get(n, count)) for n, count in before.items()})


def _trimmed(space: Space, spec: Spec, widths: Mapping[str, float], target: float) -> Spec:
    """Return the spec with one axis a count lower: the one that is most above its width."""
    excess = {
        name: (spec[name] - widths.get(name, spec[name])) / axis.size
        for name, axis in space.axes.items()
        if spec[name] > axis.counts[0]
    }
    if not excess:
        raise BudgetError(
            f"no subnet costs at most {target:.3g} of the full net, not even with the fewest units "
            "that every axis allows; ask for more in targets=, or make the axes finer with step="
        )
    name = max(excess, key=lambda each: excess[each])
    counts = space.axes[name].counts
    return Spec(space, {**spec, name: counts[counts.index(spec[name]) - 1]})


def _check_targets(targets: Sequence[float]) -> None:
    check_shares("targets=", targets)


def _check(space: Space, widths: Mapping[str, float]) -> None:
    for name, width in widths.items():
        if name not in space.axes:
            near = did_you_mean(str(name), space.axes)
            raise SpecError(f"the recorded widths name the unknown axis {name!r}{near}")
        if isinstance(width, bool) or not isinstance(width, int | float) or not width >= 0:
            raise SpecError(
                f"a recorded width is a number of units of at least 0, but that of {name!r} is "
                f"{width!r}"
            )
