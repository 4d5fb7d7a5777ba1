"""Universally slimmable nets: the sandwich rule at uniform widths.

Train with the sandwich rule and in-place distillation; offer uniform widths, each recalibrated.

Source: Yu and Huang, Universally Slimmable Networks and Improved Training Techniques (ICCV 2019).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch.nn.functional as F
from torch import nn

from nestling.errors import ModelError
from nestling.menu import names_for
from nestling.objectives.sandwich import LOW, Loss, sandwich
from nestling.search.uniform import FRACTIONS, ladder
from nestling.spec import Spec
from nestling.supernet import Supernet
from nestling.training import Run


def uniform(
    run: Run,
    *,
    fractions: Sequence[float] = FRACTIONS,
    low: float = LOW,
    random: int = 2,
    labels_first: float = 0.5,
) -> Mapping[str, tuple[Spec, nn.Module]]:
    """Train universally slimmable weights and return uniform subnets near the wanted fractions.

    Args:
        run: what the training is made of.
        fractions: shares of the full net's MACs that the menu shall have.
        low: narrowest width that is trained.
        random: subnets of random width a step, beside the full and the narrowest.
        labels_first: share of the training in which all subnets learn from the labels, before the
            narrower ones learn from the full net. The paper has 0, but a teacher that knows nothing
            yet holds its pupils, and with them the shared weights, back.
    """
    if not 0 <= labels_first <= 1:
        raise ModelError(f"labels_first= is a share from 0 to 1, but it is {labels_first!r}")

    def objective(net: Supernet) -> Iterator[tuple[nn.Module, Loss]]:
        loss = (run.loss or F.cross_entropy) if run.done < labels_first else run.loss
        return sandwich(net, low=low, random=random, loss=loss)

    named = names_for(run.net, ladder(run.net.space, fractions))
    run.train_stage(objective, name="sandwich")
    return {name: (spec, run.net.subnet(spec)) for name, spec in named.items()}
