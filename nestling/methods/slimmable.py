"""Slimmable nets: a few uniform widths, all trained every step, each with norms of its own.

Source: Yu, Yang, Xu, Yang and Huang, Slimmable Neural Networks (ICLR 2019).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from nestling.entry import names_for
from nestling.joint import Joint
from nestling.options import Switch
from nestling.search.uniform import Fractions, ladder
from nestling.spec import Spec
from nestling.training import Run

FRACTIONS = (1.0, 0.75, 0.5, 0.25, 0.15)


def slimmable(
    run: Run,
    *,
    fractions: Fractions = FRACTIONS,
    own_norms: Switch = True,
    summed: Switch = False,
) -> Mapping[str, tuple[Spec, nn.Module]]:
    """Train some uniform widths together, and offer them.

    Args:
        run: what the training is made of.
        fractions: shares of the full net's MACs; a width is taken for each. A step costs a pass of
            each.
        own_norms: whether each width has norm weights of its own, as in the paper, or only norm
            statistics.
        summed: whether the optimiser makes one step for all widths, as in the paper, or one after
            each of them.

    Raises:
        SpecError: a fraction is none.
    """
    specs = ladder(run.net.space, fractions)
    subnets = Joint(None, 1.0, None, summed, own_norms).train(run, specs)
    named = names_for(run.net.space, specs)
    return {name: (spec, subnets[spec]) for name, spec in named.items()}
