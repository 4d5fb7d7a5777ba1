"""What a joint step costs: against its passes as stand-alone nets, and compiled against eager.

    python benchmarks/joint_step.py                      # ResNet-20, batch 128, one thread
    python benchmarks/joint_step.py --eager              # without compiled steps
    python benchmarks/joint_step.py --device cuda --width 0.8 0.6 0.3

A joint step is that of a training: the passes of all subnets on the labels of one batch, with an
optimiser step after each of them, or ("summed") one for all of their gradients; gradients cleared.
"Apart" are stand-alone nets of the same shapes with contiguous weights of their own: the same
passes and losses, and each net's own optimiser step. Ratios are medians over pairs of steps in
turn, with a 95 % interval. On a CPU they are of processor time, which other programs lengthen
little.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import nestling
from nestling.compilation import INDUCTOR, Compilation
from nestling.costs.latency import Ratio, paired_ratio
from nestling.objectives.sandwich import task_loss
from nestling.optimizers import default_optimizer
from nestling.precision import Precision, choose
from nestling.spec import Spec

JOINT = "joint / apart"
COMPILED = "compiled / eager, joint"
BOTH = "joint / apart, compiled"
SUMMED = "summed joint / apart"
SUMMED_BOTH = "summed joint / apart, compiled"


@dataclass
class Material:
    """What steps are made of.

    Attributes:
        net: the supernet.
        specs: of the subnets of a step, the full one first.
        images: (N, C, H, W), on the net's device.
        labels: int64 (N,).
        precise: number format and layout of the training.
    """

    net: nestling.Supernet
    specs: Sequence[Spec]
    images: Tensor
    labels: Tensor
    precise: Precision
    optimizer: torch.optim.Optimizer = field(init=False)  # of the shared weights

    def __post_init__(self) -> None:
        self.net.to(memory_format=self.precise.memory_format)
        self.images = self.images.to(memory_format=self.precise.memory_format)
        self.optimizer = default_optimizer(self.net.model)

    def joint(self, backend: str, *, summed: bool = False) -> Callable[[], None]:
        """Return a function that makes a joint step.

        Args:
            backend: of the compiler; "" runs eagerly.
            summed: one step of the optimiser for all passes, or one after each.
        """
        passes = Compilation(backend, refuse)

        def step() -> None:
            for spec in self.specs:
                self.run(passes, self.net.pooled(spec).train())
                if not summed:
                    update(self.optimizer)
            if summed:
                update(self.optimizer)

        return step

    def apart(self, backend: str) -> Callable[[], None]:
        """Return a function that makes the passes of a joint step with stand-alone nets."""
        nets = [nestling.pack(self.net.subnet(spec)).train() for spec in self.specs]
        passes = [(Compilation(backend, refuse, alone=net), net) for net in nets]
        optimizers = [default_optimizer(net) for net in nets]

        def step() -> None:
            for (run, net), optimizer in zip(passes, optimizers, strict=True):
                self.run(run, net)
                update(optimizer)

        return step

    def run(self, passes: Compilation, module: nn.Module) -> None:
        """Run a net forward and backward."""
        with self.precise.autocast(self.images.device):
            outputs = passes(module, self.images)
        task_loss(outputs.float(), self.labels).backward()


def update(optimizer: torch.optim.Optimizer) -> None:
    """Make a step of an optimiser, and clear the gradients as a training does."""
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)


def refuse(text: str) -> None:
    """Stop where something is not compiled: its figures would be those of other steps."""
    if "eagerly" in text:
        raise RuntimeError(text)


def compare(
    given: Material, *, compiled: bool = True, seconds: float = 30.0, precision: float = 0.01
) -> dict[str, Ratio]:
    """Measure the ratios of steps.

    Args:
        given: what they are made of.
        compiled: whether to compile them too, which takes up to a minute for every net.
        seconds: longest time for one ratio, without compiling; each has 11 pairs at least.
        precision: at which a ratio is known well enough.

    Returns:
        `JOINT` and `SUMMED`, and with `compiled` also `COMPILED`, `BOTH` and `SUMMED_BOTH`.
    """
    device = given.images.device
    options: dict[str, Any] = {"seconds": seconds, "precision": precision}
    if device.type == "cuda":
        options["synchronize"] = torch.cuda.synchronize
    else:
        options["clock"] = time.process_time
    joint, apart = given.joint(""), given.apart("")
    found = {
        JOINT: paired_ratio(joint, apart, **options),
        SUMMED: paired_ratio(given.joint("", summed=True), apart, **options),
    }
    if compiled:
        fast, fast_apart = given.joint(INDUCTOR), given.apart(INDUCTOR)
        found[COMPILED] = paired_ratio(fast, joint, **options)
        found[BOTH] = paired_ratio(fast, fast_apart, **options)
        fast_summed = given.joint(INDUCTOR, summed=True)
        found[SUMMED_BOTH] = paired_ratio(fast_summed, fast_apart, **options)
    return found


def resnet20(
    device: torch.device,
    *,
    widths: Sequence[float] = (0.75, 0.5, 0.25),
    batch: int = 128,
    step: int | None = None,
    precision: str = "auto",
) -> Material:
    """Return the steps of a ResNet-20 on pictures of 32 x 32 pixels."""
    torch.manual_seed(0)
    model = nestling.models.resnet20()
    net = nestling.Supernet(model, torch.randn(1, 3, 32, 32), step=step).to(device)
    specs = [net.space.full, *(net.space.spec(width=width) for width in widths)]
    images = torch.randn(batch, 3, 32, 32, device=device)
    labels = torch.randint(10, (batch,), device=device)
    return Material(net, specs, images, labels, choose(precision, device, net.model))


def main() -> None:
    """Measure and print."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--device", default="cpu")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--batch", type=int, default=128)
    made.add_argument("--step", type=int, help="what counts go in; hardware-friendly by default")
    made.add_argument("--width", type=float, nargs="+", default=[0.75, 0.5, 0.25])
    made.add_argument("--precision", default="auto")
    made.add_argument("--seconds", type=float, default=30.0, help="longest time for one ratio")
    made.add_argument("--eager", action="store_true", help="do not compile")
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    given = resnet20(
        torch.device(options.device),
        widths=options.width,
        batch=options.batch,
        step=options.step,
        precision=options.precision,
    )
    print(f"ResNet-20, batch {options.batch}, {given.precise}, widths 1 {options.width}")
    found = compare(given, compiled=not options.eager, seconds=options.seconds)
    for name, ratio in found.items():
        print(f"  {name:<30} {ratio.median:.3f}  ({ratio.low:.3f} to {ratio.high:.3f})")
    print(json.dumps({name: asdict(ratio) for name, ratio in found.items()}))


if __name__ == "__main__":
    main()
