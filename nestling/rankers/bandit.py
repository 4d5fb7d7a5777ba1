"""Bandit: a unit is worth the mean reward that it gave while a bandit chose what to execute.

Each step computes only the units that look the most salient, which are the fewer the faster (see
`docs/channel-execution.md`); a unit's reward is its saliency over the mean of its axis.

Source: Spasov and Liò, Dynamic Neural Network Channel Execution for Efficient Training (BMVC 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from torch import Tensor

from nestling.execution.settings import EXPLORATION, Keep, Settings
from nestling.execution.stage import execute
from nestling.options import Checked, whole
from nestling.rankers.noise import check_trains
from nestling.training import Run


def bandit(
    run: Run,
    *,
    keep: Annotated[Keep, Checked(Settings, ("saliency", "exploration", "discount"))] = 0.5,
    saliency: str = "fisher",
    exploration: float = EXPLORATION,
    discount: float = 1.0,
    epochs: Annotated[int | None, whole(1, none=True)] = None,
) -> Mapping[str, Tensor]:
    """Train the net by channel execution and score units by their mean rewards.

    Args:
        run: whose net is trained, with SGD or AdamW.
        keep: share of the units of an axis that is executed, or one by axis name or pattern.
        saliency: what rewards a unit: "fisher", "taylor", "scale" or "random".
        exploration: factor of the bandit's exploration term; the paper has 1.
        discount: what a step leaves of the weight of earlier rewards.
        epochs: of the training; the run's by default.

    Raises:
        ModelError: an option that is none, no epoch, an optimiser that is not supported, or a
            training that diverged.
        SpecError: a share that an axis does not allow.
        DataError: the batches do not fit.
    """
    settings = Settings(keep, saliency, exploration=exploration, discount=discount, tune=0.0)
    check_trains(run, epochs)
    return execute(run, settings, epochs=epochs, name="bandit ranking").scores
