"""Training: one readable loop, resumable bit for bit.

A `Run` holds what a training is made of. Methods call `run.train_stage(objective)` once a stage;
finished stages are skipped when a run is resumed. The checkpoint is written at the end of every
epoch, and at once on Ctrl-C or SIGTERM; it never holds weights that are not finite.
"""

from __future__ import annotations

import hashlib
import inspect
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

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
    plain,
    refuse_other,
    seed_all,
)
from nestling.compilation import Compilation, backend_of, check_compiler
from nestling.errors import DataError, FileError, ModelError
from nestling.evaluation import Metric, accuracy
from nestling.interruption import Interrupted, graceful
from nestling.objectives.sandwich import Loss, task_loss
from nestling.optimizers import add_group, check_maker, cosine, default_optimizer
from nestling.precision import alternatives, choose, in_float32, tried
from nestling.progress import Reporter
from nestling.supernet import Supernet
from nestling.weights import all_finite, cloned, fill, lay_out, layouts_of, tensors_of

Objective: TypeAlias = Callable[[Supernet], Iterator[tuple[nn.Module, Loss]]]
MakeOptimizer: TypeAlias = Callable[[Iterable[Any]], torch.optim.Optimizer]

LINES_EVERY = 10.0  # seconds between progress lines where there is no terminal
HOPELESS = 1000.0  # times the first loss, or 1: a training whose loss is that large has diverged
_END = object()


class Executor(Protocol):
    """Steps on a net that stands for the shared weights of a stage, and is written back to them."""

    @property
    def module(self) -> nn.Module:
        """What is run in a step."""

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step after a backward run, with the settings and the state of the run's optimiser."""

    def write_back(self) -> None:
        """Bring the shared weights, and the optimiser's state, up to date."""


