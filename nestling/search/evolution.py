"""Evolutionary search: NSGA-II over accuracy and cost; the general-purpose rival.

It knows nothing of nested nets: it breeds specs, keeps the Pareto front, and needs many more
evaluations than a search that goes step by step. It can find what no chain contains.

Source: Deb et al., A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II (IEEE Transactions
on Evolutionary Computation 2002), as Optuna has it.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nestling.errors import BudgetError, ModelError, SpecError
from nestling.search.greedy import check_shares
from nestling.search.request import Cost, Found, Progress, Score, Search, front
from nestling.search.steps import FLOOR, Floor, stairs
from nestling.spec import Space, Spec

TRIES = 20  # proposals per evaluation; a small space runs out of new specs


def evolution(
    space: Space,
    *,
    trials: int = 300,
    population: int = 30,
    groups: int | None = None,
    floor: Floor = FLOOR,
    most: float = 1.0,
    seed: int = 0,
) -> Search:
    """Search the Pareto front of accuracy and cost by breeding specs; needs Optuna.

    The first generation has the full net, the floors, what lies evenly between them, and random
    specs. Proposals that cost too much are trimmed at random axes until they fit.

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
    breeder, trim = _Breeder(steps, population, seed), random.Random(seed)
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
            high = [name for name in spec if spec[name] > steps[name][-1]]
            name = trim.choice(high)
            spec = Spec(space, {**spec, name: steps[name][steps[name].index(spec[name]) + 1]})
            (cost,) = yield Cost((spec,))
        if spec not in known:
            yield Progress(len(known), trials)
            accuracy: float = yield Score(spec)
            known[spec] = accuracy, cost
        breeder.tell(trial, dict(spec), known[spec])
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

    def tell(self, trial: Any, counts: dict[str, int], values: tuple[float, float]) -> None:
        """Tell what a trial gave; one that was trimmed is told as what it has become."""
        with _silent(self.optuna):
            params = {name: down.index(counts[name]) for name, down in self.steps.items()}
            if params == trial.params:
                self.study.tell(trial, values)
                return
            self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)
            self.study.add_trial(
                self.optuna.trial.create_trial(
                    params=params,
                    distributions=self.ranges,
                    values=values,
                    system_attrs=trial.system_attrs,  # its generation
                )
            )


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
