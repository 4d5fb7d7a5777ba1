"""A list of subnets, trained together: the full net, some members, and the smallest.

Each step trains the full net on the labels, and random members and the smallest on what the full
one says. With all members every step and labels for all, it is the summed hard cross-entropy of
paper A and of slimmable nets.

Source: Yang, He, Cao and Fan, A Progressive Sub-Network Searching Framework for Dynamic Inference
(arXiv 2009.05681), stage 4, and Non-uniform DNN Structured Subnets Sampling for Dynamic Inference
(DAC 2020); Yu et al., Slimmable Neural Networks (ICLR 2019).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from nestling.errors import SpecError
from nestling.objectives.sandwich import Loss, in_training, lessons
from nestling.spec import Space, Spec
from nestling.supernet import Supernet, check_supernet

DRAW = 2  # random members a step, as in paper B


def listed(
    net: Supernet,
    members: Sequence[Mapping[str, int]],
    *,
    draw: int | None = DRAW,
    loss: Loss | None = None,
    distill: Loss | None = None,
) -> Iterator[tuple[nn.Module, Loss]]:
    """Yield the subnets of a step, each with its loss: the full net, members, the smallest.

    Args:
        net: the supernet.
        members: the list, specs or counts; the full net always trains, whether it is listed or not.
        draw: how many members train in a step beside the full net and the smallest, drawn without
            putting back and evenly over the multiply-accumulates, see `chances_of`; None trains
            all.
        loss: as for `sandwich`.
        distill: as for `sandwich`.

    Raises:
        SpecError: there is no member, one is not of the net, or `draw` is no whole number.

    Example:
        >>> for subnet, loss in nestling.objectives.listed(net, specs):
        ...     loss(subnet(images), labels).backward()
        >>> optimizer.step(); optimizer.zero_grad()
    """
    check_supernet(net, "listed")
    check_draw(draw)
    others = largest_first(net.space, members)
    specs = [net.space.full, *drawn(others, chances_of(net.space, others), draw)]
    yield from lessons((in_training(net.pooled(spec)) for spec in specs), loss, distill)


def largest_first(space: Space, members: Sequence[Mapping[str, int]]) -> list[Spec]:
    """Return the distinct members of a list but the full net, the largest first.

    Raises:
        SpecError: there is no member, or one is not of the space.
    """
    if not members:
        raise SpecError("members= lists at least one spec, but it is empty")
    distinct = dict.fromkeys(Spec(space, member) for member in members)
    distinct.pop(space.full, None)
    return sorted(distinct, key=space.macs, reverse=True)


def chances_of(space: Space, others: Sequence[Spec]) -> Tensor:
    """Return how likely each member is to train in a step; the last one always does.

    A member is as likely as it stands alone: its chance goes with the distance between its
    neighbours in multiply-accumulates. A search may list twenty nets below half of the full one's
    cost and five above; were all as likely, large nets would hardly train.

    Args:
        space: of the specs.
        others: from `largest_first`.
    """
    costs = [space.macs(spec) for spec in (space.full, *others)]
    cells = [float(above - below) for above, below in zip(costs, costs[2:], strict=False)]
    # Specs may cost the same; these stay possible.
    return torch.tensor(cells, dtype=torch.float64).clamp_min(1.0)


def drawn(others: Sequence[Spec], chances: Tensor, draw: int | None) -> list[Spec]:
    """Return those that train in a step: some at random, in their order, and the last.

    Args:
        others: from `largest_first`.
        chances: from `chances_of`, which takes longer than a draw: once for all steps.
        draw: as for `listed`.
    """
    if draw is None or len(others) < 2 + draw:
        return list(others)
    if draw == 0:
        return [others[-1]]
    places = sorted(torch.multinomial(chances, draw).tolist())
    return [*(others[place] for place in places), others[-1]]


def check_draw(draw: int | None) -> None:
    """Check how many members a step draws.

    Raises:
        SpecError: no whole number of at least 0.
    """
    if draw is not None and (isinstance(draw, bool) or not isinstance(draw, int) or draw < 0):
        raise SpecError(
            f"draw= is a whole number of at least 0, or None for all members, not {draw!r}"
        )
