"""Rankers: how much each unit of an axis is worth. A ranker is a file with a function of its name.

`ranker(run, **options)` returns a score for every unit of every axis that has no order of its own;
larger is more important, and kept longer. From the scores follow orders, and once a supernet is
reordered by them every subnet is a prefix. A new file is found by its name; nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from nestling import catalogue
from nestling.catalogue import Catalogue
from nestling.checkpoint import RandomState
from nestling.errors import ModelError
from nestling.objectives.sandwich import Loss
from nestling.progress import Reporter
from nestling.spec import Space
from nestling.supernet import Supernet
from nestling.training import MakeOptimizer, Run
from nestling.units import loose_axes

Ranker: TypeAlias = Callable[..., Mapping[str, Tensor]]

_ALL = Catalogue(__name__, "ranker")
names, options = _ALL.names, catalogue.options
find: Callable[[str], Ranker] = _ALL.find


def rank(
    net: Supernet,
    by: str = "l1",
    train: Iterable[Any] | None = None,
    *,
    epochs: int = 10,
    seed: int = 0,
    loss: Loss | None = None,
    optimizer: MakeOptimizer | None = None,
    precision: str = "auto",
    progress: bool | Reporter = False,
    **options: Any,
) -> dict[str, tuple[int, ...]]:
    """Return an order of the units of every axis, best first, as `net.reorder` takes it.

    Axes whose units have an order of their own (depth, bits) are left out.

    Args:
        net: the supernet. "noise", "lasso", "slimming" and "bandit" train its weights; the others
            leave them alone.
        by: one of `nestling.rankers.names()`: "l1" and "l2" norms, "scale" of the norm layers,
            "taylor" and "fisher" (what the loss says of the weights), "noise" (how much noise a
            unit learns to bear), "lasso" (which units fall to zero), "slimming" (scales of norms
            that a penalty shrinks), "bandit" (how salient a unit is in steps that execute only a
            part of the net), "random".
        train: training batches, for the rankers that look at data.
        epochs: passes over `train` of the rankers that train.
        seed: of all random choices; the global random state is put back afterwards.
        loss: from (outputs, targets); the usual one by default, as for `fit`.
        optimizer: a function from parameters to a torch optimiser; SGD by default, as for `fit`.
        precision: of the training, as for `fit`.
        progress: show progress on stderr.
        **options: of the ranker, such as `direction=` of "noise".

    Raises:
        ModelError: an unknown ranker or option, or a training that diverged.
        DataError: the ranker needs `train`, or its batches do not fit.

    Example:
        >>> net.reorder(nestling.rank(net, "taylor", train))
    """
    before = RandomState.now()
    reporter = progress if isinstance(progress, Reporter) else Reporter(quiet=not progress)
    try:
        run = Run(
            net,
            [] if train is None else train,
            0 if train is None else epochs,
            seed=seed,
            loss=loss,
            optimizer=optimizer,
            precision=precision,
            reporter=reporter,
        )
        with run.undone_on_failure(), reporter:
            return orders(net.space, scores(run, by, **options))
    finally:
        before.restore()


def check_given(rank_by: str | None, rank_options: Mapping[str, Any] | None) -> None:
    """Check a ranker by name with its options, as far as that is known without a net.

    Raises:
        ModelError: no such ranker or option, options that are no mapping, or options of none.
        NestlingError: a value that the option's annotation does not allow.
    """
    if rank_options is not None and not isinstance(rank_options, Mapping):
        raise ModelError(
            f"rank_options= is a mapping of names to values, such as {{'direction': 'ascending'}}, "
            f"not {rank_options!r:.80}"
        )
    if rank_by is not None:
        _ALL.check_options(rank_by, find(rank_by), rank_options or {})
    elif rank_options:
        raise ModelError(
            f"rank_options= are those of a ranker, but rank_by= is None, which ranks nothing; give "
            f"rank_by= one of {', '.join(names())}"
        )


def scores(run: Run, by: str, **given: Any) -> dict[str, Tensor]:
    """Return a ranker's scores within a run: one number a unit and axis, the same after a resume.

    Args:
        run: of the method that ranks.
        by: name of the ranker.
        **given: options of the ranker.

    Raises:
        ModelError: an unknown ranker or option.

    Example:
        >>> run.reorder(rankers.orders(run.net.space, rankers.scores(run, "noise", epochs=20)))
    """
    ranker = find(by)
    _ALL.check_options(by, ranker, given)
    return run.once(lambda: ranker(run, **given))


def orders(space: Space, scores: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the units of every axis, best first; of two that score the same, the first one.

    Args:
        space: of the net.
        scores: axis name to one number a unit, larger is better; for all axes but ordered ones.

    Raises:
        ModelError: an axis has no score, or not one finite number a unit.

    Example:
        >>> orders(net.space, {"conv1": torch.tensor([0.1, 3.0, 0.2, 3.0])})
        {'conv1': (1, 3, 2, 0)}
    """
    loose = {axis.name: axis.size for axis in loose_axes(space)}
    found = {}
    for name in [*loose, *(name for name in scores if name not in loose)]:
        given, size = scores.get(name), loose.get(name, 0)
        if given is None or given.shape != (size,) or not bool(torch.isfinite(given).all()):
            what = "nothing" if given is None else f"{tuple(given.shape)} numbers"
            raise ModelError(
                f"a ranker gives every axis that has no order of its own one finite score a unit, "
                f"but axis {name!r} of {size} units got {what}; correct the ranker"
            )
        found[name] = tuple(torch.argsort(given, descending=True, stable=True).tolist())
    return found
