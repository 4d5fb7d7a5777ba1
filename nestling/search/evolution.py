"""Evolutionary search: NSGA-II over accuracy and cost; the general-purpose rival.

It knows nothing of nested nets: it breeds specs, keeps the Pareto front, and needs many more
evaluations than a search that goes step by step. It can find what no chain contains.

Source: Deb et al., A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II (IEEE Transactions
on Evolutionary Computation 2002), as Optuna has it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

from nestling.errors import BudgetError, ModelError, SpecError
from nestling.options import Checked
from nestling.search.request import Cost, Found, Progress, Score, Search, front
from nestling.search.steps import FLOOR, Floor, check_shares, check_steps, stairs
from nestling.spec import Space, Spec

TRIES = 20  # proposals per evaluation; a small space runs out of new specs


def evolution(
    space: Space,
    *,
    trials: Annotated[int, Checked(_check, ("population", "seed", "most"))] = 300,
    population: int = 30,
    groups: Annotated[int | None, Checked(check_steps, ("floor",))] = None,
    floor: Floor = FLOOR,
    most: float = 1.0,
    seed: int = 0,
) -> Search:
    """Search the Pareto front of accuracy and cost by breeding specs; needs Optuna.

    The first generation has the full net, the floors, what lies evenly between them, and random
    specs. A proposal that costs too much stands for the largest that fits below it: the axis that
    keeps the most of its units is lowered again and again.

    Args:
        space: of the net.
        trials: distinct specs to evaluate.
        population: specs of a generation, at least 2.
        groups: equal parts of an axis; None lets it have every allowed count.
        floor: share of its units that every axis keeps, or that share by axis name.
        most: share of the full net's cost above which nothing is evaluated.
        seed: of all random choices.

    Returns:
        The Pareto front, most costly first.

    Raises:
        ModelError: Optuna is not installed.
        SpecError: an option is no such number.
        BudgetError: the floors cost more than `most`.

    Example:
        >>> search = evolution(net.space, trials=200, most=0.5)
        >>> found = nestling.search.conduct(search, net, score=score)
    """
    _check(trials, population, seed, most)
    steps = stairs(space, groups, floor)
    breeder = _Breeder(steps, population, seed)
    lowest = Spec(space, {name: counts[-1] for name, counts in steps.items()})
    whole, least = yield Cost((space.full, lowest))
    if least > most * whole:
        raise BudgetError(
            f"no subnet costs at most {most:.3g} of the full net: with all axes at their floors it "
            f"is {least / whole:.3g}; ask for more in most=, or lower floor="
        )
    known: dict[Spec, tuple[float, float]] = {}
    for _ in range(TRIES * trials):
        if len(known) == trials:
            break
        trial, counts = breeder.ask()
        spec = Spec(space, counts)
        (cost,) = yield Cost((spec,))
        while cost > most * whole:
            spec = _lower(space, spec, steps)
            (cost,) = yield Cost((spec,))
        if spec not in known:
            yield Progress(len(known), trials)
            accuracy: float = yield Score(spec)
            known[spec] = accuracy, cost
        breeder.tell(trial, known[spec])
    yield Progress(trials, trials)
    return front([Found(s, a) for s, (a, _) in known.items()], lambda s: known[s][1])


class _Breeder:
    """An Optuna study that is asked for counts and told their accuracy and cost."""

    def __init__(self, steps: dict[str, tuple[int, ...]], population: int, seed: int) -> None:
        self.steps = {name: counts for name, counts in steps.items() if len(counts) > 1}
        self.fixed = {name: counts[0] for name, counts in steps.items() if len(counts) == 1}
        self.optuna = _optuna()
        # Places on the stairs, as numbers: crossover and mutation know that they are in order.
        sampler = self.optuna.samplers.NSGAIISampler(population_size=population, seed=seed)
        with _silent(self.optuna):
            self.study = self.optuna.create_study(
                directions=["maximize", "minimize"], sampler=sampler
            )
        for part in range(min(5, population)):
            self.study.enqueue_trial(
                {n: round((len(c) - 1) * part / 4) for n, c in self.steps.items()}
            )
        self.ranges = {
            name: self.optuna.distributions.IntDistribution(0, len(counts) - 1)
            for name, counts in self.steps.items()
        }

    def ask(self) -> tuple[Any, dict[str, int]]:
        """Return a trial and its counts."""
        with _silent(self.optuna):
            trial = self.study.ask(self.ranges)
        counts = {name: counts[trial.params[name]] for name, counts in self.steps.items()}
        return trial, {**self.fixed, **counts}

    def tell(self, trial: Any, values: tuple[float, float]) -> None:
        """Tell a trial's accuracy and cost."""
        with _silent(self.optuna):
            self.study.tell(trial, values)


def _lower(space: Space, spec: Spec, steps: Mapping[str, tuple[int, ...]]) -> Spec:
    """Return the spec with one axis a step lower: the one that is highest on its stairs."""

    def height(name: str) -> float:
        down = steps[name]
        return (len(down) - 1 - down.index(spec[name])) / max(len(down) - 1, 1)

    name = max(steps, key=height)
    return Spec(space, {**spec, name: steps[name][steps[name].index(spec[name]) + 1]})


def _optuna() -> Any:
    try:
        return importlib.import_module("optuna")
    except ImportError as error:
        raise ModelError(
            "the evolutionary search needs Optuna, which is not installed; get it with "
            "`pip install nestling[search]`, or use another search, such as progressive"
        ) from error


@contextmanager
def _silent(optuna: Any) -> Iterator[None]:
    """Keep Optuna from writing about each study, for a block."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _check(trials: int, population: int, seed: int, most: float) -> None:
    least = {"trials": (trials, 1), "population": (population, 2), "seed": (seed, 0)}
    for name, (value, low) in least.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise SpecError(f"{name}= is a whole number of at least {low}, but it is {value!r}")
    check_shares("most=", [most])
