"""Fully nested nets: ordered dropout over axes of all kinds, then a greedy search over all kinds.

One pass and one step a batch, on a subnet that is drawn anew for every axis: units of all kinds are
ranked in one training. Afterwards the last units go, one axis at a time, where that costs the least
accuracy per unit of the cost that is constrained. See `docs/nested.md`.

Source: Cui et al., Fully Nested Neural Network for Adaptive Compression and Quantization (IJCAI
2020).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import nn

from nestling import rankers
from nestling.binding import binding
from nestling.entry import names_for
from nestling.errors import ModelError
from nestling.execution.resting import Resting
from nestling.loop import Objective
from nestling.menu import CALIBRATION
from nestling.objectives.law import GO_ON, LOW, Draws, Low, check_law, draws_of
from nestling.objectives.ordered_dropout import check_statistics, ordered_dropout
from nestling.objectives.sandwich import Loss
from nestling.options import Checked, DataRule, KindsRule, one_of, whole
from nestling.search import check_given as check_search
from nestling.search.greedy import check_budgets
from nestling.search.pricing import LATENCY, check_cost, cost_of
from nestling.search.stage import check_begins, held_out_of, searched
from nestling.search.uniform import FRACTIONS, Fractions
from nestling.spec import Spec
from nestling.supernet import Supernet
from nestling.training import Run

IDLE = ("rests", "moves")
OWN = ("floor", "kinds", "targets", "budgets", "reachable")  # of the search, by the method's
LOOK = 4  # axes that a step of the search looks at


def nested(
    run: Run,
    *,
    kinds: Annotated[Sequence[str] | None, KindsRule] = None,
    law: Annotated[str, Checked(check_law, ("low", "go_on", "groups", "tied"))] = "uniform",
    low: Low = LOW,
    go_on: float = GO_ON,
    groups: int | None = None,
    tied: str = "axis",
    every: Annotated[int, whole(1)] = 1,
    statistics: Annotated[str, Checked(check_statistics)] = "own",
    idle: Annotated[str, one_of(IDLE)] = "rests",
    rank_by: Annotated[str | None, Checked(rankers.check_given, ("rank_options",))] = None,
    rank_options: Mapping[str, Any] | None = None,
    fractions: Fractions = FRACTIONS,
    budgets: Annotated[Sequence[float], Checked(check_budgets)] = (),
    cost: Annotated[str, Checked(check_cost)] = "macs",
    search_options: Annotated[Mapping[str, Any] | None, Checked(_check_search)] = None,
    held_out: Annotated[Iterable[Any] | None, DataRule] = None,
) -> Mapping[str, tuple[Spec, nn.Module]]:
    """Train by ordered dropout, search greedily over all kinds, and return what was found.

    Args:
        run: what the training is made of; its weights are fresh, or pretrained ones.
        kinds: of the axes that are nested, such as ["channels", "depth"]; all by default.
        law: of the counts that are drawn, "uniform" or "geometric"; see `objectives.draws_of` for
            this and the next four.
        low: least share of the units under the uniform law, for all kinds or by kind.
        go_on: probability of a further group of units under the geometric law.
        groups: parts of an axis whose units are kept or dropped together.
        tied: whether each "axis" is drawn by itself, or those of a "kind" or of the "net" together.
        every: steps for which a draw is kept. A new draw is a new module of other shapes, which
            on small nets costs as much as the step itself.
        statistics: of norms: "own" measures them afresh for every subnet; "shared" has one set that
            all drawn subnets move, as in the paper, and measures nothing afresh.
        idle: whether what a step has dropped "rests", with its momentum, or "moves" by the
            optimiser's decay and momentum as all else.
        rank_by: name of a ranker that puts the units in order before the training; for pretrained
            weights, whose first units are no better than the last ones. None keeps the order.
        rank_options: of the ranker.
        fractions: shares of the full net's cost that the menu shall have; those that are below
            what the smallest drawn subnet costs stand for this one, which is said.
        budgets: the same in the cost's own units, all of which must be within reach.
        cost: what is constrained, one of `nestling.search.costs()`.
        search_options: of the greedy search: `groups`, `slack`, `look` and `even_below`.
        held_out: batches of training data to search on; those that the run holds out by default.

    Raises:
        SpecError: an option that is none, a kind that the net lacks, or nothing that can be
            dropped.
        ModelError: no such cost, ranker or option of the search; or nothing to search on.
        BudgetError: nothing meets a budget, or any of the fractions.

    Example:
        >>> menu = nestling.fit(net, train, val, method="nested", kinds=["channels", "depth"])
    """
    price = cost_of(run.net, cost)
    draws = draws_of(
        run.net.space, kinds=kinds, law=law, low=low, go_on=go_on, groups=groups, tied=tied
    )
    slice_ = held_out_of(run, held_out)
    options = _search_options(run, draws, kinds, fractions, budgets, search_options or {})
    check_begins(run, "greedy", slice_, options, cost=None if cost == LATENCY else price)
    if rank_by is not None:
        run.reorder(
            rankers.orders(run.net.space, rankers.scores(run, rank_by, **(rank_options or {})))
        )
    _train(run, draws, every, statistics, idle)
    found = [run.net.space.full]
    if options["targets"] or options["budgets"]:
        fresh = statistics == "own"
        smaller = searched(run, "greedy", slice_, options, cost=price, recalibrate=fresh)
        found += [each.spec for each in smaller]
        if cost != LATENCY:
            _tell_missed(run, price(found[-1]) / price(found[0]), fractions)
    return {
        name: (spec, _subnet(run.net, spec, statistics))
        for name, spec in names_for(run.net.space, found).items()
    }


def _check_search(search_options: Mapping[str, Any] | None) -> None:
    """Check the options of the search, none of which may be one that is the method's own."""
    check_search("greedy", search_options)
    taken = [name for name in search_options or {} if name in OWN]
    if taken:
        raise ModelError(
            f"search_options= has {taken[0]!r}, which follows from the options of the method "
            "(low=, kinds=, fractions=, budgets=); give these"
        )