@dataclass
class Run:
    """What a training is made of.

    Attributes:
        net: the supernet whose shared weights are trained.
        train: training batches, `(inputs, targets)` pairs; iterated once an epoch.
        epochs: passes over `train` in each stage.
        seed: of all random choices.
        loss: from (outputs, targets), of all that trains on the targets; None means cross-entropy,
            and lets a method distil. See `methods.uniform`'s `distill`.
        metric: mean score of a batch, larger is better.
        held_out: batches that are kept out of the training, for methods that choose among subnets.
        optimizer: makes the optimiser from the parameters; its learning rate rises for the first
            5 % of the steps and then falls to zero along a half cosine.
        precision: "auto", "float32", "bfloat16" or "float32-channels-last"; what the model does not
            take, as its first batch shows, becomes plainer.
        compile: whether passes of a step are compiled, see `compilation`; or the name of a backend
            of `torch.compile`.
        checkpoint: where the state is saved; None saves nothing.
        reporter: shows the progress.
        settings: what else a resumed run must share: the method and its options.
        log: a row for every finished epoch.
        seconds: processor time by stage, of this process alone: what it spent before a resume is
            in no checkpoint, so that two runs of the same settings leave the same bytes.
        resumed: whether the run goes on where an earlier one stopped, as `resume` was asked to.
        done: share of the present stage's steps that were made, 0 to 1; objectives may read it.
    """

    net: Supernet
    train: Iterable[Any]
    epochs: int
    seed: int = 0
    loss: Loss | None = None
    metric: Metric = accuracy
    held_out: Iterable[Any] | None = None
    optimizer: MakeOptimizer | None = None
    precision: str = "auto"
    compile: bool | str = False
    checkpoint: Path | None = None
    reporter: Reporter = field(default_factory=lambda: Reporter(quiet=True))
    settings: Mapping[str, Any] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list, init=False)
    seconds: dict[str, float] = field(default_factory=dict, init=False)
    resumed: bool = field(default=False, init=False)
    done: float = field(default=0.0, init=False)
    _stage: int = field(default=0, init=False)
    _start: Mapping[str, tuple[int, ...]] = field(default_factory=dict, init=False)
    _changes: int = field(default=0, init=False)  # that the weights have behind them
    _changed: int = field(default=0, init=False)  # that the method has asked for
    _once: int = field(default=0, init=False)
    _resumed: Checkpoint | None = field(default=None, init=False)
    _results: dict[str, dict[str, Tensor]] = field(default_factory=dict, init=False)
    _given: dict[str, torch.memory_format] | None = field(default=None, init=False)
    _clock: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if isinstance(self.epochs, bool) or not isinstance(self.epochs, int) or self.epochs < 0:
            raise ModelError(f"epochs= is a whole number of at least 0, but it is {self.epochs!r}")
        self.length = batches.length_of(self.train, "train=")
        if self.epochs and not self.length:
            raise DataError("train= has no batch; give at least one")
        if self.checkpoint is not None and not self.checkpoint.parent.is_dir():
            raise FileError(
                f"cannot save to {self.checkpoint}: there is no folder "
                f"{str(self.checkpoint.parent)!r}; make it first"
            )
        check_maker(self.optimizer)
        self.backend = backend_of(self.compile)
        if self.backend:
            check_compiler(self.backend, self.device)
        seed_all(self.seed)
        self._clock = time.process_time()
        self._start = self.net.orders
        self.wanted = choose(self.precision, self.device, self.net.model)
        self.precise = self.wanted

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
        extra: nn.Module | None = None,
        epochs: int | None = None,
        data: Iterable[Any] | None = None,
        summed: bool = True,
        executor: Executor | None = None,
    ) -> None:
        """Train the shared weights, or one stand-alone module, with an objective.

        Args:
            objective: yields the subnets of a step with their losses.
            name: shown with the progress.
            alone: a module of its own that is trained instead of the shared weights.
            extra: parameters and buffers that the objective uses beside the shared weights. They
                are trained with them, in a group of their own without weight decay, and saved.
            epochs: of this stage; the run's by default.
            data: batches of this stage; the run's by default.
            summed: one step of the optimiser for all subnets of a batch, or one after each of them.
            executor: makes the steps in the place of the optimiser.

        Raises:
            ModelError: the loss is not finite.
            DataError: a batch is no pair, or holds numbers that are not finite.
            Interrupted: Ctrl-C or SIGTERM; the state was saved before.
        """
        stage, self._stage = self._stage, self._stage + 1
        epochs = self.epochs if epochs is None else epochs
        own = alone if alone is not None else extra
        if self._skip(stage, own):
            return
        if alone is not None and self._given is not None:
            lay_out(alone, self.precise.memory_format)
        target = alone if alone is not None else self.net.model
        optimizer = self._make_optimizer(target)
        loop = _Loop(self, stage, target, optimizer, epochs, extra, data)
        loop.executor, loop.summed = executor, summed
        first, start = loop.restore(self._resumed)
        self._resumed = None
        self.reporter.start(name, loop.steps, first * loop.length + start)
        with self.undone_on_failure(), graceful() as stop, ExitStack() as stack:
            self.spent("other")
            stack.callback(self.spent, name)
            if executor is not None:
                stack.callback(executor.write_back)
            for epoch in range(first, epochs):
                loop.epoch(objective, epoch, start, stop)
                start = 0
                self._finish_epoch(loop, epoch, epochs, name)
        if own is not None:
            self._results[str(stage)] = cloned(tensors_of(own))

    def spent(self, name: str) -> None:
        """Count the processor time since the last count to a part of the work.

        On a GPU this is the time of the process that drives it, which waits for it every step.
        """
        before, self._clock = self._clock, time.process_time()
        self.seconds[name] = self.seconds.get(name, 0.0) + self._clock - before

    # -- precision ----------------------------------------------------------------------------

    def settle(self, inputs: Any, targets: Any, alone: nn.Module | None = None) -> None:
        """Find the precision that the model takes, on the first batch, and lay the weights out.

        Args:
            inputs: of a batch, on the net's device.
            targets: of the batch.
            alone: the module that is trained, where it is not the net's.
        """
        if self._given is not None:
            return
        options = alternatives(self.precision, self.wanted)
        loss = self.loss or task_loss
        precise, why = tried(options, self.net, inputs, targets, loss, alone)
        if why:
            self.reporter.say(
                f"training in {precise}, for the model does not take {self.wanted}: {why}"
            )
        self._lay_out(precise.memory_format)
        self.precise = precise
        if alone is not None:
            lay_out(alone, precise.memory_format)

    def _lay_out(self, memory_format: torch.memory_format) -> None:
        self._given = layouts_of(self.net.model)
        self.net.to(memory_format=memory_format)

    @contextmanager
    def undone_on_failure(self) -> Iterator[None]:
        """Give the net's weights the memory layout that they had, where the block fails."""
        try:
            yield
        except BaseException:
            self._put_layout_back()
            raise

    def _put_layout_back(self) -> None:
        given, self._given = self._given, None
        if given is not None:
            self.precise = self.wanted
            lay_out(self.net.model, given)
            self.net.to(self.device)  # live subnets follow

    # -- between stages -----------------------------------------------------------------------

    def once(self, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return the tensors that `make` returns; a resumed run has them from its checkpoint.

        For what is computed from weights that later stages change, such as the scores of units. It
        may train stages of its own.
        """
        self._once += 1
        made, stages = f"once{self._once}", f"stages{self._once}"
        if stages in self._results:
            self._stage += int(self._results[stages]["number"])
        else:
            before = self._stage
            self._results[made] = cloned(make())
            self._results[stages] = {"number": torch.tensor(self._stage - before)}
        return dict(self._results.get(made, {}))

    def reorder(self, orders: Mapping[str, Sequence[int]]) -> None:
        """Reorder the net's units; a resumed run, whose weights have been, passes over it."""
        if self._due():
            self.net.reorder(orders)

    def refill(self, tensors: Mapping[str, Tensor]) -> None:
        """Give the net these weights; a resumed run, whose weights have been, passes over it."""
        if self._due():
            fill(self.net.model, tensors)

    def _due(self) -> bool:
        """Return whether the weights do not have the next change of the method behind them yet."""
        self._changed += 1
        due = self._changed > self._changes
        self._changes = max(self._changes, self._changed)
        return due

    def _finish_epoch(self, loop: _Loop, epoch: int, epochs: int, name: str) -> None:
        self.log.append({"stage": name, "epoch": epoch + 1, "loss": loop.mean_loss()})
        self.reporter.line(
            f"{name}: epoch {epoch + 1} of {epochs}, loss {self.log[-1]['loss']:.4f}",
            at_most_every=0.0 if epoch + 1 == epochs else LINES_EVERY,
        )
        loop.save(epoch + 1, 0)

    def _skip(self, stage: int, own: nn.Module | None) -> bool:
        """Return whether a resumed run has this stage behind it, after restoring its result."""
        if self._resumed is None or stage >= self._resumed.header["stage"]:
            return False
        if own is not None:
            load_into(own, self._results.get(str(stage), {}), self.checkpoint)
        return True

    def _make_optimizer(self, target: nn.Module) -> torch.optim.Optimizer:
        if not any(parameter.requires_grad for parameter in target.parameters()):
            raise ModelError(
                "training needs a parameter to train, but none of the model has requires_grad; "
                "set it, or use epochs=0"
            )
        if self.optimizer is None:
            return default_optimizer(target)
        made = self.optimizer(target.parameters())
        if not isinstance(made, torch.optim.Optimizer):
            raise ModelError(
                "optimizer= is a function from parameters to a torch optimiser, such as "
                f"lambda p: torch.optim.SGD(p, lr=0.1), but it returned {type(made).__name__}"
            )
        closure = inspect.signature(type(made).step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise ModelError(
                f"optimizer= must step without a closure, and {type(made).__name__} needs one; "
                "use SGD, AdamW or the like"
            )
        return made

    # -- resuming -----------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """Return what a resumed run must have been started with, as JSON values."""
        space = self.net.space
        shape = [(axis.name, axis.counts, self._start[axis.name]) for axis in space.axes.values()]
        return plain(
            {
                "model": type(self.net.model).__name__,
                "axes": hashlib.sha256(repr(shape).encode()).hexdigest()[:16],
                "epochs": self.epochs,
                "seed": self.seed,
                "batches": self.length,
                "precision": str(self.wanted),
                "compile": self.backend,
                **self.settings,
            }
        )

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one.

        Raises:
            FileError: the checkpoint is damaged, or was made with other settings.
        """
        if self.checkpoint is None:
            raise ModelError("resume=True needs the file to go on from: give checkpoint= too")
        self.resumed = True  # a search before the first checkpoint has a log to go on from
        if not self.checkpoint.exists():
            return
        found = Checkpoint.load(self.checkpoint)
        refuse_other(found.header["facts"], self.facts(), self.checkpoint)
        weights = found.results.get("net", {}) if found.header["alone"] else found.weights
        self._put_in_order(found.header)
        self._restore_precision(found.header.get("trained in"))
        load_into(self.net.model, weights, self.checkpoint)
        self._resumed = found
        self._results = found.results
        self.log = list(found.header["log"])

    def _put_in_order(self, header: Mapping[str, Any]) -> None:
        """Bring the net's units into the order of a checkpoint's weights."""
        self._changes = int(header.get("changes", 0))
        orders = header.get("orders", {}) if self._changes else {}
        now = self.net.orders
        try:
            self.net.reorder(
                {name: [now[name].index(unit) for unit in order] for name, order in orders.items()}
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FileError(f"{self.checkpoint} holds no valid orders: {error}") from error

    def _restore_precision(self, name: str | None) -> None:
        """Lay the weights out as the checkpoint's training has found good, if it says so."""
        for precise in alternatives(self.precision, self.wanted):
            if str(precise) == name:
                self.precise = precise
                self._lay_out(precise.memory_format)

    def calibration(self) -> Iterable[Any]:
        """Return the training batches to measure norm statistics on, the same after a resume."""
        return batches.at(self.train, self.epochs)


class _Loop:
    """The steps of one stage."""

    def __init__(
        self,
        run: Run,
        stage: int,
        target: nn.Module,
        optimizer: torch.optim.Optimizer,
        epochs: int,
        extra: nn.Module | None = None,
        data: Iterable[Any] | None = None,
    ) -> None:
        self.run = run
        self.data = run.train if data is None else data
        self.length = run.length if data is None else batches.length_of(data, "data=")
        self.stage = stage
        self.target = target
        self.extra = nn.Module() if extra is None else extra
        add_group(optimizer, self.extra)
        self.optimizer = optimizer
        self.steps = epochs * self.length
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.settings = optimizer_settings(optimizer)
        self.losses: list[Tensor] = []
        self.first_loss: float | None = None
        self.executor: Executor | None = None
        self.summed = True
        self.resumed: Checkpoint | None = None
        self.generators = generators_of(self.data)
        self.epoch_start = RandomState.now(self.generators)
        alone = None if target is run.net.model else target
        self.passes = Compilation(run.backend, run.reporter.say, alone)
        for module in (target, self.extra):
            module.zero_grad(set_to_none=True)  # what earlier work has left

    def restore(self, found: Checkpoint | None) -> tuple[int, int]:
        """Return the epoch and the batch to go on with."""
        if found is None or found.header["stage"] != self.stage:
            return 0, 0
        path = self.run.checkpoint
        refuse_other(found.header["optimizer"], self.settings, path)
        load_into(self.target, found.weights, path)
        load_into(self.extra, found.results.pop("extra", {}), path)
        load_optimizer(self.optimizer, found.optimizer, path)
        written = set(found.header["gradients"])
        for name, parameter in self._trained():
            # An optimiser passes over a parameter without a gradient; not over one of zeros.
            parameter.grad = torch.zeros_like(parameter) if name in written else None
        self.passes.restore(found.header["compiled"])
        epoch, batch = found.header["epoch"], found.header["batch"]
        self.first_loss = found.header["first_loss"]
        if batch:
            self.resumed = found
            self.epoch_start = found.epoch_start
            self.losses = [torch.tensor(value) for value in found.header["losses"]]
        else:
            found.present.restore(self.generators)
        return epoch, batch

    def epoch(self, objective: Objective, epoch: int, start: int, stop: threading.Event) -> None:
        """Make all steps of an epoch from batch `start` on."""
        items = iter(self._data(epoch, start))
        batch = start
        while (item := self._next(items, epoch, batch, stop)) is not _END:
            self._set_rates(epoch * self.length + batch)
            self._step(objective, item, epoch)
            self.run.reporter.advance()
            batch += 1
            if stop.is_set():
                self._leave(epoch, batch)
        if not self.losses:
            raise DataError("train= yielded no batch in this epoch; it must be iterable again")

    def _next(self, items: Iterator[Any], epoch: int, batch: int, stop: threading.Event) -> Any:
        try:
            return next(items, _END)
        except Exception:
            if stop.is_set():  # the same signal has ended the loader's workers
                self._leave(epoch, batch)
            raise

    def _leave(self, epoch: int, batch: int) -> None:
        self.save(epoch, batch)
        kept = self.run.checkpoint
        raise Interrupted(
            f"training was stopped; resume=True goes on from {kept}"
            if kept
            else "training was stopped; nothing was saved, since there is no checkpoint="
        )

    def _data(self, epoch: int, start: int) -> Iterable[Any]:
        """Return the batches of an epoch from `start` on, in the order of an unbroken run."""
        resumed, self.resumed = self.resumed, None
        if not start or resumed is None:
            self.losses = []
            self.epoch_start = RandomState.now(self.generators)
            return batches.at(self.data, epoch)
        if batches.starts_anywhere(self.data):
            resumed.present.restore(self.generators)
            return batches.at(self.data, epoch, start)
        resumed.epoch_start.restore(self.generators)
        items = iter(self.data)
        for _ in range(start):
            if next(items, _END) is _END:
                raise DataError(
                    f"train= yields fewer than the {start} batches that the checkpoint has seen of "
                    "this epoch; resume with the same data"
                )
        resumed.present.restore(self.generators)
        return items

    def _step(self, objective: Objective, item: Any, epoch: int) -> None:
        device = self.run.device
        inputs, targets = batches.pair(item)
        batches.check_finite(inputs)
        inputs, targets = (batches.move(part, device) for part in (inputs, targets))
        alone = None if self.target is self.run.net.model else self.target
        self.run.settle(inputs, targets, alone if self.executor is None else self.executor.module)
        precise = self.run.precise
        inputs = batches.move(inputs, device, precise.memory_format)
        losses = []
        for subnet, loss in objective(self.run.net):
            with (
                batches.blamed("the model must accept the inputs of train=", inputs),
                precise.autocast(device),
            ):
                outputs = in_float32(self.passes(subnet, inputs))
            with batches.blamed(
                "the loss must be one number for (outputs, targets): see loss=", outputs, targets
            ):
                value = loss(outputs, targets)
                value.backward()  # type: ignore[no-untyped-call]
            losses.append(value.detach())
            if not self.summed:
                self._update(losses[-1:], epoch)
        if self.summed:
            self._update(losses, epoch)
        self.losses.append(losses[0])
        if self.first_loss is None:
            self.first_loss = float(losses[0])

    def _update(self, losses: Sequence[Tensor], epoch: int) -> None:
        if not bool(torch.isfinite(torch.stack(list(losses))).all()):
            raise ModelError(self._diverged(f"the loss is {float(losses[0])}", epoch))
        if self.executor is None:
            self.optimizer.step()
        else:
            self.executor.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=False)

    def _set_rates(self, step: int) -> None:
        self.run.done = step / self.steps
        factor = cosine(step, self.steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def _diverged(self, what: str, epoch: int) -> str:
        kept = self.run.checkpoint
        return (
            f"training must converge, but {what} in epoch {epoch + 1}: it has diverged; lower "
            "the learning rate (optimizer=)"
            + (f"; {kept} holds the last good state" if kept and kept.exists() else "")
        )

    def mean_loss(self) -> float:
        """Return the mean loss of the full net over the epoch so far."""
        return float(torch.stack([loss.float().cpu() for loss in self.losses]).mean())

    def check(self, epoch: int) -> None:
        """Check that the training has not diverged, before it replaces a good checkpoint.

        Raises:
            ModelError: it has.
        """
        trained: list[Tensor] = [parameter for _, parameter in self._trained()]
        trained += [b for name, b in self.target.named_buffers() if name in self.run.net.private]
        if not all_finite(trained):
            raise ModelError(self._diverged("the weights hold NaN or infinity", epoch))
        if self.mean_loss() > HOPELESS * max(1.0, abs(self.first_loss or 0.0)):
            raise ModelError(self._diverged(f"the loss is {self.mean_loss():.3g}", epoch))

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.target.named_parameters()
        yield from self.extra.named_parameters(prefix="extra/")

    def save(self, epoch: int, batch: int) -> None:
        """Write the checkpoint: the next step is batch `batch` of epoch `epoch`."""
        run = self.run
        if self.executor is not None:
            self.executor.write_back()
        self.check(epoch if batch else epoch - 1)
        if run.checkpoint is None:
            return
        alone = self.target is not run.net.model
        results = dict(run._results)
        if alone:
            results["net"] = tensors_of(run.net.model)
        if own := tensors_of(self.extra):
            results["extra"] = own
        header = {
            "facts": run.facts(),
            "optimizer": self.settings,
            "stage": self.stage,
            "epoch": epoch,
            "batch": batch,
            "alone": alone,
            "trained in": str(run.precise) if run._given is not None else None,
            "compiled": self.passes.state,
            "log": run.log,
            "first_loss": self.first_loss,
            "gradients": [n for n, p in self._trained() if p.grad is not None],
            "orders": {name: list(order) for name, order in run.net.orders.items()},
            "changes": run._changes,
            "losses": [float(loss) for loss in self.losses] if batch else [],
        }
        Checkpoint(
            header,
            tensors_of(self.target),
            self.optimizer.state_dict(),
            self.epoch_start,
            RandomState.now(self.generators),
            results,
        ).save(run.checkpoint)
