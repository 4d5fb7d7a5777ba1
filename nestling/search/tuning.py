"""Selective fine-tuning: trains the slices of one subnet until its accuracy is back.

Plain SGD, so that nothing outside of the slices moves: there the gradients are zero.

Source: Yang et al., A Progressive Sub-Network Searching Framework for Dynamic Inference
(arXiv 2009.05681), stage 2: learning rate 0.01, no momentum, no decay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from contextlib import closing
from typing import Any

import torch
from torch import nn

from nestling import batch as batches
from nestling.errors import DataError, ModelError
from nestling.objectives.sandwich import Loss, task_loss
from nestling.precision import Precision, alternatives, choose, in_float32, tried
from nestling.search.passes import fixed_passes
from nestling.spec import Spec
from nestling.supernet import Supernet

RATE = 0.01
CHECKS = 4  # looks at the accuracy an epoch, so that no more is trained than is needed


class Tuner:
    """Fine-tunes specs of a supernet: `tuner(spec, until, epochs)`.

    Args:
        net: the supernet, whose shared weights change.
        train: training batches, iterated once an epoch.
        score: the accuracy of a spec, such as a `Scorer`.
        loss: from (outputs, targets); by default the model's own, or cross-entropy.
        rate: the learning rate.
        precision: "auto", "float32", "bfloat16" or "float32-channels-last"; what the model does not
            take, as the first batch shows, becomes plainer.

    Raises:
        DataError: the training data has no length, or no batch.

    Example:
        >>> score = Scorer(net, held_out, calibrate=train)
        >>> Tuner(net, train, score)(net.space.spec(fraction=0.2), until=0.5, epochs=2)
        0.5416
    """

    def __init__(
        self,
        net: Supernet,
        train: Iterable[Any],
        score: Callable[[Spec], float],
        *,
        loss: Loss | None = None,
        rate: float = RATE,
        precision: str = "float32",
    ) -> None:
        length = len(train) if isinstance(train, Sized) else 0
        if not length:
            raise DataError(
                "fine-tuning needs training batches with a length, such as a DataLoader or a list, "
                f"but got a {type(train).__name__} with none"
            )
        self.net, self.train, self.score = net, train, score
        self.length, self.rate, self.loss = length, rate, loss or task_loss
        self.device = next(net.parameters()).device
        wanted = choose(precision, self.device, net.model)
        self.wanted = alternatives(precision, wanted)
        self.precise: Precision | None = None  # found on the first batch

    def __call__(self, spec: Spec, until: float, epochs: int) -> float:
        """Train a spec's slices until its accuracy is `until`, or for so many epochs.

        All random choices follow from torch's global generator, whatever was tuned before.

        Returns:
            The accuracy in the end.

        Raises:
            ModelError: the loss is not finite.
        """
        subnet = self.net.subnet(spec).train()
        optimizer = torch.optim.SGD(self.net.parameters(), lr=self.rate)
        optimizer.zero_grad(set_to_none=True)
        every = max(1, self.length // CHECKS)
        reached = self.score(spec)
        with closing(fixed_passes(self.train, int(torch.randint(2**31, ())), epochs)) as data:
            for step, batch in enumerate(data, 1):
                if reached >= until:
                    break
                self._step(subnet, batch)
                optimizer.step()
                optimizer.zero_grad(set_to_none=False)
                if step % every == 0 or step == epochs * self.length:
                    reached = self.score(spec)
        self.net.zero_grad()
        return reached

    def _step(self, subnet: nn.Module, batch: Any) -> None:
        inputs, targets = (batches.move(part, self.device) for part in batches.pair(batch))
        if self.precise is None:
            self.precise, _ = tried(self.wanted, self.net, inputs, targets, self.loss)
        inputs = batches.move(inputs, self.device, self.precise.memory_format)
        with self.precise.autocast(self.device):
            outputs = in_float32(batches.forward(subnet, inputs))
        loss = self.loss(outputs, targets)
        if not bool(torch.isfinite(loss.detach())):
            raise ModelError(
                f"fine-tuning must converge, but the loss is {float(loss.detach())}; lower its "
                "learning rate (rate=)"
            )
        loss.backward()  # type: ignore[no-untyped-call]
