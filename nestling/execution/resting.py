"""Resting units: a step of the optimiser that leaves what was not in the subnet exactly as it was.

Units that a step has dropped have gradients of zero, and yet an optimiser moves them: by weight
decay, and by the momentum that earlier steps have left. Here they rest, with their momentum.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nestling.binding import binding
from nestling.cut import Cut
from nestling.loop import Objective
from nestling.objectives.sandwich import Loss
from nestling.supernet import Supernet


class _Part(NamedTuple):
    """A shared parameter of which a step leaves something out, and the cut of what it moves."""

    parameter: nn.Parameter
    cut: Cut


class Resting:
    """Makes the steps of a stage whose objective yields one subnet a step.

    What a step costs beyond the optimiser's: a copy of the weights of which a subnet lacks a part,
    and of their state. Those that it lacks as a whole (passed blocks; scales and clips of bits that
    were not drawn) have no gradient while the optimiser steps, and so are passed over by it.

    Args:
        net: the supernet.
        objective: of the stage.

    Example:
        >>> steps = Resting(run.net, ordered_dropout)
        >>> run.train_stage(steps.objective, executor=steps)
    """

    def __init__(self, net: Supernet, objective: Objective) -> None:
        self.net = net
        self.inner = objective
        self._last: nn.Module | None = None

    @property
    def module(self) -> None:
        """The subnets of the net are run."""

    def objective(self, net: Supernet) -> Iterator[tuple[nn.Module, Loss]]:
        """Objective: the given one, whose subnet is remembered for the step."""
        for subnet, loss in self.inner(net):
            self._last = subnet
            yield subnet, loss

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step; entries that the last subnet lacks keep their value and their state."""
        parts, absent = self._lacks()
        before = {
            id(part.parameter): {key: held.clone() for key, held in _held(part, optimizer)}
            for part in parts
        }
        gradients = [parameter.grad for parameter in absent]
        for parameter in absent:
            parameter.grad = None
        optimizer.step()
        for parameter, gradient in zip(absent, gradients, strict=True):
            parameter.grad = gradient
        with torch.no_grad():
            for part in parts:
                known = before[id(part.parameter)]
                for key, tensor in _held(part, optimizer):
                    _put_back(tensor, known.get(key), part.cut)

    def write_back(self) -> None:
        """Nothing is to be done: the steps are made on the shared weights themselves."""

    def _lacks(self) -> tuple[list[_Part], list[nn.Parameter]]:
        """Return the parameters of which the last subnet lacks a part, and those it has not.

        The full net has all weights, but none of what only few bits need.
        """
        tie = None if self._last is None else binding(self._last)
        parts: list[_Part] = []
        absent: list[nn.Parameter] = []
        links = {} if tie is None else tie.parameters
        for name, parameter in self.net.named_parameters() if tie is not None else ():
            link = links.get(name)
            if link is None:
                absent.append(parameter)
            elif not link.cut.whole:
                parts.append(_Part(parameter, link.cut))
        return parts, absent


def _held(part: _Part, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Yield a parameter and its state, as far as that has an entry for each of its own."""
    parameter = part.parameter
    yield "", parameter.detach()
    for key, state in optimizer.state.get(parameter, {}).items():
        if isinstance(state, Tensor) and state.shape == parameter.shape:
            yield key, state


def _put_back(tensor: Tensor, before: Tensor | None, cut: Cut) -> None:
    """Give the entries outside of a cut what they had before; 0 where they had nothing."""
    kept = cut.take(tensor).clone()
    if before is None:  # state that this step has made
        tensor.zero_()
    else:
        tensor.copy_(before)
    cut.put(tensor, kept)