def _search_options(
    run: Run,
    draws: Draws,
    kinds: Sequence[str] | None,
    fractions: Sequence[float],
    budgets: Sequence[float],
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the options of the search; nothing smaller is looked for than was trained."""
    floor, targets = draws.floors(run.net.space), [share for share in fractions if share < 1]
    own = dict(zip(OWN, (floor, kinds, targets, budgets, True), strict=True))
    return {"look": LOOK, **given, **own}


# -- training ------------------------------------------------------------------------------------


def _train(run: Run, draws: Draws, every: int, statistics: str, idle: str) -> None:
    """Train by ordered dropout, and measure the full net's norm statistics afterwards."""
    steps = run.epochs * run.length

    def objective(net: Supernet) -> Iterator[tuple[nn.Module, Loss]]:
        return ordered_dropout(
            net,
            draws,
            statistics=statistics,
            loss=run.loss,
            generator=_draw_of(run.seed, round(run.done * steps) // every),
        )

    _stage(run, objective, idle)
    if statistics == "own" and run.net.private and run.length:
        # The full net was hardly ever drawn; those that were have moved other statistics.
        run.net.recalibrate(
            run.net.subnet(run.net.space.full), itertools.islice(run.calibration(), CALIBRATION)
        )


def _stage(run: Run, objective: Objective, idle: str) -> None:
    name = "ordered dropout"
    if idle == "rests":
        steps = Resting(run.net, objective)
        run.train_stage(steps.objective, name=name, executor=steps)
    else:
        run.train_stage(objective, name=name)


def _draw_of(seed: int, number: int) -> torch.Generator:
    """Return the random numbers of a draw; they follow from its number, also after a resume."""
    return torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)


def _subnet(net: Supernet, spec: Spec, statistics: str) -> nn.Module:
    subnet = net.subnet(spec)
    tie = binding(subnet)
    if statistics == "shared" and tie is not None:
        tie.measured = True  # slices of the net's are its own: nothing is measured afresh
    return subnet


def _tell_missed(run: Run, least: float, fractions: Sequence[float]) -> None:
    missed = [share for share in fractions if share < least]
    if missed:
        run.reporter.say(
            f"fractions {', '.join(map(str, missed))} are below what the smallest subnet that was "
            f"drawn costs, {least:.3g} of the full net, and stand for that one; lower low="
        )
