"""Rehearsal: residual blocks must be passed by in training as they are in evaluation.

A block may return something else in training (half of its input and a branch). So the model is
traced in training mode too, with its dropout off and statistics of the batch in its norms: every
block must add to what it is given there as well, and the net without the other summands must
compute what the subnet without the blocks computes. All runs are of copies.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nestling.axes.comparison import Tolerance, compare
from nestling.axes.reference import Replayer
from nestling.axes.residual import dropped, stages
from nestling.axes.tracer import run, trace
from nestling.extent import Counts
from nestling.spec import Space
from nestling.surroundings import undisturbed
from nestling.weights import duplicate


class Rehearsal:
    """A model's training run, with its dropout off.

    Args:
        model: is copied.
        given: positional and keyword inputs, of two examples at least where norms need them.
        tensors: returns the tensors that the user needs of what the model returns.
        tolerance: what rounding explains.

    Attributes:
        is_random: whether the training run still differs from call to call; then it tells nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        given: tuple[tuple[Any, ...], dict[str, Any]],
        tensors: Callable[[Any], Sequence[Tensor]],
        tolerance: Tolerance,
    ) -> None:
        self.given = given
        self.tensors = tensors
        self.tolerance = tolerance
        self.model = _calmed(duplicate(model))
        with undisturbed(self.model), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            one, other = (self._run(self.model, seed=seed) for seed in (0, 1))
            self.is_random = not compare(one, other, tolerance).holds
            self.trace = trace(self.model, *given)[0]
        found = stages(self.model, self.trace.lineage)
        self.steps = {path: steps for stage in found for path, steps in stage.steps.items()}
        self.passages = {b.module: b.passage for stage in found for b in stage.blocks}

    def error(self, space: Space, counts: Counts, subnet: nn.Module) -> str:
        """Return why blocks cannot be passed by in training; empty if they can.

        Args:
            space: says which blocks the counts pass by.
            counts: of depth axes.
            subnet: a copy for these counts, which is changed.
        """
        if self.is_random:
            return ""
        for block in space.passed(counts):
            if self.passages.get(block.module) != block.passage:
                return f"in training, {block.module} does not add to what it is given"
        mode = Replayer(self.trace, {}, dropped(self.steps, space, counts))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = self._run(self.model, mode=mode)
            found = self._run(_calmed(subnet))
        verdict = compare(found, expected, self.tolerance)
        if verdict.holds:
            return ""
        return f"in training, a subnet without its blocks is wrong by {verdict.difference:.1e}"

    def _run(
        self, module: nn.Module, mode: Replayer | None = None, seed: int = 0
    ) -> Sequence[Tensor]:
        devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
        with torch.random.fork_rng(devices=list(devices)):
            torch.manual_seed(seed)
            return self.tensors(run(module, *self.given, mode))


def _calmed(module: nn.Module) -> nn.Module:
    """Put a module in training mode, but for the parts that drop at random; return it."""
    module.train()
    for part in module.modules():
        empty = not any(True for _ in part.parameters()) and not any(True for _ in part.buffers())
        if empty and any(word in type(part).__name__ for word in ("Drop", "StochasticDepth")):
            part.eval()
        elif isinstance(part, (nn.MultiheadAttention, nn.RNNBase)):
            part.dropout = 0.0
    return module
