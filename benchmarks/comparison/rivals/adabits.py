"""AdaBits: all numbers of bits in every step, each with a clipping level of its own.

Weights w become (tanh(w) over its largest + 1) / 2, rounded down in 2^k steps, so that fewer bits
are the top ones (the paper's modification of DoReFa-Net), plus half a step, and are scaled so that
their standard deviation is that of a fresh layer (scale-adjusted training). Inputs are cut at a
level that is learned for each number of bits, and rounded in 2^k - 1 steps. Every number of bits
has norms of its own; all learn from the labels, and the gradients of all make one step.

The half step is the authors' later correction ("Centered Weight Quantization for Low Precision" in
the readme of their code; the top bits stay the top bits). Without it, as the paper has it, weights
of mean zero become weights of mean -1 / 2^k. At 2 bits, from scratch, that is near half of their
deviation: all channels see the same negative sum of their inputs, what passes the next ReLU stays
below half a step of the inputs, 1.3 with a clipping level of 8, and so all inputs of every other
layer round to zero. Norms then divide by next to nothing, while the gradient goes straight through
the rounding: on pictures it grew by a factor of some thousand a block, to infinity in ResNet-20, at
the first step.

Fewer than 2 bits are left out: the paper has none, and with a clipping level of 8 inputs of one bit
would be 8 from 4 on and zero below, where nearly all of what comes out of a norm lies.

Source: Jin et al., AdaBits (CVPR 2020); Jin et al., Towards Efficient Training for Neural Network
Quantization (2019) for scale-adjusted training; Choi et al., PACT (2018). Written from the papers.
As there, on CIFAR-10: SGD with Nesterov momentum, a learning rate of 0.1, decay 4e-5, clipping
levels from 8 on, no 32 bits. Otherwise than there: the learning rate follows our half cosine, and
the first and the last layer keep floating point, where theirs have the most bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from comparison.rivals.layers import FewBits, Joint, counts_of, each, joint, offered, rounded
from nestling.errors import ModelError
from nestling.objectives.sandwich import Loss, task_loss
from nestling.optimizers import default_optimizer
from nestling.quantize import FULL
from nestling.spec import Spec
from nestling.supernet import Supernet
from nestling.training import MakeOptimizer, Run

DECAY = 4e-5
CLIP = 8.0  # where the learned clipping levels begin
FEWEST = 2  # bits that the method is for


def adabits(run: Run) -> Mapping[str, tuple[Spec, nn.Module]]:
    """Train one set of weights for all numbers of bits of the net that the method is for.

    Raises:
        ModelError: the net has none of them.
    """
    counts = [count for count in counts_of(run.net.space) if FEWEST <= count != FULL]
    if not counts:
        raise ModelError(
            f"AdaBits is for {FEWEST} bits and more, below floating point, but the layers of this "
            f"net have {counts_of(run.net.space)} in common; give them another number of bits"
        )
    trained = joint(run.net, counts, ScaleAdjusted)
    run.optimizer = partial(_decaying, run.optimizer)
    run.train_stage(partial(labelled, trained, run.loss), name="adabits", alone=trained)
    return offered(run.net, trained)


def _decaying(
    make: MakeOptimizer | None, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """Return the run's own optimiser with the authors' decay."""
    own = default_optimizer(nn.ParameterList(parameters)) if make is None else make(parameters)
    for group in own.param_groups:
        group["weight_decay"] = DECAY if group["weight_decay"] else 0.0
    return own


class ScaleAdjusted(FewBits):
    """A layer with nested weights of adjusted scale, and a clipping level of its own."""

    def __init__(self, layer: nn.Module, bits: int) -> None:
        super().__init__(layer, bits)
        self.clip = nn.Parameter(torch.tensor(CLIP))

    def weights(self, weight: Tensor) -> Tensor:
        """Return the weight in 2^bits steps, with the deviation of a fresh layer."""
        bounded = torch.tanh(weight)
        lower = rounded((bounded / bounded.abs().max() + 1) / 2, self.bits, down=True)
        found = 2 * (lower + 0.5 / (1 << self.bits)) - 1
        outputs = weight.shape[0] * weight[0, 0].numel()
        scale: Tensor = outputs**-0.5 / found.detach().std()
        return found * scale

    def inputs(self, x: Tensor) -> Tensor:
        """Return the inputs, cut at the clipping level, in even steps."""
        level = self.clip.abs().to(x.dtype)
        cut = torch.minimum(x.relu(), level)
        return rounded(cut / level, self.bits) * level


def labelled(trained: Joint, loss: Loss | None, net: Supernet) -> Iterator[tuple[nn.Module, Loss]]:
    """Objective: the nets of all numbers of bits, each on the labels."""
    for module in each(trained):
        yield module, loss or task_loss
