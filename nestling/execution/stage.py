"""The stage of a training in which a bandit chooses what is executed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nestling.errors import BudgetError, ModelError
from nestling.execution.bandit import PERIODS, Bandit
from nestling.execution.clock import Clock
from nestling.execution.cutoff import cutoff
from nestling.execution.gathered import GatheredNet
from nestling.execution.saliency import Saliency
from nestling.execution.settings import Settings
from nestling.objectives.sandwich import Loss, task_loss
from nestling.spec import Space, Spec
from nestling.supernet import Supernet
from nestling.training import Run

OVERHEAD = ("selection", "gathering", "saliency")


@dataclass(frozen=True)
class Executed:
    """What a channel execution leaves beside the trained weights.

    Attributes:
        bandit: its arms, means and history.
        spec: the counts of the final choice: a prefix after a reorder by the scores.
        shares: of the timed steps' time that selection, gathering and saliency took; empty where
            no step was timed.
    """

    bandit: Bandit
    spec: Spec
    shares: Mapping[str, float]

    @property
    def scores(self) -> dict[str, Tensor]:
        """Return the score of every unit, by axis name: its mean reward."""
        return self.bandit.scores()


def execute(
    run: Run,
    settings: Settings,
    *,
    epochs: int | None = None,
    name: str = "channel execution",
) -> Executed:
    """Train a net's shared weights, a step at a time on the units that a bandit chooses.

    Args:
        run: whose net is trained, with SGD or AdamW.
        settings: how units are chosen.
        epochs: of this stage; the run's by default.
        name: shown with the progress.

    Raises:
        ModelError: an optimiser that is not supported, too few steps to play every unit, an axis
            that no gradient reaches, or a training that diverged.
        SpecError: a share that an axis does not allow.

    Example:
        >>> done = execute(run, Settings(keep=0.5))
        >>> run.reorder(rankers.orders(run.net.space, done.scores))
    """
    executor = Executor(run, settings, run.epochs if epochs is None else epochs)
    run.train_stage(
        executor.objective, name=name, extra=executor.bandit, epochs=epochs, executor=executor
    )
    executor.check_excited()
    shares = executor.clock.shares()
    if shares:
        told = ", ".join(f"{part} {100 * shares.get(part, 0.0):.1f} %" for part in OVERHEAD)
        run.reporter.say(f"of the time of a step, {told}")
    spec = Spec(run.net.space, executor.final_counts())
    return Executed(executor.bandit, spec, shares)


class Executor:
    """Makes the steps of the stage: chooses, gathers, steps and learns.

    Args:
        run: that trains.
        settings: how units are chosen.
        epochs: of the stage.
    """

    def __init__(self, run: Run, settings: Settings, epochs: int) -> None:
        self.run = run
        self.settings = settings
        self.space: Space = run.net.space
        self.axes = settings.axes(self.space)
        self.clock = Clock(run.device)
        self.bandit = Bandit(
            self.axes,
            run.device,
            exploration=settings.exploration,
            discount=settings.discount,
            blind=settings.saliency == "random",
        )
        self._epoch = run.length
        self._check_steps(epochs * run.length)
        self._gathered: GatheredNet | None = None
        self._saliency: Saliency | None = None
        self._final: Tensor | None = None
        self._excited = False

    # -- a step -------------------------------------------------------------------------------

    def objective(self, net: Supernet) -> Iterator[tuple[nn.Module, Loss]]:
        """Objective: the executed units, on the run's loss."""
        self.clock.start()
        with self.clock.part("selection"):
            counts = self.counts_now()
            units = self._units_now(list(counts.values()))
        gathered = self._gathered_for(counts)
        with self.clock.part("gathering"):
            if units is not gathered.units:
                gathered.hold(units)
        yield gathered.module, self.run.loss or task_loss

    def _units_now(self, counts: list[int]) -> Tensor:
        """Return the units to execute in this step, by slot."""
        if not self._is_final():
            fresh = int(self.bandit.rounds) % self.settings.every == 0
            kept = None if fresh else self.bandit.again(counts)
            return self.bandit.choose(counts) if kept is None else kept
        if self._saliency is not None:
            self._saliency.close()
            self._saliency = None
        if self._final is None:  # the means rest from now on
            self._final = self.bandit.best(counts)
        return self._final

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take in what the executed units gave, and step.

        Raises:
            ModelError: see `GatheredNet.step`; or an axis that no gradient reaches.
        """
        gathered = self._gathered
        assert gathered is not None
        assert gathered.units is not None
        units, counts = gathered.units, list(gathered.counts.values())
        rewards = None if self._saliency is None else self._rewards(self._saliency)
        gathered.step(optimizer, self.clock)
        with self.clock.part("selection"):
            if rewards is None:
                self.bandit.watch(units, counts, self._period())
            else:
                self.bandit.learn(units, counts, rewards, self._period())
        self.clock.stop()
        if not self._excited and int(self.bandit.rounds) >= self._epoch:
            self.check_excited()

    def write_back(self) -> None:
        """Bring the shared weights, and the optimiser's state, up to date."""
        if self._gathered is not None:
            self._gathered.write_back()

    def _rewards(self, saliency: Saliency) -> Tensor:
        with self.clock.part("saliency"):
            return saliency.rewards()

    @property
    def module(self) -> nn.Module:
        """What is run in a step: a plain module of the executed counts."""
        gathered = self._gathered_for(self.counts_now())
        if gathered.units is None:
            parts = [torch.arange(n, device=self.run.device) for n in gathered.counts.values()]
            gathered.hold(torch.cat(parts))
        return gathered.module

    # -- counts -------------------------------------------------------------------------------

    def counts_now(self) -> dict[str, int]:
        """Return how many units of each axis are executed in this step."""
        period, bandit = self._period(), self.bandit
        if period != int(bandit.period) or self._is_final() != bool(bandit.final):
            counts = torch.tensor(list(self._counts(period).values()))
            if not torch.equal(counts, bandit.counts):
                bandit.rise()
            bandit.counts.copy_(counts)
            bandit.period.fill_(period)
            bandit.final.fill_(self._is_final())
        names = (axis.name for axis in self.axes)
        return dict(zip(names, bandit.counts.tolist(), strict=True))

    def final_counts(self) -> dict[str, int]:
        """Return the counts of the final choice."""
        return self._shared_out(self.settings.counts(self.axes))

    def _counts(self, period: int) -> dict[str, int]:
        """Return the counts of a period of the run, by the means that the bandit has now."""
        if self._is_final():
            return self.final_counts()
        before = max(1e-9, 1 - self.settings.tune)
        return self._shared_out(self.settings.counts(self.axes, period / PERIODS / before))

    def _shared_out(self, counts: dict[str, int]) -> dict[str, int]:
        """Return the counts of the same MACs that the means of all axes ask for, with "net"."""
        if self.settings.scope == "axis" or self.bandit.unplayed():
            return counts
        scores = {
            name: score
            for name, score in self.bandit.scores().items()
            if counts[name] < self.space.axes[name].size
        }
        try:
            found = cutoff(self.space, scores, self._share_of_macs(counts))
        except BudgetError:  # a single count is left of each axis
            return counts
        return {name: found[name] for name in counts}

    def _share_of_macs(self, counts: Mapping[str, int]) -> float:
        return self.space.macs(counts) / self.space.macs(self.space.full)

    def _period(self) -> int:
        return min(int(self.run.done * PERIODS), PERIODS - 1)

    def _is_final(self) -> bool:
        return self.settings.tune > 0 and self.run.done >= 1 - self.settings.tune

    def _gathered_for(self, counts: dict[str, int]) -> GatheredNet:
        """Return the net of these counts, made anew where they or the weights' places differ.

        The weights move once, before the first step, when their layout is settled: then there is
        nothing to write back.
        """
        found = self._gathered
        if found is not None and found.counts == counts and found.stands():
            return found
        if self._saliency is not None:
            self._saliency.close()
        if found is not None and found.stands():
            found.write_back()
        del found
        self._gathered = self._saliency = None  # let go before the next one is made
        made = self._gathered = GatheredNet(self.run.net, counts)
        if not self._is_final():
            self._saliency = Saliency(
                self.settings.saliency,
                made.module,
                space=self.space,
                axes=self.axes,
                counts=counts,
                clock=self.clock,
            )
        return made

    # -- checks -------------------------------------------------------------------------------

    def _check_steps(self, steps: int) -> None:
        """Check that every unit can be played before the final choice."""
        counts = self.settings.counts(self.axes)
        needed = max(math.ceil(axis.size / counts[axis.name]) for axis in self.axes)
        first = math.ceil((1 - self.settings.tune) * steps)
        if steps and first < needed:
            raise ModelError(
                f"every unit is executed once before the choice, which takes {needed} steps, but "
                f"the training has {first} before its final choice; train for more epochs, or "
                "keep= more"
            )

    def check_excited(self) -> None:
        """Check that every axis was given rewards.

        Raises:
            ModelError: one was not.
        """
        if not int(self.bandit.rounds):
            return
        self._excited = True
        counts = self.settings.counts(self.axes)
        partial = {axis.name for axis in self.axes if counts[axis.name] < axis.size}
        silent = [name for name in self.bandit.silent() if name in partial]
        if silent:
            axis = self.space.axes[silent[0]]
            more = f" (and {len(silent) - 1} more)" if len(silent) > 1 else ""
            raise ModelError(
                f"the units of an axis are told apart by what they do to the loss, but no unit of "
                f"{silent[0]!r}{more} did anything in {int(self.bandit.rounds)} steps: the data "
                f"never excites its {axis.size} {axis.kind}; freeze={silent!r:.200}, or look at "
                "the data and the weights"
            )
