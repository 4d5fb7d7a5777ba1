"""A search as a stage of a training: on its net, with its settings, resumed with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nestling import search as searches
from nestling.catalogue import options as options_of
from nestling.errors import ModelError
from nestling.objectives.sandwich import task_loss
from nestling.search.driver import conduct
from nestling.search.request import Cost, CostOf, Found, Score, Search
from nestling.search.scoring import Scorer, check_repeatable
from nestling.search.tuning import Tuner
from nestling.spec import Spec
from nestling.training import Run


def searched(
    run: Run,
    by: str,
    held_out: Iterable[Any],
    options: Mapping[str, Any],
    *,
    cost: CostOf | None = None,
    recalibrate: bool = True,
) -> list[Found]:
    """Search the net of a run as it is trained now; a resumed run has what was found.

    Every evaluation is a line of JSON in `CHECKPOINT.search.jsonl` beside the run's checkpoint, if
    it has one.

    Args:
        run: of the method that searches.
        by: name of the search.
        held_out: batches to score on, the same at every iteration.
        options: of the search.
        cost: of a spec; multiply-accumulates by default.
        recalibrate: whether each subnet's norm statistics are measured afresh before it is scored;
            else they are slices of the net's.

    Raises:
        ModelError: no such search or option, or one of the search's own.
    """
    axes = list(run.net.space.axes)

    def make() -> dict[str, Tensor]:
        search = _made(run, by, options)
        calibrate = run.train if recalibrate else ()
        found = _conducted(run, search, held_out, calibrate, cost)
        run.spent("search")
        counts = [[each.spec[name] for name in axes] for each in found]
        accuracies = [each.accuracy for each in found]
        return {
            "counts": torch.tensor(counts),
            "accuracies": torch.tensor(accuracies, dtype=torch.float64),
        }

    run.spent("other")
    kept = run.once(make)
    return [
        Found(Spec(run.net.space, dict(zip(axes, row, strict=True))), accuracy)
        for row, accuracy in zip(kept["counts"].tolist(), kept["accuracies"].tolist(), strict=True)
    ]


def check_begins(
    run: Run,
    by: str,
    held_out: Iterable[Any],
    options: Mapping[str, Any],
    *,
    cost: CostOf | None = None,
) -> None:
    """Check that a search can begin: for before a training that comes first.

    Args:
        run: as for `searched`, and so are the others.
        by: name of the search.
        held_out: batches to score on.
        options: of the search.
        cost: that is known before the training, if it is: a budget that nothing meets shows.

    Raises:
        ModelError: no such search or option.
        SpecError: an option that is none.
        BudgetError: nothing meets a budget, as far as the search asks for it first.
        DataError: the held-out data is empty, or varies from one iteration to the next.
    """
    check_repeatable(held_out)
    search = _made(run, by, options)
    request = next(search)  # its options are checked before it asks for anything
    if cost is not None:
        if isinstance(request, Score):
            request = search.send(0.0)
        if isinstance(request, Cost):
            search.send(tuple(cost(spec) for spec in request.specs))
    search.close()


def held_out_of(run: Run, given: Iterable[Any] | None) -> Iterable[Any]:
    """Return the batches to search on: those given, or else those that the run holds out.

    Raises:
        ModelError: there are none.
    """
    found = run.held_out if given is None else given
    if found is None:
        raise ModelError(
            "the search needs batches that the training does not see, but there is neither val= "
            "nor held_out=; keep a slice of the training data aside (never test data)"
        )
    return found


def log_of(checkpoint: Path) -> Path:
    """Return where the search of a training with this checkpoint keeps its evaluations."""
    return checkpoint.with_name(f"{checkpoint.name}.search.jsonl")


def _made(run: Run, by: str, given: Mapping[str, Any]) -> Search:
    searches.check_given(by, given)
    make = searches.find(by)
    seeded = {"seed": run.seed} if "seed" in options_of(make) else {}
    return make(run.net.space, **{**seeded, **given})


def _conducted(
    run: Run,
    search: Search,
    held_out: Iterable[Any],
    calibrate: Iterable[Any],
    cost: CostOf | None,
) -> list[Found]:
    score = Scorer(
        run.net, held_out, calibrate=calibrate, metric=run.metric, precision=run.precision
    )
    tune = Tuner(run.net, run.train, score, loss=run.loss or task_loss, precision=run.precision)
    return conduct(
        search,
        run.net,
        score=score,
        tune=tune,
        cost=cost,
        log=None if run.checkpoint is None else log_of(run.checkpoint),
        resume=run.resumed,
        seed=run.seed,
        reporter=run.reporter,
    )
