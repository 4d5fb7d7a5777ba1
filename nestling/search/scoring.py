"""Scoring: the accuracy of subnets on a held-out slice, and the best of several at less cost.

Each subnet's norm statistics are measured afresh on a few training batches before it is scored.
To choose among candidates, all run through the held-out slice side by side, and those that are
clearly behind the leader on the very same examples are dropped on the way.

Always dropping the worse half as well (successive halving) is cheaper still, but it was measured
to lose: on a trained net it took the best of 9 candidates in 49 to 70 % of the choices, dropping
only who is two standard errors behind in 97 %, for 0.6 of the examples.

Source: Maron and Moore, Hoeffding Races (NIPS 1993), here with the normal interval of paired
differences.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nestling import batch as batches
from nestling.axes.structure import tensors_in
from nestling.binding import binding
from nestling.errors import DataError, ModelError
from nestling.evaluation import Metric, accuracy, check_rereadable, hits
from nestling.precision import Precision, alternatives, choose, in_float32, tried
from nestling.search.passes import fixed_passes
from nestling.search.request import Worth
from nestling.spec import Spec
from nestling.supernet import Supernet

CALIBRATION = 256  # training examples that measure a candidate's norm statistics
RUNGS = (
    1 / 16,
    1 / 8,
    1 / 4,
    1 / 2,
)  # shares of the held-out slice at which candidates are dropped
SURE = 2.0  # standard errors behind the leader at which a candidate cannot win any more


class Scorer:
    """Scores specs of a supernet: `scorer(spec)`, `scorer.pick(specs)`.

    Args:
        net: the supernet; its weights do not change.
        held_out: batches of held-out training data, the same at every iteration, mixed (not
            sorted by class), never of the test set.
        calibrate: training batches, of which the first 256 examples measure norm statistics; an
            empty list where these are to be slices of the net's.
        metric: mean score of a batch, larger is better; top-1 accuracy by default.
        race: whether `pick` drops candidates early; if not, all see the whole slice.
        precision: "auto", "float32", "bfloat16" or "float32-channels-last"; what the model does not
            take, as the first held-out batch shows, becomes plainer.

    Raises:
        DataError: the held-out data is empty, or varies from one iteration to the next.
        ModelError: the net has norm statistics, but `calibrate` is not given.

    Example:
        >>> score = Scorer(net, held_out, calibrate=train)
        >>> score(net.space.spec(fraction=0.5))
        0.8732
    """

    def __init__(
        self,
        net: Supernet,
        held_out: Iterable[Any],
        *,
        calibrate: Iterable[Any] | None = None,
        metric: Metric = accuracy,
        race: bool = True,
        precision: str = "float32",
    ) -> None:
        if net.private and calibrate is None:
            raise ModelError(
                "subnets of a net with norm statistics must be recalibrated, but calibrate= is not "
                "given; pass training batches"
            )
        first = check_repeatable(held_out)
        self.net, self.held_out, self.metric, self.race = net, held_out, metric, race
        self.device = next(net.parameters()).device
        self.precise = self._settled(precision, first)
        self.calibration = self._calibration(calibrate) if calibrate and net.private else []
        self.examples: int | None = None  # of the slice, known when it was read once
        self.facts = {
            "metric": getattr(metric, "__name__", type(metric).__name__),
            "race": race,
            "precision": str(self.precise),
        }

    def __call__(self, spec: Spec) -> float:
        """Return the mean metric of a spec's subnet over the held-out slice."""
        return self.pick([spec])[0][0]

    def pick(
        self, specs: Sequence[Spec], worth: Worth | None = None
    ) -> tuple[list[float], list[float]]:
        """Return each candidate's mean metric, and the share of the slice that it was scored on.

        The share is 1 for those that could be the best to the end. That the best is among them is
        likely, not certain; a candidate that is dropped is hardly ever better by much.

        Args:
            specs: the candidates.
            worth: what counts, from place and accuracy; None means the accuracy.
        """
        runners = [_Runner(n, self._ready(spec)) for n, spec in enumerate(specs)]
        running, seen, rungs = runners, 0, list(RUNGS)
        with torch.no_grad():
            for batch in self.held_out:
                inputs, targets = map(self._moved, batches.pair(batch))
                for runner in running:
                    runner.add(*self._scored(runner.subnet, inputs, targets))
                seen += batches.size(inputs)
                left = [rung for rung in rungs if seen < rung * (self.examples or math.inf)]
                if len(left) < len(rungs) and self.race and len(running) > 1:
                    running = _survivors(running, worth)
                rungs = left
        self.examples = seen
        shares = [1.0 if runner in running else runner.seen / seen for runner in runners]
        return [round(runner.mean, 12) for runner in runners], shares

    def _settled(self, name: str, batch: Any) -> Precision:
        """Return the precision of a name, or a plainer one that the model takes."""
        wanted = alternatives(name, choose(name, self.device, self.net.model))
        inputs, targets = (batches.move(part, self.device) for part in batches.pair(batch))
        return tried(wanted, self.net, inputs, targets, loss=None)[0]

    def _calibration(self, calibrate: Iterable[Any]) -> list[Any]:
        found, seen = [], 0
        with closing(fixed_passes(calibrate, seed=0)) as data:
            for batch in data:
                found.append(self._moved(batches.inputs_of(batch)))
                seen += batches.size(found[-1])
                if seen >= CALIBRATION:
                    break
        return found

    def _ready(self, spec: Spec) -> nn.Module:
        subnet = self.net.subnet(spec).eval()
        tie = binding(subnet)
        if self.calibration and tie is not None and not tie.full:
            with self.precise.autocast(self.device):
                self.net.recalibrate(subnet, self.calibration)
        elif tie is not None:
            tie.measured = True  # slices of the net's statistics are what is wanted
        return subnet

    def _moved(self, part: Any) -> Any:
        return batches.move(part, self.device, self.precise.memory_format)

    def _scored(self, subnet: nn.Module, inputs: Any, targets: Any) -> tuple[Tensor, int]:
        """Return the scores of a batch's units, and how many examples a unit is.

        A unit is an example where the metric is top-1 accuracy, and else the whole batch.
        """
        with (
            batches.blamed("the model must accept the inputs of the held-out data", inputs),
            self.precise.autocast(self.device),
        ):
            outputs = in_float32(batches.forward(subnet, inputs))
        with batches.blamed("metric= must give one number for (outputs, targets)", outputs):
            if self.metric is accuracy:
                right = hits(outputs, targets)
                return right.reshape(len(right), -1).double().mean(1).cpu(), 1
            value = float(self.metric(outputs, targets))
        if not math.isfinite(value):
            raise DataError(f"the metric of a batch must be finite, but it is {value}")
        return torch.tensor([value], dtype=torch.float64), batches.size(inputs)


