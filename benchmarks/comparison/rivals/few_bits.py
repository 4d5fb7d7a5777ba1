"""A net in one number of bits, by our own code: what nesting several is measured against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from torch import nn

from comparison.rivals.layers import all_in, name_of
from nestling.objectives.sandwich import Loss, in_training, task_loss
from nestling.spec import Spec
from nestling.supernet import Supernet
from nestling.training import Run


def few_bits(run: Run, *, bits: int) -> Mapping[str, tuple[Spec, nn.Module]]:
    """Train the net in a single number of bits, from scratch, without any other.

    Args:
        run: what the training is made of.
        bits: of all weights and inputs that may be in few.
    """
    spec = all_in(run.net.space, bits)
    run.train_stage(partial(only, spec, run.loss), name=name_of(bits))
    return {name_of(bits): (spec, run.net.subnet(spec))}


def only(spec: Spec, loss: Loss | None, net: Supernet) -> Iterator[tuple[nn.Module, Loss]]:
    """Objective: one subnet."""
    yield in_training(net.pooled(spec)), loss or task_loss
