"""Channel execution: each step trains only the units that a bandit takes to be the most salient.

The others are not computed at all, so that a step costs the time and the memory of a net of the
executed counts; a compact model comes out. See `docs/channel-execution.md`.

Source: Spasov and Liò, Dynamic Neural Network Channel Execution for Efficient Training (BMVC 2019).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any

import torch
from torch import nn

from nestling import rankers
from nestling.entry import names_for
from nestling.errors import BudgetError, SpecError
from nestling.execution.cutoff import cutoff
from nestling.execution.settings import EXPLORATION, Keep, Settings
from nestling.execution.stage import Executed, execute
from nestling.menu import CALIBRATION
from nestling.methods.individual import alone
from nestling.optimizers import default_optimizer
from nestling.options import Checked
from nestling.packing import pack
from nestling.spec import Space, Spec
from nestling.training import Run
from nestling.units import loose_axes

FURTHER = (1.0, 0.1)  # shares of MACs that the menu has beside the executed counts
SETTINGS = ("saliency", "scope", "exploration", "discount", "start", "tune", "every")
SLOWER = 0.1  # of the learning rate, for the cuts that are tuned alone


def channel_execution(
    run: Run,
    *,
    keep: Annotated[Keep, Checked(Settings, SETTINGS)] = 0.5,
    fractions: Annotated[Sequence[float], Checked(_check)] = FURTHER,
    saliency: str = "fisher",
    scope: str = "axis",
    exploration: float = EXPLORATION,
    discount: float = 1.0,
    start: float | None = None,
    tune: float = 0.25,
    every: int = 1,
) -> Mapping[str, tuple[Spec, nn.Module]]:
    """Train by channel execution and return compact models; the net is left in the means' order.

    Args:
        run: what the training is made of; its optimiser is SGD or AdamW.
        keep: share of the units of an axis that is executed, or one by axis name or pattern (the
            other axes run whole). MACs go with its square.
        fractions: shares of the full net's MACs that the menu has beside the executed counts. Each
            but the full net is cut by the means and tuned alone, for `tune` of the epochs at a
            tenth of the learning rate.
        saliency: what rewards a unit: "fisher", "taylor", "scale" or "random".
        scope: whether counts follow from each "axis" alone, or from the means of the whole "net".
        exploration: factor of the bandit's exploration term; the paper has 1.
        discount: what a step leaves of the weight of earlier rewards.
        start: share executed at the beginning, which falls to `keep`; None is `keep`.
        tune: share of the steps, at the end, in which the final choice alone is executed.
        every: steps for which a choice is kept.

    Raises:
        ModelError: an option that is none, an optimiser that is not supported, too few steps, an
            axis that the data never excites, or a training that diverged.
        SpecError: a share that an axis does not allow, or fractions that are none.

    Example:
        >>> menu = nestling.fit(net, train, val, method="channel-execution", keep=0.5)
    """
    settings = Settings(keep, saliency, scope, exploration, discount, start, tune, every)
    done = execute(run, settings)
    space = run.net.space
    offered = _offered(space, done, fractions, by_axis=scope == "axis")
    run.reorder(rankers.orders(space, done.scores))
    epochs = max(1, round(tune * run.epochs)) if tune and run.epochs else 0
    return _modules(run, names_for(run.net.space, offered), done.spec, epochs)


def _check(fractions: Sequence[float]) -> None:
    if not isinstance(fractions, list | tuple) or any(
        isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1
        for share in fractions
    ):
        raise SpecError(
            f"fractions= lists shares of the full net's MACs above 0 and at most 1, such as "
            f"{FURTHER}, but it is {fractions!r}"
        )


def _offered(
    space: Space, done: Executed, fractions: Sequence[float], *, by_axis: bool
) -> list[Spec]:
    """Return what the menu offers, largest first: the executed counts and those of fractions."""
    found = [done.spec]
    for share in fractions:
        if share == 1:
            found.append(space.full)
        elif by_axis:
            found.append(_of_one_width(space, share))
        else:
            found.append(cutoff(space, done.scores, share))
    return sorted(dict.fromkeys(found), key=space.macs, reverse=True)


def _of_one_width(space: Space, share: float) -> Spec:
    """Return the widest spec of a share of the MACs that keeps one width of all loose axes.

    Depth stays: blocks that were always executed are not left out at the end.
    """
    axes = loose_axes(space)
    widths = sorted({count / axis.size for axis in axes for count in axis.counts})
    specs = [Spec(space, {a.name: a.nearest(width * a.size) for a in axes}) for width in widths]
    fitting = [spec for spec in specs if space.macs(spec) <= share * space.macs(space.full)]
    if not fitting:
        least = space.macs(specs[0]) / space.macs(space.full)
        raise BudgetError(
            f"fractions= asks for {share:.3g} of the full net's MACs, but the narrowest counts "
            f"cost {least:.3g}; ask for more, or make the axes finer with step="
        )
    return max(fitting, key=space.macs)


def _modules(
    run: Run, named: Mapping[str, Spec], executed: Spec, epochs: int
) -> dict[str, tuple[Spec, nn.Module]]:
    """Return the modules of a menu; cuts that were not executed are copies, tuned alone.

    Args:
        run: whose net is in the order of the means.
        named: what is offered.
        executed: the counts that were trained last.
        epochs: for which cuts are tuned; with 0 they stay subnets of the net.
    """
    net = run.net
    found: dict[str, tuple[Spec, nn.Module]] = {}
    for name, spec in named.items():
        if spec in (executed, net.space.full) or not epochs:
            found[name] = spec, net.subnet(spec)
            continue
        module = pack(net.subnet(spec))
        with _slower(run, module):
            objective = partial(alone, module, loss=run.loss)
            run.train_stage(objective, name=name, alone=module, epochs=epochs)
        found[name] = spec, module
    if net.private and run.length:
        # Norm statistics of the net were those of parts of it; the menu measures the others'.
        net.recalibrate(
            net.subnet(net.space.full), itertools.islice(run.calibration(), CALIBRATION)
        )
    return found


@contextmanager
def _slower(run: Run, module: nn.Module) -> Iterator[None]:
    """Let a stage that trains a module alone have a tenth of the learning rate."""
    make = run.optimizer

    def made(parameters: Iterable[Any]) -> torch.optim.Optimizer:
        optimizer = default_optimizer(module) if make is None else make(parameters)
        for group in optimizer.param_groups if isinstance(optimizer, torch.optim.Optimizer) else ():
            group["lr"] *= SLOWER
        return optimizer

    run.optimizer = made
    try:
        yield
    finally:
        run.optimizer = make
