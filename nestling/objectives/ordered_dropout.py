"""Ordered dropout: each step draws how many units of every axis are kept, and trains that subnet.

One pass and one step, at the cost of the subnet that was drawn: the dropped units are not computed,
forward or backward. Since the first units of an axis are kept more often than the later ones, these
learn what is needed most, and any prefix is a net of its own in the end.

Source: Cui et al., Fully Nested Neural Network for Adaptive Compression and Quantization (IJCAI
2020).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from nestling.binding import binding
from nestling.cut import Cut
from nestling.errors import SpecError, did_you_mean
from nestling.objectives.law import Draws, draws_of
from nestling.objectives.sandwich import Loss, in_training, task_loss
from nestling.supernet import Supernet, check_supernet

STATISTICS = ("own", "shared")


def ordered_dropout(
    net: Supernet,
    draws: Draws | None = None,
    *,
    statistics: str = "own",
    loss: Loss | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[nn.Module, Loss]]:
    """Yield the subnet of a step with its loss: one spec, drawn for every axis by itself.

    Args:
        net: the supernet.
        draws: how the spec is drawn, from `draws_of`; all axes under the uniform law by default.
        statistics: of norms: "own" leaves those of a drawn subnet to it, so that each must be
            recalibrated before it is evaluated; "shared" has one set, the net's, which every drawn
            subnet moves where it has units, as in the paper.
        loss: as for `sandwich`.
        generator: of the draw; torch's global one by default.

    Raises:
        SpecError: an option that is none, or a net of which nothing can be dropped.

    Example:
        >>> draws = nestling.objectives.draws_of(net.space, law="geometric")
        >>> for subnet, loss in nestling.objectives.ordered_dropout(net, draws):
        ...     loss(subnet(images), labels).backward()
        >>> optimizer.step(); optimizer.zero_grad()
    """
    check_supernet(net, "ordered_dropout")
    check_statistics(statistics)
    draws = draws or draws_of(net.space)
    subnet = in_training(net.pooled(draws.spec(net.space, generator)))
    if statistics == "shared":
        _exchange(net, subnet, lambda own, shared, cut: own.copy_(cut.take(shared)))
    yield subnet, loss or task_loss
    if statistics == "shared":
        _exchange(net, subnet, lambda own, shared, cut: cut.put(shared, own))


def check_statistics(statistics: str) -> None:
    """Check whose the norm statistics are.

    Raises:
        SpecError: it is unknown.
    """
    if statistics not in STATISTICS:
        raise SpecError(
            f"statistics= is one of {', '.join(STATISTICS)}, not {statistics!r}"
            f"{did_you_mean(str(statistics), STATISTICS)}"
        )


def _exchange(
    net: Supernet, subnet: nn.Module, act: Callable[[Tensor, Tensor, Cut], object]
) -> None:
    """Act on every norm statistic of a subnet, the net's, and the cut between them.

    The full net's are the net's own, so nothing is done for it.
    """
    tie = binding(subnet)
    if tie is None or tie.full:
        return
    shared = dict(net.model.named_buffers())
    with torch.no_grad():
        for name, own in tie.private.items():
            act(own, shared[name], Cut.of(net.space.layouts[name], tie.counts))
