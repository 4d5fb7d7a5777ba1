"""Universally slimmable nets: the sandwich rule at uniform widths.

Train with the sandwich rule, on the labels or with in-place distillation; offer uniform widths,
each recalibrated.

Source: Yu and Huang, Universally Slimmable Networks and Improved Training Techniques (ICCV 2019).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

from torch import nn

from nestling.entry import names_for
from nestling.errors import SpecError
from nestling.joint import labels_share, train_full
from nestling.objectives.sandwich import Loss, check_low, sandwich, task_loss
from nestling.options import Checked, LossRule, Switch, whole
from nestling.search.uniform import FRACTIONS, Fractions, ladder, width_of
from nestling.spec import Spec
from nestling.supernet import Supernet
from nestling.training import Run


def uniform(
    run: Run,
    *,
    fractions: Fractions = FRACTIONS,
    low: Annotated[float | None, Checked(_check)] = None,
    full_epochs: Annotated[int | None, whole(0, none=True)] = 0,
    random: Annotated[int, whole(0)] = 2,
    labels_first: Annotated[float | None, Checked(labels_share)] = None,
    distill: Annotated[Loss | None, LossRule] = None,
    summed: Switch = False,
) -> Mapping[str, tuple[Spec, nn.Module]]:
    """Train universally slimmable weights and return uniform subnets near the wanted fractions.

    Args:
        run: what the training is made of.
        fractions: shares of the full net's MACs that the menu shall have.
        low: narrowest width that is trained; nothing narrower is offered. By default it is that of
            the narrowest subnet of the menu (the paper has 0.25).
        full_epochs: of a training of the full net alone that comes first, on a schedule of its own;
            None is as many as follow. The paper has none, and weights that are trained already need
            none.
        random: subnets of random width a step, beside the full and the narrowest.
        labels_first: share of the training in which all subnets learn from the labels, before the
            narrower ones learn from the full net. The paper has 0; on short runs it is best never
            to distil, which is the default where no `distill` is given.
        distill: from then on, the loss of the narrower ones, from (outputs, the full net's
            outputs). With `labels_first` alone it is soft cross-entropy.
        summed: whether the optimiser makes one step for all subnets of a batch, as the paper does,
            or one after each of them; see `docs/accuracy.md` for what that changes.

    Raises:
        SpecError: all of the fractions are narrower than `low`.
        ModelError: `labels_first` is no share, or is below 1 with a `loss` and no `distill`.
    """
    share = labels_share(labels_first, distill, run.loss)

    def objective(net: Supernet) -> Iterator[tuple[nn.Module, Loss]]:
        if run.done < share:
            return sandwich(net, low=least, random=random, loss=run.loss or task_loss)
        return sandwich(net, low=least, random=random, loss=run.loss, distill=distill)

    offered = _offered(run, fractions, low)
    least = low if low is not None else min(width_of(run.net.space, spec) for spec in offered)
    named = names_for(run.net.space, offered)
    if full_epochs != 0:
        train_full(run, full_epochs, "full net")
    run.train_stage(objective, name="sandwich", summed=summed)
    return {name: (spec, run.net.subnet(spec)) for name, spec in named.items()}


def _check(low: float | None) -> None:
    if low is not None:
        check_low(low)


def _offered(run: Run, fractions: Sequence[float], low: float | None) -> list[Spec]:
    """Return the uniform specs near the fractions that are no narrower than what is trained."""
    space = run.net.space
    found = ladder(space, fractions)
    if low is None:
        return found
    narrowest = space.spec(width=low)
    kept = [spec for spec in found if all(spec[axis] >= narrowest[axis] for axis in spec)]
    dropped = [share for share in fractions if ladder(space, [share])[0] not in kept]
    if not kept:
        raise SpecError(
            f"the menu offers nothing narrower than low={low}, which is trained, but all of "
            f"fractions={tuple(fractions)} are; lower low=, or ask for larger fractions"
        )
    if dropped:
        run.reporter.say(
            f"fractions {', '.join(map(str, dropped))} are left out: they are narrower than "
            f"low={low}, so they would not be trained"
        )
    return kept
