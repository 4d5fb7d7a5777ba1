"""The bandit: which units of every axis are executed in a step.

An arm is a unit. After `t` rounds an arm of mean reward `mu` that was played `N` times has the
index `mu + exploration * sqrt(1.5 ln t / N)`; in a round, the arms of the highest index of each
axis are played together, and each tells its own reward. An arm that was never played comes first.
With a discount below 1, rewards and plays are weighted by it once a round, and `t` is the sum of
the weights.

Sources: Chen, Wang and Yuan, Combinatorial Multi-Armed Bandit (ICML 2013), algorithm CUCB; the
discount: Garivier and Moulines, On Upper-Confidence Bound Policies for Switching Bandit Problems
(ALT 2011).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nestling.spec import Axis

PERIODS = 50  # of a run: what is noted of the plays, and how often counts may change
WEIGHT = 1.5  # of the logarithm, as in CUCB


class Bandit(nn.Module):
    """Arms with their means and plays; all of its state is in buffers, which a checkpoint holds.

    Arms are numbered axis by axis.

    Args:
        axes: whose units are the arms.
        device: where they are looked at.
        exploration: factor of the exploration term.
        discount: what a round leaves of the weight of earlier ones.
        blind: whether arms are played at random, whatever they gave.
    """

    means: Tensor  # (arms,) mean reward; 0 before the first play
    plays: Tensor  # (arms,) discounted
    rounds: Tensor  # of all; on the CPU
    counts: Tensor  # (axes,) arms that are played in a round
    period: Tensor  # for which these counts hold; -1 at the beginning
    final: Tensor  # whether they are those of the final choice
    seats: Tensor  # (arms,) the arm in each slot of the round before, then -1
    history: Tensor  # (PERIODS, arms) in how many steps of a period an arm was executed
    steps: Tensor  # (PERIODS,) of a period

    def __init__(
        self,
        axes: Sequence[Axis],
        device: torch.device | str = "cpu",
        *,
        exploration: float = 1.0,
        discount: float = 1.0,
        blind: bool = False,
    ) -> None:
        super().__init__()
        self.axes = tuple(axes)
        self.exploration = exploration
        self.discount = discount
        self.blind = blind
        sizes = [axis.size for axis in self.axes]
        self.sizes = sizes
        arms, widest = sum(sizes), max(sizes)
        self.register_buffer("means", torch.zeros(arms, dtype=torch.float64, device=device))
        self.register_buffer("plays", torch.zeros(arms, dtype=torch.float64, device=device))
        self.register_buffer("rounds", torch.zeros((), dtype=torch.int64))
        self.register_buffer("counts", torch.tensor(sizes))
        self.register_buffer("period", torch.tensor(-1))
        self.register_buffer("final", torch.tensor(False))
        self.register_buffer("seats", torch.full((arms,), -1, device=device))
        history = torch.zeros((PERIODS, arms), dtype=torch.int32, device=device)
        self.register_buffer("history", history)
        self.register_buffer("steps", torch.zeros(PERIODS, dtype=torch.int64))
        starts = torch.tensor([sum(sizes[:place]) for place in range(len(sizes))])
        lines = torch.arange(widest)
        self._starts = starts.to(device)
        self._table = (starts[:, None] + lines).clamp(max=arms - 1).to(device)
        self._missing = (lines >= torch.tensor(sizes)[:, None]).to(device)
        self._slots: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def index(self) -> Tensor:
        """Return the index of every arm, (arms,): infinite where it was never played."""
        if self.blind:
            return torch.rand(len(self.means), dtype=torch.float64).to(self.means.device)
        rounds = int(self.rounds)
        past = rounds if self.discount == 1 else (1 - self.discount**rounds) / (1 - self.discount)
        log = math.log(max(past, 1.0))
        bonus = self.exploration * (WEIGHT * log / self.plays).sqrt()
        return torch.where(self.plays > 0, self.means + bonus, math.inf)

    def choose(self, counts: Sequence[int]) -> Tensor:
        """Return the units to execute in this round.

        Args:
            counts: how many of each axis.

        Returns:
            Units by slot, (sum of counts,): one axis after the other. A unit that was chosen in the
            round before keeps its slot.
        """
        return self._seated(self._top(self.index(), counts), counts)

    def best(self, counts: Sequence[int]) -> Tensor:
        """Return the units of the best means, as `choose` returns units."""
        return self._seated(self._top(self.means, counts), counts)

    def again(self, counts: Sequence[int]) -> Tensor | None:
        """Return the units of the round before; None where there was none of these counts."""
        held = self.seats[: sum(counts)]
        return held - self._slots_of(counts)[1] if bool(held[0] >= 0) else None

    def rise(self) -> None:
        """Forget who has which slot, as when counts change."""
        self.seats.fill_(-1)

    def _seated(self, units: Tensor, counts: Sequence[int]) -> Tensor:
        """Return the units in slots: those that stay in theirs, the others in those that are free.

        An axis has as many units that come as units that go, and both are listed axis by axis.
        """
        starts = self._slots_of(counts)[1]
        arms = units + starts
        held = self.seats[: len(arms)]
        if bool(held[0] < 0):
            held.copy_(arms)
            return units
        chosen = torch.zeros(len(self.means), dtype=torch.bool, device=arms.device)
        chosen[arms] = True
        stays = chosen[held]
        chosen[held] = False
        held[~stays] = chosen.nonzero().view(-1)
        return held - starts

    def learn(self, units: Tensor, counts: Sequence[int], rewards: Tensor, period: int) -> None:
        """Take in the rewards of a round.

        Args:
            units: that were executed, by slot.
            counts: how many of each axis.
            rewards: of these units, in their order.
            period: of the run, below `PERIODS`.
        """
        arms = units + self._slots_of(counts)[1]
        self.plays.mul_(self.discount)
        plays = self.plays[arms] + 1
        self.plays[arms] = plays
        means = self.means[arms]
        self.means[arms] = means + (rewards.double() - means) / plays
        self.rounds += 1
        self.note(arms, period)

    def watch(self, units: Tensor, counts: Sequence[int], period: int) -> None:
        """Note that units are executed, without rewards."""
        self.note(units + self._slots_of(counts)[1], period)

    def note(self, arms: Tensor, period: int) -> None:
        """Note in the history that arms were executed in a step."""
        one = torch.ones_like(arms, dtype=torch.int32)
        self.history[period].index_add_(0, arms, one)
        self.steps[period] += 1

    def scores(self) -> dict[str, Tensor]:
        """Return the means by axis name."""
        parts = torch.split(self.means, self.sizes)
        return {axis.name: part.clone() for axis, part in zip(self.axes, parts, strict=True)}

    def unplayed(self) -> int:
        """Return how many arms were never played."""
        return int((self.plays == 0).sum())

    def silent(self) -> list[str]:
        """Return the axes of which no arm ever gave a reward."""
        return [name for name, means in self.scores().items() if not bool(means.any())]

    def _top(self, values: Tensor, counts: Sequence[int]) -> Tensor:
        """Return the units of the largest values, ascending; of two that are equal, the first."""
        rows = values[self._table].masked_fill_(self._missing, -math.inf)
        order = torch.argsort(rows, dim=1, descending=True, stable=True)
        widest = order.shape[1]
        places = torch.arange(widest, device=order.device)
        kept = torch.as_tensor(counts, device=order.device)[:, None]
        order = torch.where(places < kept, order, widest).sort(dim=1).values
        return order.view(-1)[self._slots_of(counts)[0]]

    def _slots_of(self, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return where the first units of each row stand in the table, and where arms begin."""
        key = tuple(counts)
        if key not in self._slots:
            widest = self._table.shape[1]
            rows = [torch.arange(n) + widest * row for row, n in enumerate(key)]
            device = self._table.device
            starts = self._starts.repeat_interleave(torch.tensor(key, device=device))
            self._slots = {key: (torch.cat(rows).to(device), starts)}
        return self._slots[key]
