"""Universally slimmable nets: the sandwich rule at uniform widths.

Train with the sandwich rule and in-place distillation; offer uniform widths, each recalibrated.

Source: Yu and Huang, Universally Slimmable Networks and Improved Training Techniques (ICCV 2019).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import nn

from nestling.menu import names_for
from nestling.objectives.sandwich import LOW, sandwich
from nestling.search.uniform import FRACTIONS, ladder
from nestling.spec import Spec
from nestling.training import Run


def uniform(
    run: Run,
    *,
    fractions: Sequence[float] = FRACTIONS,
    low: float = LOW,
    random: int = 2,
) -> Mapping[str, tuple[Spec, nn.Module]]:
    """Train universally slimmable weights and return uniform subnets near the wanted fractions.

    Args:
        run: what the training is made of.
        fractions: shares of the full net's MACs that the menu shall have.
        low: narrowest width that is trained.
        random: subnets of random width a step, beside the full and the narrowest.
    """
    named = names_for(run.net, ladder(run.net.space, fractions))
    run.train_stage(partial(sandwich, low=low, random=random, loss=run.loss), name="sandwich")
    return {name: (spec, run.net.subnet(spec)) for name, spec in named.items()}
