"""Any-Precision: all numbers of bits in every step, each taught by the next higher one.

Weights and inputs are quantised as in DoReFa-Net: weights w become tanh(w) over its largest,
in 2^k - 1 even steps from -1 to 1, times the mean of |w|; inputs are cut to 0 ... 1. Every number
of bits has norms of its own. The highest learns from the labels, each other one from the softmax of
the one above it; the gradients of all make one step.

Source: Yu et al., Any-Precision Deep Neural Networks (AAAI 2021); Zhou et al., DoReFa-Net (2016).
Written from the papers. As there, on CIFAR-10: Adam with a learning rate of 0.001 and no decay,
32 bits as the highest, and inputs in 32 bits behind a plain ReLU. Otherwise than there: the
learning rate follows our half cosine; inputs are cut where a quantised layer reads them, not where
they are made, which is the same in a pre-activation net but for its projections.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from comparison.rivals.layers import FewBits, Joint, counts_of, each, joint, offered, rounded
from nestling.objectives.sandwich import Loss, task_loss
from nestling.quantize import FULL
from nestling.spec import Spec
from nestling.supernet import Supernet
from nestling.training import Run

RATE = 0.001  # of Adam, as the authors have it for CIFAR-10


def any_precision(run: Run, *, adam: bool = True) -> Mapping[str, tuple[Spec, nn.Module]]:
    """Train one set of weights for all numbers of bits of the net.

    Args:
        run: what the training is made of.
        adam: the authors' optimiser; if not, the run's own.
    """
    trained = joint(run.net, counts_of(run.net.space), DoReFa)
    if adam:
        run.optimizer = _adam
    run.train_stage(partial(taught, trained, run.loss), name="any-precision", alone=trained)
    return offered(run.net, trained)


def _adam(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=RATE)


class DoReFa(FewBits):
    """A layer with weights and inputs as in DoReFa-Net."""

    def weights(self, weight: Tensor) -> Tensor:
        """Return the weight in 2^bits - 1 even steps, times the mean of its sizes."""
        mean = weight.detach().abs().mean()
        bounded = torch.tanh(weight)
        bounded = bounded / bounded.abs().max()
        if self.bits == FULL:
            return bounded * mean
        return (2 * rounded(bounded / 2 + 0.5, self.bits) - 1) * mean

    def inputs(self, x: Tensor) -> Tensor:
        """Return the inputs, cut to 0 ... 1, in even steps."""
        return x if self.bits == FULL else rounded(x.clamp(0, 1), self.bits)


def taught(trained: Joint, loss: Loss | None, net: Supernet) -> Iterator[tuple[nn.Module, Loss]]:
    """Objective: the net of most bits on the labels, each other one on the one before it."""
    above: list[Tensor] = []

    def first(outputs: Tensor, targets: Tensor) -> Tensor:
        above[:] = [outputs.detach()]
        return (loss or task_loss)(outputs, targets)

    def later(outputs: Tensor, targets: Tensor) -> Tensor:
        teacher = above[0].softmax(1)
        above[:] = [outputs.detach()]
        return F.cross_entropy(outputs, teacher)

    for number, module in enumerate(each(trained)):
        yield module, later if number else first
