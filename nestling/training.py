"""Training: one readable loop, resumable bit for bit.

A `Run` holds what a training is made of. Methods call `run.train(objective)` once a stage; finished
stages are skipped when a run is resumed. The checkpoint is written at the end of every epoch, and at
once on Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from nestling import batch as batches
from nestling.checkpoint import Checkpoint, RandomState
from nestling.errors import DataError, FileError, ModelError
from nestling.evaluation import Metric, accuracy
from nestling.objectives.sandwich import Loss
from nestling.precision import choose
from nestling.progress import Reporter
from nestling.supernet import Supernet

Objective: TypeAlias = Callable[[Supernet], Iterator[tuple[nn.Module, Loss]]]
MakeOptimizer: TypeAlias = Callable[[Iterable[Any]], torch.optim.Optimizer]

WARM_UP = 0.05  # share of the steps in which the learning rate rises
LINES_EVERY = 10.0  # seconds between progress lines where there is no terminal


class Interrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C or SIGTERM, after its state was saved."""


@dataclass
class Run:
    """What a training is made of.

    Attributes:
        net: the supernet whose shared weights are trained.
        train: training batches, `(inputs, targets)` pairs; iterated once an epoch.
        epochs: passes over `train` in each stage.
        seed: of all random choices.
        loss: of the full net, from (outputs, targets); None means cross-entropy.
        metric: mean score of a batch, larger is better.
        optimizer: makes the optimiser from the parameters; its learning rate rises for the first
            5 % of the steps and then falls to zero along a half cosine.
        precision: "auto", "float32" or "bfloat16".
        checkpoint: where the state is saved; None saves nothing.
        reporter: shows the progress.
    """

    net: Supernet
    train: Iterable[Any]
    epochs: int
    seed: int = 0
    loss: Loss | None = None
    metric: Metric = accuracy
    optimizer: MakeOptimizer | None = None
    precision: str = "auto"
    checkpoint: Path | None = None
    reporter: Reporter = field(default_factory=lambda: Reporter(quiet=True))
    log: list[dict[str, Any]] = field(default_factory=list)
    _stage: int = field(default=0, init=False)
    _resumed: Checkpoint | None = field(default=None, init=False)
    _results: dict[str, dict[str, Tensor]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if isinstance(self.epochs, bool) or not isinstance(self.epochs, int) or self.epochs < 0:
            raise ModelError(f"epochs= is a whole number of at least 0, but it is {self.epochs!r}")
        try:
            batches_an_epoch = len(self.train)  # type: ignore[arg-type]
        except TypeError as error:
            raise DataError(
                f"train= must have a length and be iterable once an epoch, but a "
                f"{type(self.train).__name__} has no len(); use a DataLoader or a list of batches"
            ) from error
        if self.epochs and not batches_an_epoch:
            raise DataError("train= has no batch; give at least one")
        self.precise = choose(self.precision, self.device, self.net.model)
        self.net.to(memory_format=self.precise.memory_format)
        torch.manual_seed(self.seed)

    @property
    def device(self) -> torch.device:
        """Where the shared weights are."""
        return next(self.net.parameters()).device

    # -- one stage ----------------------------------------------------------------------------

    def train_stage(
        self,
        objective: Objective,
        *,
        name: str = "training",
        alone: nn.Module | None = None,
        epochs: int | None = None,
    ) -> None:
        """Train the shared weights, or one stand-alone module, with an objective.

        Args:
            objective: yields the subnets of a step with their losses.
            name: shown with the progress.
            alone: a module of its own that is trained instead of the shared weights.
            epochs: of this stage; the run's by default.

        Raises:
            ModelError: the loss is not finite.
            DataError: a batch is no pair, or holds numbers that are not finite.
            Interrupted: Ctrl-C or SIGTERM; the state was saved before.
        """
        stage, self._stage = self._stage, self._stage + 1
        epochs = self.epochs if epochs is None else epochs
        if self._skip(stage, alone):
            return
        target = alone if alone is not None else self.net.model
        optimizer = self._make_optimizer(target)
        steps = epochs * len(self.train)  # type: ignore[arg-type]
        rates = [group["lr"] for group in optimizer.param_groups]
        loop = _Loop(self, stage, target, optimizer, rates, steps)
        first, start = loop.restore(self._resumed, stage)
        self._resumed = None
        self.reporter.start(name, steps, first * loop.length + start)
        with _graceful() as stop:
            for epoch in range(first, epochs):
                loop.epoch(objective, epoch, start, stop)
                start = 0
                self._finish_epoch(loop, epoch, epochs, name)
        if alone is not None:
            self._results[str(stage)] = _cloned(alone.state_dict())

    def _finish_epoch(self, loop: _Loop, epoch: int, epochs: int, name: str) -> None:
        self.log.append({"stage": name, "epoch": epoch + 1, "loss": loop.mean_loss()})
        self.reporter.line(
            f"{name}: epoch {epoch + 1} of {epochs}, loss {self.log[-1]['loss']:.4f}",
            at_most_every=0.0 if epoch + 1 == epochs else LINES_EVERY,
        )
        loop.save(epoch + 1, 0)

    def _skip(self, stage: int, alone: nn.Module | None) -> bool:
        """Return whether a resumed run has this stage behind it, after restoring its result."""
        if self._resumed is None or stage >= self._resumed.header["stage"]:
            return False
        if alone is not None:
            alone.load_state_dict(self._results[str(stage)])
        return True

    def _make_optimizer(self, target: nn.Module) -> torch.optim.Optimizer:
        if self.optimizer is None:
            return default_optimizer(target)
        made = self.optimizer(target.parameters())
        if not isinstance(made, torch.optim.Optimizer):
            raise ModelError(
                "optimizer= is a function from parameters to a torch optimiser, such as "
                f"lambda p: torch.optim.SGD(p, lr=0.1), but it returned {type(made).__name__}"
            )
        return made

    # -- resuming -----------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """Return what a resumed run must have been started with."""
        length = len(self.train)  # type: ignore[arg-type]
        return {
            "epochs": self.epochs,
            "seed": self.seed,
            "batches": length,
            "precision": str(self.precise),
        }

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one.

        Raises:
            FileError: the checkpoint is damaged, or was made with other settings.
        """
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        found = Checkpoint.load(self.checkpoint)
        theirs = found.header.get("facts")
        if theirs != self.facts():
            raise FileError(
                f"{self.checkpoint} was made with {theirs}, but this run has {self.facts()}; "
                "resume with the same settings, or start in a new folder"
            )
        self._resumed = found
        self._results = found.results
        self.log = list(found.header["log"])
        if not found.header["alone"]:
            _load(self.net.model, found.weights, self.checkpoint)
        elif "net" in found.results:
            _load(self.net.model, found.results["net"], self.checkpoint)


@dataclass
class _Loop:
    """The steps of one stage."""

    run: Run
    stage: int
    target: nn.Module
    optimizer: torch.optim.Optimizer
    rates: list[float]
    steps: int
    resumed: Checkpoint | None = None

    def __post_init__(self) -> None:
        self.length = len(self.run.train)  # type: ignore[arg-type]
        self.losses: list[Tensor] = []
        self.epoch_start = RandomState.now()

    def restore(self, found: Checkpoint | None, stage: int) -> tuple[int, int]:
        """Return the epoch and the batch to go on with."""
        if found is None or found.header["stage"] != stage:
            return 0, 0
        _load(self.target, found.weights, self.run.checkpoint)
        self.optimizer.load_state_dict(found.optimizer)
        epoch, batch = found.header["epoch"], found.header["batch"]
        self.losses = [torch.tensor(value) for value in found.header["losses"]]
        if batch:
            self.epoch_start = found.epoch_start
        self.resumed = found
        return epoch, batch

    def epoch(self, objective: Objective, epoch: int, start: int, stop: threading.Event) -> None:
        """Make all steps of an epoch from batch `start` on."""
        data = self._data(epoch, start)
        for batch, item in enumerate(data, start):
            inputs, targets = batches.pair(item)
            self._set_rates(epoch * self.length + batch)
            self._step(objective, inputs, targets)
            self.run.reporter.advance()
            if stop.is_set():
                self.save(epoch, batch + 1)
                raise Interrupted
        if not self.losses:
            raise DataError("train= yielded no batch in this epoch; it must be iterable again")
        loss = self.mean_loss()
        if not math.isfinite(loss):
            raise ModelError(self._diverged(epoch, loss))

    def _data(self, epoch: int, start: int) -> Iterable[Any]:
        """Return the batches of an epoch from `start` on, in exactly the order of an unbroken run."""
        train, resumed = self.run.train, self.resumed
        self.resumed = None
        if start == 0:
            self.losses = []
            if resumed is not None:
                resumed.present.restore()
            self.epoch_start = RandomState.now()
            return train.at(epoch) if hasattr(train, "at") else train
        if hasattr(train, "at"):
            if resumed is not None:
                resumed.present.restore()
            return train.at(epoch, start=start)  # type: ignore[no-any-return]
        if resumed is not None:
            resumed.epoch_start.restore()
        items = iter(train)
        for _ in range(start):
            next(items)
        if resumed is not None:
            resumed.present.restore()
        return items

    def _step(self, objective: Objective, inputs: Any, targets: Any) -> None:
        device, precise = self.run.device, self.run.precise
        _refuse_bad_inputs(inputs)
        inputs = batches.move(inputs, device, precise.memory_format)
        targets = batches.move(targets, device)
        losses = []
        for subnet, loss in objective(self.run.net):
            with precise.autocast(device):
                outputs = batches.forward(subnet, inputs)
            value = loss(_in_float32(outputs), targets)
            value.backward()
            losses.append(value.detach())
        self.losses.append(losses[0])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)

    def _set_rates(self, step: int) -> None:
        factor = cosine(step, self.steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def _diverged(self, epoch: int, loss: float) -> str:
        kept = f"; {self.run.checkpoint} holds the state before" if self.run.checkpoint else ""
        return (
            f"the loss must be finite, but it is {loss} after epoch {epoch + 1}: the training has "
            f"diverged; lower the learning rate{kept}"
        )

    def mean_loss(self) -> float:
        """Return the mean loss of the full net over the epoch so far."""
        return float(torch.stack([loss.float().cpu() for loss in self.losses]).mean())

    def save(self, epoch: int, batch: int) -> None:
        """Write the checkpoint: the next step is batch `batch` of epoch `epoch`."""
        run = self.run
        if run.checkpoint is None:
            return
        alone = self.target is not run.net.model
        results = dict(run._results)
        if alone:
            results["net"] = run.net.state_dict()
        header = {
            "facts": run.facts(),
            "stage": self.stage,
            "epoch": epoch,
            "batch": batch,
            "alone": alone,
            "log": run.log,
            "losses": [float(loss) for loss in self.losses] if batch else [],
        }
        Checkpoint(
            header,
            self.target.state_dict(),
            self.optimizer.state_dict(),
            self.epoch_start,
            RandomState.now(),
            results,
        ).save(run.checkpoint)


def default_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Return SGD with Nesterov momentum 0.9, learning rate 0.1 and decay 5e-4 where it belongs.

    Convolutions and linear weights decay; biases, norms and depthwise convolutions do not.
    """
    decayed, plain = [], []
    for parameter in model.parameters():
        depthwise = parameter.dim() > 2 and parameter.shape[1] == 1
        (decayed if parameter.dim() > 1 and not depthwise else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.SGD(
        [group for group in groups if group["params"]], lr=0.1, momentum=0.9, nesterov=True
    )


def cosine(step: int, steps: int) -> float:
    """Return the factor of the learning rate: a linear rise, then a half cosine down to zero.

    Source: Loshchilov and Hutter, SGDR (ICLR 2017).
    """
    rise = max(1, round(WARM_UP * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


@contextmanager
def _graceful() -> Iterator[threading.Event]:
    """Turn Ctrl-C and SIGTERM into an event that is looked at after every step."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _refuse_bad_inputs(inputs: Any) -> None:
    for leaf in tree_leaves(inputs):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.device.type == "cpu":
            if not bool(torch.isfinite(leaf).all()):
                raise DataError(
                    "a training batch must hold finite numbers, but it has NaN or infinity in it; "
                    "clean the data (the weights were not changed by this batch)"
                )


def _in_float32(outputs: Any) -> Any:
    def widen(leaf: Any) -> Any:
        return leaf.float() if isinstance(leaf, Tensor) and leaf.dtype == torch.bfloat16 else leaf

    return tree_map(widen, outputs)


def _cloned(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def _load(module: nn.Module, weights: dict[str, Tensor], path: Path | None) -> None:
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise FileError(f"{path} holds the weights of another model: {first}") from error
