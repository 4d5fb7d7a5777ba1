"""Loop: the steps of one stage of a training, resumable bit for bit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from nestling import batch as batches
from nestling.checkpoint import (
    Checkpoint,
    RandomState,
    generators_of,
    load_into,
    load_optimizer,
    optimizer_settings,
    refuse_other,
)
from nestling.compilation import Compilation
from nestling.errors import DataError, ModelError
from nestling.finiteness import Finiteness
from nestling.objectives.sandwich import Loss
from nestling.optimizers import add_group, cosine
from nestling.precision import Precision, in_float32
from nestling.progress import Reporter
from nestling.stopwatch import Stopwatch
from nestling.supernet import Supernet
from nestling.weights import all_finite

Objective: TypeAlias = Callable[[Supernet], Iterator[tuple[nn.Module, Loss]]]

HOPELESS = 1000.0  # times the first loss, or 1: a training whose loss is that large has diverged
_END = object()


class Executor(Protocol):
    """Makes the steps of a stage, on the shared weights or on a net that stands for them."""

    @property
    def module(self) -> nn.Module | None:
        """What is run in a step in the place of the net's subnets; None for these."""

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step after a backward run, with the settings and the state of the run's optimiser."""

    def write_back(self) -> None:
        """Bring the shared weights, and the optimiser's state, up to date."""


class Owner(Protocol):
    """What a loop needs of the run whose stage it is; `training.Run` says what each is."""

    net: Supernet
    checkpoint: Path | None
    reporter: Reporter
    stopwatch: Stopwatch
    backend: str
    precise: Precision
    done: float

    @property
    def device(self) -> torch.device:
        """Where the shared weights are."""

    def settle(self, inputs: Any, targets: Any, alone: nn.Module | None = None) -> None:
        """Find the precision that the model takes, on the first batch."""

    def leave(self, loop: Loop, epoch: int, batch: int) -> NoReturn:
        """Save, and end the training: the next step is batch `batch` of epoch `epoch`."""


@dataclass(frozen=True)
class Stage:
    """What one stage trains, and on what.

    Attributes:
        data: batches.
        length: how many an epoch has.
        epochs: of this stage.
        alone: a module of its own that is trained instead of the shared weights.
        extra: parameters and buffers that are trained beside them.
        summed: one step of the optimiser for all subnets of a batch, or one after each of them.
        executor: makes the steps in the place of the optimiser.
    """

    data: Iterable[Any]
    length: int
    epochs: int
    alone: nn.Module | None = None
    extra: nn.Module | None = None
    summed: bool = True
    executor: Executor | None = None

    @property
    def steps(self) -> int:
        """How many steps it has; the learning rate follows from it."""
        return self.epochs * self.length

    @property
    def facts(self) -> dict[str, int]:
        """What must be the same when the stage is resumed."""
        return {"batches": self.length, "steps": self.steps}

    @property
    def own(self) -> nn.Module | None:
        """What is trained of its own, beside the shared weights or in their place."""
        return self.extra if self.alone is None else self.alone


