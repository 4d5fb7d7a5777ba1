"""Training: one readable loop, resumable bit for bit.

A `Run` holds what a training is made of. Methods call `run.train_stage(objective)` once a stage;
finished stages are skipped when a run is resumed. The checkpoint is written at the end of every
epoch, and at once on Ctrl-C or SIGTERM; it never holds weights that are not finite.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor, nn

from nestling import batch as batches
from nestling.checkpoint import (
    Checkpoint,
    RandomState,
    load_into,
    plain,
    refuse_other,
    seed_all,
)
from nestling.compilation import backend_of, check_compiler
from nestling.errors import DataError, FileError, ModelError
from nestling.evaluation import Metric, accuracy
from nestling.history import History
from nestling.interruption import Interrupted, graceful
from nestling.loop import Executor, Loop, Objective, Stage
from nestling.objectives.sandwich import Loss, task_loss
from nestling.optimizers import check_maker, default_optimizer
from nestling.precision import alternatives, choose, tried
from nestling.progress import Reporter
from nestling.stopwatch import Stopwatch
from nestling.supernet import Supernet
from nestling.weights import fill, lay_out, layouts_of, tensors_of

MakeOptimizer: TypeAlias = Callable[[Iterable[Any]], torch.optim.Optimizer]

LINES_EVERY = 10.0  # seconds between progress lines where there is no terminal


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
        seconds: by stage, as `spent` counts them; those before a resume are in no checkpoint, so
            that two runs of the same settings leave the same bytes.
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
    _start: Mapping[str, tuple[int, ...]] = field(default_factory=dict, init=False)
    _given: dict[str, torch.memory_format] | None = field(default=None, init=False)

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
        self.history = History(self.checkpoint)
        self.stopwatch = Stopwatch(self.device)
        self.seconds = self.stopwatch.seconds
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
            ModelError: the loss is not finite. On a GPU, where a look at it waits, that is seen
                some steps later (`finiteness.EVERY`), and before anything is saved.
            DataError: a batch is no pair, or holds numbers that are not finite; seen likewise.
            FileError: a resumed stage has other batches than the checkpoint's.
            Interrupted: Ctrl-C or SIGTERM; the state was saved before.
        """
        length = self.length if data is None else batches.length_of(data, "data=")
        stage = Stage(
            data=self.train if data is None else data,
            length=length,
            epochs=self.epochs if epochs is None else epochs,
            alone=alone,
            extra=extra,
            summed=summed,
            executor=executor,
        )
        number = self.history.begin(stage.facts)
        if not self.history.passed(number, stage.own):
            self._train(stage, number, objective, name)
            self.history.finish(number, stage.own)

    def _train(self, stage: Stage, number: int, objective: Objective, name: str) -> None:
        alone, executor = stage.alone, stage.executor
        if alone is not None and self._given is not None:
            lay_out(alone, self.precise.memory_format)
        optimizer = self._make_optimizer(self.net.model if alone is None else alone)
        loop = Loop(self, stage, optimizer)
        first, start = loop.restore(self.history.take(number))
        self.reporter.start(name, stage.steps, first * stage.length + start)
        with self.undone_on_failure(), graceful() as stop, ExitStack() as stack:
            self.spent("other")
            stack.callback(self.spent, name)
            if executor is not None:
                stack.callback(executor.write_back)
            for epoch in range(first, stage.epochs):
                loop.epoch(objective, epoch, start, stop)
                start = 0
                self._finish_epoch(loop, epoch, name)

    def spent(self, name: str) -> None:
        """Count the time since the last count to a part of the work.

        Processor time of this process on a CPU; on a GPU wall-clock time, taken when it has done
        what it was given. What the first passes take that are compiled is "compiling", whatever
        stage they are of.
        """
        self.stopwatch.spent(name)

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
        return self.history.once(make)

    def reorder(self, orders: Mapping[str, Sequence[int]]) -> None:
        """Reorder the net's units; a resumed run, whose weights have been, passes over it."""
        if self.history.due():
            self.net.reorder(orders)

    def refill(self, tensors: Mapping[str, Tensor]) -> None:
        """Give the net these weights; a resumed run, whose weights have been, passes over it."""
        if self.history.due():
            fill(self.net.model, tensors)

    def _finish_epoch(self, loop: Loop, epoch: int, name: str) -> None:
        epochs = loop.stage.epochs
        self.log.append({"stage": name, "epoch": epoch + 1, "loss": loop.mean_loss()})
        self.reporter.line(
            f"{name}: epoch {epoch + 1} of {epochs}, loss {self.log[-1]['loss']:.4f}",
            at_most_every=0.0 if epoch + 1 == epochs else LINES_EVERY,
        )
        self._save(loop, epoch + 1, 0)

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
        weights = found.results.pop("net", {}) if found.header["alone"] else found.weights
        self.history.restore(found, self.net)
        self._restore_precision(found.header["trained in"])
        load_into(self.net.model, weights, self.checkpoint)
        self.log = list(found.header["log"])

    def _save(self, loop: Loop, epoch: int, batch: int) -> None:
        """Write the checkpoint: the next step is batch `batch` of epoch `epoch`."""
        if loop.stage.executor is not None:
            loop.stage.executor.write_back()
        loop.check(epoch if batch else epoch - 1)
        if self.checkpoint is None:
            return
        results = dict(self.history.results)
        if loop.stage.alone is not None:
            results["net"] = tensors_of(self.net.model)
        if own := tensors_of(loop.extra):
            results["extra"] = own
        header = {
            "facts": self.facts(),
            "trained in": str(self.precise) if self._given is not None else None,
            "log": self.log,
            "orders": {name: list(order) for name, order in self.net.orders.items()},
            **self.history.state,
            **loop.state(epoch, batch),
        }
        Checkpoint(
            header,
            tensors_of(loop.target),
            loop.optimizer.state_dict(),
            loop.epoch_start,
            RandomState.now(loop.generators),
            results,
        ).save(self.checkpoint)

    def leave(self, loop: Loop, epoch: int, batch: int) -> NoReturn:
        """Save, and end the training: the next step is batch `batch` of epoch `epoch`."""
        self._save(loop, epoch, batch)
        raise Interrupted(
            f"training was stopped; resume=True goes on from {self.checkpoint}"
            if self.checkpoint
            else "training was stopped; nothing was saved, since there is no checkpoint="
        )

    def _restore_precision(self, name: str | None) -> None:
        """Lay the weights out as the checkpoint's training has found good, if it says so."""
        for precise in alternatives(self.precision, self.wanted):
            if str(precise) == name:
                self.precise = precise
                self._lay_out(precise.memory_format)

    def calibration(self) -> Iterable[Any]:
        """Return the training batches to measure norm statistics on, the same after a resume."""
        return batches.at(self.train, self.epochs)
