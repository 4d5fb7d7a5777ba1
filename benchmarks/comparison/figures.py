"""Figures: what kept results show. Budgets, choices, gains, and their spread over seeds.

Nothing is interpolated: at a budget a method has its most accurate subnet that costs no more. Which
one that is, held-out accuracy tells, or else size; the test accuracy of that one is the figure.
Which variant of a method is better, held-out accuracy tells too: `on="held_out"`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from comparison.cases import BASELINE as BASE
from comparison.cases import (
    BUNDLE,
    LONG,
    OURS,
    PLAIN,
    UNIFORM_SHAPE,
    Shape,
    alone_label,
    control_label,
)
from comparison.protocols import BUDGETS
from comparison.results import Result, Row
from nestling.report.seeds import Summary, summarize

COSTS = ("macs", "params", "latency")
TEST, HELD_OUT = "test", "held_out"  # pictures that a figure is of
POINTS = 100  # percentage points in an accuracy of 1

Latencies = Mapping[tuple[int, ...], float]
"""Latency of counts over that of the full net."""


class Comparison:
    """The results of one protocol and net."""

    def __init__(self, results: Sequence[Result], latencies: Latencies | None = None) -> None:
        self.results = {(each.case.label, each.case.seed): each for each in results}
        self.latencies = latencies or {}
        self.settings = results[0].settings

    def __getitem__(self, key: tuple[str, int]) -> Result:
        return self.results[key]

    @property
    def labels(self) -> list[str]:
        """Labels in the order of the files."""
        return list(dict.fromkeys(label for label, _ in self.results))

    def seeds(self, *labels: str) -> list[int]:
        """Return the seeds for which all of the labels have a result."""
        sets = [{seed for own, seed in self.results if own == label} for label in labels]
        return sorted(set.intersection(*sets)) if sets else []

    # -- choosing -----------------------------------------------------------------------------

    def at(
        self, label: str, seed: int, budget: float, cost: str = "macs", on: str = TEST
    ) -> Row | None:
        """Return the subnet that a method has at a budget; None if it has none, or costs miss.

        Args:
            label: of the case.
            seed: of the case.
            budget: share of the full net's cost; 1 is the full net itself.
            cost: one of `COSTS`.
            on: what the figure is of that the subnet is chosen for: `TEST` or `HELD_OUT` pictures.
        """
        result = self.results[label, seed]
        if budget >= 1:
            whole = result.content["full"]["macs"]
            return next((row for row in result.rows if row.macs == whole), None)
        price = self._price(result, cost)
        within = []
        for row in result.rows:
            share = price(row)
            if share is None:
                return None
            if share <= budget:
                within.append(row)
        return max(within, key=self._worth(result, on), default=None)

    def _price(self, result: Result, cost: str) -> Callable[[Row], float | None]:
        if cost == "latency":
            return lambda row: self.latencies.get(row.counts)
        full = result.content["full"][cost]
        return lambda row: getattr(row, cost) / full

    def _worth(self, result: Result, on: str) -> Callable[[Row], tuple[float, ...]]:
        """Return what the best of several subnets has most of.

        The uniform baseline has its best width by the test pictures themselves, which favours it;
        but for figures of held-out pictures by these.
        """
        if result.case.method == "uniform" and on == TEST:
            return lambda row: (row.test, -row.macs)
        if all(row.held_out is not None for row in result.rows):
            return lambda row: (row.held_out or 0.0, -row.macs)
        return lambda row: (row.macs, row.params)

    # -- differences --------------------------------------------------------------------------

    def accuracy(self, label: str, budget: float, cost: str = "macs") -> Summary | None:
        """Return the test accuracy of a method at a budget, over its seeds: what tables and
        pictures show.
        """
        rows = [self.at(label, seed, budget, cost) for seed in self.seeds(label)]
        reached = [row.test for row in rows if row is not None]
        return summarize(reached) if reached and len(reached) == len(rows) else None

    def gain(
        self,
        label: str,
        other: str,
        budgets: Sequence[float] = BUDGETS,
        cost: str = "macs",
        on: str = TEST,
    ) -> Summary | None:
        """Return by how many points a method is ahead of another: mean over budgets, by seed.

        Args:
            label: of the one.
            other: label of the other one.
            budgets: shares of the full net's cost.
            cost: one of `COSTS`.
            on: pictures that the accuracies are of, `TEST` or `HELD_OUT`.
        """
        found = []
        for seed in self.seeds(label, other):
            figures = [
                [None if row is None else getattr(row, on) for row in pair]
                for pair in (
                    (self.at(label, seed, b, cost, on), self.at(other, seed, b, cost, on))
                    for b in budgets
                )
            ]
            if any(figure is None for pair in figures for figure in pair):
                return None
            found.append(POINTS * _mean(ours - theirs for ours, theirs in figures))
        return summarize(found) if found else None

    def against_alone(self, label: str, share: float, *, control: bool = False) -> Summary | None:
        """Return by how many points a subnet is ahead of the same shape trained alone, by seed.

        Args:
            label: of the method.
            share: of the full net's MACs.
            control: whether the net alone makes as many optimiser steps a batch.
        """
        shape = Shape(UNIFORM_SHAPE if label == BASE else label, share)
        alone = control_label(shape) if control else alone_label(shape)
        found = []
        for seed in self.seeds(label, alone):
            (row,) = self.results[alone, seed].rows
            same = [each for each in self.results[label, seed].rows if each.counts == row.counts]
            if not same:  # the case was trained again since, and has chosen another shape
                return None
            found.append(POINTS * (same[0].test - row.test))
        return summarize(found) if found else None

    def shares(self) -> list[float]:
        """Return the shares of the MACs at which shapes are trained alone, largest first."""
        listed = {*self.settings["shares"], *BUDGETS} - {1.0}
        return sorted(listed, reverse=True)

    def bundle(self, share: float) -> Summary | None:
        """Return the accuracy of the bundle's net for a share of the MACs; 1 is the full net."""
        return self.accuracy(BUNDLE, share)

    # -- the cost of searching ----------------------------------------------------------------

    def spent(self, label: str = OURS) -> dict[str, Summary] | None:
        """Return the seconds of ranking and search over those of the joint training, by seed."""
        shares: dict[str, list[float]] = {"rank": [], "search": []}
        for seed in self.seeds(label):
            result = self.results[label, seed]
            joint = result.seconds.get("joint")
            if not joint or not result.complete:
                continue
            shares["search"].append(result.seconds.get("search", 0.0) / joint)
            shares["rank"].append(
                sum(s for stage, s in result.seconds.items() if stage.endswith("ranking")) / joint
            )
        return {k: summarize(v) for k, v in shares.items()} if shares["rank"] else None