class Loop:
    """The steps of one stage.

    Args:
        owner: the run whose stage it is.
        stage: what is trained.
        optimizer: of what is trained.

    Attributes:
        target: the module that is trained.
        extra: what is trained beside it; a module without parameters where there is nothing.
        generators: random generators of the data loader, by name.
        epoch_start: random states when the present epoch began.
    """

    def __init__(self, owner: Owner, stage: Stage, optimizer: torch.optim.Optimizer) -> None:
        self.owner = owner
        self.stage = stage
        self.target = owner.net.model if stage.alone is None else stage.alone
        self.extra = nn.Module() if stage.extra is None else stage.extra
        add_group(optimizer, self.extra)
        self.optimizer = optimizer
        self.generators = generators_of(stage.data)
        self.epoch_start = RandomState.now(self.generators)
        self._rates = [group["lr"] for group in optimizer.param_groups]
        self._settings = optimizer_settings(optimizer)
        self._first_loss: float | None = None
        self._losses: list[float] = []  # of the full net in this epoch
        self._unread: list[Tensor] = []  # those behind them, where they were computed
        self._resumed: Checkpoint | None = None
        self._finite = Finiteness()
        compiling = partial(owner.stopwatch.apart, "compiling")
        self._passes = Compilation(owner.backend, owner.reporter.say, stage.alone, compiling)
        for module in (self.target, self.extra):
            module.zero_grad(set_to_none=True)  # what earlier work has left

    # -- resuming -----------------------------------------------------------------------------

    def state(self, epoch: int, batch: int) -> dict[str, Any]:
        """Return what a checkpoint holds of it beside tensors, as JSON values.

        Args:
            epoch: of the next step.
            batch: of the next step; 0 between two epochs.
        """
        return {
            "optimizer": self._settings,
            "epoch": epoch,
            "batch": batch,
            "alone": self.stage.alone is not None,
            "compiled": self._passes.state,
            "first_loss": self._first_loss,
            "gradients": [name for name, p in self._trained() if p.grad is not None],
            "losses": self._read() if batch else [],
        }

    def restore(self, found: Checkpoint | None) -> tuple[int, int]:
        """Return the epoch and the batch to go on with: those of a checkpoint, if there is one."""
        if found is None:
            return 0, 0
        path = self.owner.checkpoint
        refuse_other(found.header["optimizer"], self._settings, path)
        load_into(self.target, found.weights, path)
        load_into(self.extra, found.results.pop("extra", {}), path)
        load_optimizer(self.optimizer, found.optimizer, path)
        written = set(found.header["gradients"])
        for name, parameter in self._trained():
            # An optimiser passes over a parameter without a gradient; not over one of zeros.
            parameter.grad = torch.zeros_like(parameter) if name in written else None
        self._passes.restore(found.header["compiled"])
        epoch, batch = found.header["epoch"], found.header["batch"]
        self._first_loss = found.header["first_loss"]
        if batch:
            self._resumed = found
            self.epoch_start = found.epoch_start
            self._losses = list(found.header["losses"])
        else:
            found.present.restore(self.generators)
        return epoch, batch

    # -- an epoch -----------------------------------------------------------------------------

    def epoch(self, objective: Objective, epoch: int, start: int, stop: threading.Event) -> None:
        """Make all steps of an epoch from batch `start` on.

        A signal is looked at after whole steps alone: in the midst of one, gradients, norm
        statistics and random states have part of a batch behind them, and no checkpoint holds
        where an objective stands.
        """
        items = iter(self._data(epoch, start))
        batch = start
        while (item := self._next(items, epoch, batch, stop)) is not _END:
            self._set_rates(epoch * self.stage.length + batch)
            self._step(objective, item, epoch)
            self._finite.step()
            self.owner.reporter.advance()
            batch += 1
            if stop.is_set():
                self.owner.leave(self, epoch, batch)
        if not self._losses and not self._unread:
            raise DataError("train= yielded no batch in this epoch; it must be iterable again")

    def _next(self, items: Iterator[Any], epoch: int, batch: int, stop: threading.Event) -> Any:
        try:
            return next(items, _END)
        except Exception:
            if stop.is_set():  # the same signal has ended the loader's workers
                self.owner.leave(self, epoch, batch)
            raise

    def _data(self, epoch: int, start: int) -> Iterable[Any]:
        """Return the batches of an epoch from `start` on, in the order of an unbroken run."""
        data = self.stage.data
        resumed, self._resumed = self._resumed, None
        if not start or resumed is None:
            self._losses, self._unread = [], []
            self.epoch_start = RandomState.now(self.generators)
            return batches.at(data, epoch)
        if batches.starts_anywhere(data):
            resumed.present.restore(self.generators)
            return batches.at(data, epoch, start)
        resumed.epoch_start.restore(self.generators)
        items = iter(data)
        for _ in range(start):
            if next(items, _END) is _END:
                raise DataError(
                    f"train= yields fewer than the {start} batches that the checkpoint has seen of "
                    "this epoch; resume with the same data"
                )
        resumed.present.restore(self.generators)
        return items

    # -- a step -------------------------------------------------------------------------------

    def _step(self, objective: Objective, item: Any, epoch: int) -> None:
        owner, executor = self.owner, self.stage.executor
        device = owner.device
        inputs, targets = batches.pair(item)
        for leaf, flag in batches.finite_flags(inputs):
            self._finite.require(flag, partial(batches.not_finite, tuple(leaf.shape)))
        inputs, targets = (batches.move(part, device) for part in (inputs, targets))
        owner.settle(inputs, targets, self.stage.alone if executor is None else executor.module)
        precise = owner.precise
        inputs = batches.move(inputs, device, precise.memory_format)
        losses = []
        for subnet, loss in objective(owner.net):
            with (
                batches.blamed("the model must accept the inputs of train=", inputs),
                precise.autocast(device),
            ):
                outputs = in_float32(self._passes(subnet, inputs))
            with batches.blamed(
                "the loss must be one number for (outputs, targets): see loss=", outputs, targets
            ):
                value = loss(outputs, targets)
                self._passes.backward(value)
            losses.append(value.detach())
            if not self.stage.summed:
                self._update(losses[-1:], epoch)
        if self.stage.summed:
            self._update(losses, epoch)
        self._unread.append(losses[0])
        if self._first_loss is None:
            self._first_loss = float(losses[0])

    def _update(self, losses: Sequence[Tensor], epoch: int) -> None:
        known = torch.stack(list(losses))
        self._finite.require(torch.isfinite(known).all(), partial(self._no_loss, known, epoch))
        if self.stage.executor is None:
            self.optimizer.step()
        else:
            self.stage.executor.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=False)

    def _set_rates(self, step: int) -> None:
        self.owner.done = step / self.stage.steps
        factor = cosine(step, self.stage.steps)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor

    # -- divergence ---------------------------------------------------------------------------

    def mean_loss(self) -> float:
        """Return the mean loss of the full net over the epoch so far."""
        return float(torch.tensor(self._read(), dtype=torch.float32).mean())

    def _read(self) -> list[float]:
        """Return the losses of the epoch so far; those on a GPU are copied together."""
        if self._unread:
            self._losses += torch.stack(self._unread).tolist()
            self._unread = []
        return list(self._losses)

    def check(self, epoch: int) -> None:
        """Check that the training has not diverged, before it replaces a good checkpoint.

        Raises:
            ModelError: it has.
            DataError: a batch held numbers that are not finite, which is only seen now.
        """
        self._finite.look()
        trained: list[Tensor] = [parameter for _, parameter in self._trained()]
        trained += [b for name, b in self.target.named_buffers() if name in self.owner.net.private]
        if not all_finite(trained):
            raise self._diverged("the weights hold NaN or infinity", epoch)
        if self.mean_loss() > HOPELESS * max(1.0, abs(self._first_loss or 0.0)):
            raise self._diverged(f"the loss is {self.mean_loss():.3g}", epoch)

    def _no_loss(self, losses: Tensor, epoch: int) -> ModelError:
        bad = losses[torch.isfinite(losses).logical_not()]
        return self._diverged(f"the loss is {float(bad[0])}", epoch)

    def _diverged(self, what: str, epoch: int) -> ModelError:
        kept = self.owner.checkpoint
        return ModelError(
            f"training must converge, but {what} in epoch {epoch + 1}: it has diverged; lower "
            "the learning rate (optimizer=)"
            + (f"; {kept} holds the last good state" if kept and kept.exists() else "")
        )

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.target.named_parameters()
        yield from self.extra.named_parameters(prefix="extra/")
