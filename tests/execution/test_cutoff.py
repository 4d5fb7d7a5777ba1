"""One bound for all axes, against trying every bound."""

import pytest
import torch

from nestling import BudgetError
from nestling.execution.cutoff import cutoff


@pytest.mark.parametrize("share", [0.9, 0.5, 0.2, 0.05])
@pytest.mark.parametrize("seed", range(3))
def test_the_most_units_that_fit(small, share, seed):
    space = small.supernet(step=1).space
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.rand(axis.size, generator=generator) for name, axis in space.axes.items()}
    found = cutoff(space, scores, share)
    fitting = []
    for bound in [0.0, *(float(s) for score in scores.values() for s in score), 2.0]:
        left = {name: max(1, int((score >= bound).sum())) for name, score in scores.items()}
        if space.macs(left) <= share * space.macs(space.full):
            fitting.append(left)
    assert dict(found) == max(fitting, key=space.macs)


def test_axes_without_scores_stay_whole(small):
    space = small.supernet(step=2).space
    first, second = space.axes
    found = cutoff(space, {second: torch.arange(8.0)}, 0.6)
    assert found[first] == 8
    assert found[second] in (2, 4, 6)


def test_what_cannot_fit(small):
    space = small.supernet(step=2).space
    scores = {name: torch.ones(8) for name in space.axes}
    with pytest.raises(BudgetError, match=r"cost .* more than 0\.001; ask for more"):
        cutoff(space, scores, 0.001)
