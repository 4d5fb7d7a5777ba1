"""Non-uniform subnets from channel norms: a growing pull on short filters draws the widths.

The full net trains under a clipped group lasso that grows. Whenever the units left cost no more
than one of the targets, their counts are a subnet; units are ordered by when they fell. All these
subnets then train together, every step, on the labels, with norms of their own.

Source: Yang, He, Cao and Fan, Non-uniform DNN Structured Subnets Sampling for Dynamic Inference
(DAC 2020).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from torch import nn

from nestling import rankers
from nestling.entry import names_for
from nestling.joint import Joint, check_start, labels_share, weights_of
from nestling.objectives.listed import check_draw
from nestling.objectives.sandwich import Loss
from nestling.options import Checked, LossRule, Switch, whole
from nestling.rankers import lasso
from nestling.search.uniform import Fractions
from nestling.spec import Spec
from nestling.supernet import rearranged
from nestling.training import Run


def norms(
    run: Run,
    *,
    fractions: Fractions = lasso.TARGETS,
    strength: Annotated[tuple[float, float], Checked(lasso.check_pull, ("clip",))] = lasso.STRENGTH,
    clip: float = lasso.CLIP,
    rank_epochs: Annotated[int | None, whole(1, none=True)] = None,
    start: Annotated[str, Checked(check_start)] = "given",
    draw: Annotated[int | None, Checked(check_draw)] = None,
    labels_first: Annotated[float | None, Checked(labels_share)] = None,
    distill: Annotated[Loss | None, LossRule] = None,
    summed: Switch = False,
    own_norms: Switch = True,
) -> Mapping[str, tuple[Spec, nn.Module]]:
    """Draw a subnet for each fraction along one run of the clipped lasso, and train them together.

    Args:
        run: what the training is made of.
        fractions: shares of the full net's MACs, each with a subnet; the full net comes with them.
        strength: of the lasso at the start and at the end of its training.
        clip: which share of the mean norm a unit must be below to be pulled.
        rank_epochs: of the lasso's training; the run's by default.
        start: from which weights the joint training starts, as for "progressive".
        draw: random members a step beside the full net and the smallest; None trains all.
        labels_first: share of the joint training in which all learn from the labels; the rest
            learns from the full net.
        distill: from then on, the loss of the narrower ones, as for "uniform".
        summed: whether the optimiser makes one step for all subnets of a batch, as the paper does,
            or one after each of them.
        own_norms: whether each subnet has norm weights of its own, or only norm statistics.

    Raises:
        ModelError: an option that is none.
        SpecError: a fraction that is none.
    """
    joint = Joint(draw, labels_first, distill, summed, own_norms)
    joint.share(run)  # an error now, not after the ranking
    space = run.net.space
    given = weights_of(run)
    targets = sorted((share for share in set(fractions) if share < 1), reverse=True)
    found = lasso.kept(run, targets, strength=strength, clip=clip, epochs=rank_epochs)
    for share, crossed in zip(targets, found.crossed, strict=True):
        if not crossed:
            run.reporter.say(
                f"the lasso did not reach {share:.3g} of the MACs: that subnet has the units with "
                "the longest weights; raise strength= or rank_epochs="
            )
    orders = rankers.orders(space, found.scores)
    given = rearranged(space, given, orders)
    run.reorder(orders)
    if start == "given":
        run.refill(given)
    specs = list(dict.fromkeys([space.full, *found.specs]))
    subnets = joint.train(run, specs)
    named = names_for(run.net.space, specs)
    return {name: (spec, subnets[spec]) for name, spec in named.items()}
