"""Individually trained nets: each shape on its own; the baseline for every method.

Nothing is shared: every entry of the menu holds weights of its own, so the file holds them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated

from torch import nn

from nestling.entry import names_for
from nestling.errors import SpecError
from nestling.menu import check_alone
from nestling.models import initialize
from nestling.objectives.sandwich import Loss, task_loss
from nestling.options import Checked, one_of
from nestling.packing import pack
from nestling.search.uniform import FRACTIONS, Fractions, ladder
from nestling.spec import Spec
from nestling.supernet import Supernet
from nestling.training import Run

STARTS = ("fresh", "given")


def individual(
    run: Run,
    *,
    fractions: Fractions = FRACTIONS,
    specs: Annotated[Sequence[Spec] | None, Checked(_check)] = None,
    start: Annotated[str, one_of(STARTS)] = "fresh",
) -> Mapping[str, tuple[Spec, nn.Module]]:
    """Train a stand-alone net for each spec.

    Args:
        run: what the training is made of; every net trains for `run.epochs`.
        fractions: shares of the full net's MACs, for uniform widths.
        specs: the shapes to train instead.
        start: from which weights: "fresh", initialised at its own shape, or "given", those that its
            subnet has, as one fine-tunes a pruned net.

    Raises:
        SpecError: there is no spec, or one has weights in few bits.
    """
    chosen = list(specs) if specs is not None else ladder(run.net.space, fractions)
    for spec in chosen:
        check_alone(run.net, spec)
    trained: dict[str, tuple[Spec, nn.Module]] = {}
    for number, (name, spec) in enumerate(names_for(run.net.space, chosen).items()):
        module = pack(run.net.subnet(spec))
        if start == "fresh":
            initialize(module, seed=run.seed + number)
        run.train_stage(partial(alone, module, loss=run.loss), name=name, alone=module)
        trained[name] = (spec, module)
    return trained


def _check(specs: Sequence[Spec] | None) -> None:
    listed = isinstance(specs, list | tuple) and all(isinstance(each, Spec) for each in specs)
    if specs is not None and not (listed and specs):
        raise SpecError(
            f"specs= lists at least one spec, such as [net.space.spec(width=0.5)], not "
            f"{specs!r:.80}"
        )


def alone(
    module: nn.Module, net: Supernet, *, loss: Loss | None = None
) -> Iterator[tuple[nn.Module, Loss]]:
    """Objective: the module itself, on the targets."""
    yield module.train(), loss or task_loss
