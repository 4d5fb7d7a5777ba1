"""The sandwich rule with in-place distillation.

Each step trains the largest net on the labels, and the smallest and two of random width on what the
largest says (its outputs, detached). One optimiser step follows the four passes.

Source: Yu and Huang, Universally Slimmable Networks and Improved Training Techniques (ICCV 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nestling.axes.structure import map_tensors
from nestling.batch import part_of, scores_of
from nestling.errors import DataError, SpecError
from nestling.spec import Spec
from nestling.supernet import Supernet, check_supernet

Loss: TypeAlias = Callable[[Any, Any], Tensor]

LOW = 0.25  # the narrowest width of the paper


def sandwich(
    net: Supernet,
    *,
    low: float = LOW,
    random: int = 2,
    loss: Loss | None = None,
    distill: Loss | None = None,
) -> Iterator[tuple[nn.Module, Loss]]:
    """Yield the subnets of a step, each with its loss: the largest, `random` others, the smallest.

    Args:
        net: the supernet.
        low: narrowest uniform width, above 0 and at most 1.
        random: how many subnets of random width train beside the largest and the smallest.
        loss: of the largest net, from (outputs, targets); the default is the `loss` that the
            model's output holds, or cross-entropy of its scores.
        distill: of the others, from (outputs, the largest net's outputs); the default is soft
            cross-entropy at temperature 1. With a `loss` and no `distill`, all train on the
            targets.

    Raises:
        SpecError: `low` is no width, or `random` no whole number; or the first subnet's loss, which
            teaches the others, was called fewer times than theirs. With micro-batches, the n-th
            call of a subnet's loss learns from the n-th call of the first one's.

    Example:
        >>> for subnet, loss in nestling.sandwich(net):
        ...     loss(subnet(images), labels).backward()
        >>> optimizer.step(); optimizer.zero_grad()
    """
    check_supernet(net, "sandwich")
    others = random_widths(net, low, random)
    yield from lessons(
        (in_training(net.pooled(s)) for s in [net.space.full, *others]), loss, distill
    )


def lessons(
    subnets: Iterable[nn.Module], loss: Loss | None = None, distill: Loss | None = None
) -> Iterator[tuple[nn.Module, Loss]]:
    """Yield subnets with their losses: the first learns the targets, and teaches the others.

    Args:
        subnets: of a step, the teacher first.
        loss: as for `sandwich`.
        distill: as for `sandwich`.
    """
    for name, given in (("loss=", loss), ("distill=", distill)):
        if given is not None and not callable(given):
            raise SpecError(
                f"{name} is a function from (outputs, targets or the teacher's outputs) to a loss, "
                f"or None for the usual one, not {given!r}"
            )
    hard = loss or task_loss
    soft = distill or (soft_cross_entropy if loss is None else None)
    taught: list[Any] = []

    def teach(outputs: Any, targets: Any) -> Tensor:
        taught.append(_detached(outputs))
        return hard(outputs, targets)

    for number, subnet in enumerate(subnets):
        learn = hard if soft is None else _pupil(soft, taught)
        yield subnet, teach if number == 0 else learn


def _pupil(soft: Loss, taught: Sequence[Any]) -> Loss:
    """Return the loss of one subnet; each call learns from the next of the taught outputs."""
    calls = 0

    def learn(outputs: Any, targets: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > len(taught):
            raise SpecError(
                "the first subnet of a step teaches the others: call its loss before theirs and "
                f"for as many micro-batches, but this is call {calls} after {len(taught)} of its"
            )
        return soft(outputs, taught[calls - 1])

    return learn


def random_widths(net: Supernet, low: float, random: int) -> list[Spec]:
    """Return the specs of a step besides the full one: `random` of random width, the smallest.

    Raises:
        SpecError: `low` is no width, or `random` no whole number.
    """
    check_low(low)
    if isinstance(random, bool) or not isinstance(random, int) or random < 0:
        raise SpecError(f"random= is a whole number of at least 0, but it is {random!r}")
    widths = low + (1 - low) * torch.rand(random)
    return [net.space.spec(width=float(width)) for width in [*widths, low]]


def check_low(low: float) -> None:
    """Check a narrowest width.

    Raises:
        SpecError: it is none.
    """
    if isinstance(low, bool) or not isinstance(low, (int, float)) or not 0 < low <= 1:
        raise SpecError(f"low= is a width above 0 and at most 1, but it is {low!r}")


def task_loss(outputs: Any, targets: Any) -> Tensor:
    """Return the loss that a model's output holds, or else the cross-entropy of its scores.

    Args:
        outputs: scores (N, C, ...), or an output that holds a `loss` or `logits`.
        targets: class numbers (N, ...), or class probabilities.

    Raises:
        DataError: the output holds neither, or the score of one class alone.
    """
    own = part_of(outputs, "loss")
    if own is not None:
        return own
    scores = scores_of(outputs)
    if scores.dim() > 1 and scores.shape[1] == 1:
        raise DataError(
            f"the usual loss is the cross-entropy of two classes or more, but the model's scores "
            f"{tuple(scores.shape)} are of one class alone, whose cross-entropy is always 0; give "
            "loss=, such as loss=F.binary_cross_entropy_with_logits, and metric="
        )
    return F.cross_entropy(scores, targets)


def soft_cross_entropy(outputs: Any, teacher: Any) -> Tensor:
    """Return the mean cross-entropy against the softmax of a teacher's outputs.

    Scores are (N, C, ...), or (N, T, C) where they are the `logits` of an output: of a sequence.
    """
    scores, taught = scores_of(outputs), scores_of(teacher)
    if scores is not outputs and scores.dim() == 3:
        scores, taught = scores.flatten(0, 1), taught.flatten(0, 1)
    return F.cross_entropy(scores, taught.softmax(1))


def in_training(subnet: nn.Module) -> nn.Module:
    """Return a subnet in training mode; no walk through its modules where it is."""
    return subnet if subnet.training else subnet.train()


def _detached(outputs: Any) -> Any:
    return map_tensors(outputs, Tensor.detach)