@dataclass(eq=False)
class _Runner:
    """A candidate on its way through the held-out slice."""

    place: int
    subnet: nn.Module
    values: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    seen: int = 0
    total: float = 0.0

    def add(self, values: Tensor, weight: int) -> None:
        self.values.append(values)
        self.weights.append(torch.full_like(values, weight))
        self.seen += weight * len(values)
        self.total += weight * float(values.sum())

    @property
    def mean(self) -> float:
        return self.total / max(self.seen, 1)

    def margin(self, leader: _Runner) -> float:
        """Return how much its lead over the leader may yet grow: some standard errors of it."""
        weights = torch.cat(self.weights)
        if len(weights) < 3:
            return math.inf
        gaps = torch.cat(self.values) - torch.cat(leader.values)
        shares = weights / weights.sum()
        spread = float((shares * (gaps - (shares * gaps).sum()) ** 2).sum())
        return SURE * math.sqrt(spread / len(weights))


def _survivors(running: Sequence[_Runner], worth: Worth | None) -> list[_Runner]:
    """Return those that are not clearly behind the leader, in their order."""

    def value(runner: _Runner, more: float = 0.0) -> float:
        reached = runner.mean + more
        return reached if worth is None else worth(runner.place, reached)

    leader = max(running, key=lambda runner: (value(runner), -runner.place))
    return [each for each in running if value(each, each.margin(leader)) >= value(leader)]


def check_repeatable(held_out: Iterable[Any]) -> Any:
    """Return the first batch of held-out data, which is the same at each iteration.

    Raises:
        DataError: it is not (it is shuffled, or has random crops), or there is none.
    """
    check_rereadable(held_out)
    first, again = (_first(held_out, seed) for seed in range(2))
    tensors = [tensors_in(batches.pair(each)) for each in (first, again)]
    if len(tensors[0]) != len(tensors[1]) or not all(map(torch.equal, *tensors)):
        raise DataError(
            "candidates are compared on the same held-out examples, but held_out= yields others "
            "each time; switch shuffling and random crops off"
        )
    return first


def _first(held_out: Iterable[Any], seed: int) -> Any:
    with closing(fixed_passes(held_out, seed)) as data:
        for batch in data:
            return batch
    raise DataError("scoring needs at least one batch, but the data yields none")