def summary(found: Comparison) -> dict[str, Any]:
    """Return the figures of one protocol and net, in percentage points and shares."""
    settings = found.settings
    by_budget = [found.gain(OURS, BASE, [budget]) for budget in BUDGETS]
    alone = {share: found.against_alone(OURS, share) for share in found.shares()}
    known = [each for each in alone.values() if each is not None]
    worst = min((each.mean for each in known), default=None)
    spent = found.spent()
    gains = [each.mean for each in by_budget if each is not None]
    return {
        "protocol": settings["name"],
        "net": settings["net"],
        "data": settings["data"],
        "seeds": len(found.seeds(OURS, BASE)),
        "mean_gain_over_us": _rounded(found.gain(OURS, BASE)),
        "max_gain_over_us": round(max(gains), 3) if len(gains) == len(BUDGETS) else None,
        "worst_against_individual": (
            round(worst, 3) if worst is not None and all(alone[b] for b in BUDGETS) else None
        ),
        "full_against_plain": _rounded(found.gain(OURS, PLAIN, [1.0])),
        "search_share": _rounded(spent["search"] if spent else None, 4),
        "rank_share": _rounded(spent["rank"] if spent else None, 4),
        "mean_gain_at_equal_compute": _rounded(found.gain(OURS, LONG)),
    }


def _rounded(figure: Summary | None, digits: int = 3) -> float | None:
    return None if figure is None else round(figure.mean, digits)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
