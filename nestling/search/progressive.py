"""Progressive search: take away the group of units that is missed least, until nothing is left.

From the full net on, one group of one axis is taken at a time: the one without which the net is
most accurate. Where accuracy has fallen too far, the weights that are left are fine-tuned for a
while. Every net on the way is recorded, and those that a smaller one beats are dropped again.

Source: Yang, He, Cao and Fan, A Progressive Sub-Network Searching Framework for Dynamic Inference
(arXiv 2009.05681), stages 2 and 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated

from nestling.options import Checked, Switch
from nestling.search.request import Choice, Found, Pick, Progress, Score, Search, Tune
from nestling.search.steps import (
    EPOCHS,
    FLOOR,
    Floor,
    check_shares,
    check_steps,
    check_tuning,
    lowered,
    number_of,
    stairs,
)
from nestling.spec import Space, Spec

GROUPS = 8  # the paper has 4, 8 and single channels
JUMP = 0.1  # a rise in accuracy from a net to the next smaller one that is due to fine-tuning
LOOK = 0.5  # on two trained nets as good as 1.0, in 0.6 of the time; 0.33 varied more


def progressive(
    space: Space,
    *,
    groups: Annotated[int | None, Checked(check_steps, ("floor",))] = GROUPS,
    floor: Floor = FLOOR,
    threshold: Annotated[float | None, Checked(_check, ("epochs", "look"))] = None,
    epochs: int = EPOCHS,
    reselect: Switch = True,
    look: float = LOOK,
) -> Search:
    """Search a chain of nested subnets, largest first, from the full net to all floors.

    Args:
        space: of the net.
        groups: equal parts of an axis, one of which goes at a time; None takes single steps.
        floor: share of its units that every axis keeps, or that share by axis name.
        threshold: accuracy (0 to 1) below which the net is fine-tuned until it is back; None never
            does. The paper has 0.5 for ResNet-20, 0.2 for ResNet-18, 0.4 for VGG-11 and MobileNet.
        epochs: longest time of one fine-tuning.
        reselect: whether to drop nets that the next smaller one beats, see `reselected`.
        look: share of the candidates that is looked at in a step, those that lost the least when
            they were last looked at. The others would lose more by now, as a rule, so that little
            is missed (Minoux, Accelerated Greedy Algorithms, 1978). The paper looks at all: 1.

    Returns:
        The full net and what is left after each step, with the accuracies before fine-tuning.

    Raises:
        SpecError: an option is no such number.

    Example:
        >>> search = progressive(net.space, groups=8)
        >>> found = nestling.search.conduct(search, net, score=Scorer(net, held_out, train))
    """
    _check(threshold, epochs, look)
    steps = stairs(space, groups, floor)
    spec = space.full
    total = number_of(steps, spec)
    accuracy: float = yield Score(spec)
    found, losses = [Found(spec, accuracy)], dict[str, float]()
    while candidates := lowered(space, spec, steps):
        yield Progress(len(found) - 1, total)
        if threshold is not None and accuracy < threshold:
            accuracy = yield Tune(spec, threshold, epochs)
            losses.clear()  # they were those of other weights
        looked = _promising(candidates, losses, look)
        names = sorted(looked, key=lambda name: space.macs(candidates[name]))
        choice: Choice = yield Pick(tuple(candidates[name] for name in names))
        losses.update(zip(names, (accuracy - each for each in choice.accuracies), strict=True))
        spec, accuracy = candidates[names[choice.place]], choice.accuracy
        found.append(Found(spec, accuracy))
    yield Progress(total, total)
    return reselected(found) if reselect else found


def _promising(
    candidates: Mapping[str, Spec], losses: Mapping[str, float], look: float
) -> list[str]:
    """Return the axes whose candidates lost the least when last looked at; new ones come first."""
    ranked = sorted(candidates, key=lambda name: losses.get(name, -math.inf))
    return ranked[: math.ceil(look * len(ranked))]


def reselected(found: Sequence[Found], jump: float = JUMP) -> list[Found]:
    """Return a chain without the nets that the next smaller one beats; the first always stays.

    Net i goes if `accuracy[i] < accuracy[i + 1] < accuracy[i] + jump`: a rise of `jump` or more was
    made by fine-tuning and says nothing about the larger net.

    Args:
        found: a chain, largest first.
        jump: in units of accuracy, 0 to 1.
    """
    kept = list(found[:1])
    for one, after in pairwise(found[1:]):
        if not one.accuracy < after.accuracy < one.accuracy + jump:
            kept.append(one)
    return kept + list(found[1:][-1:])


def _check(threshold: float | None, epochs: int, look: float) -> None:
    check_tuning(threshold, epochs)
    check_shares("look=", [look])
