import math

import pytest
import torch

from nestling.exporters.certificate import distance, tolerance_of

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("wanted", "found", "absolute", "relative"),
    [
        ([2.0, -4.0], [2.0, -4.0], 0, 0),
        ([2.0, -4.0], [2.5, -4.0], 0.5, 0.125),
        ([0.0, 0.0], [0.0, 0.25], 0.25, 0.25),
        ([NAN, 1.0], [NAN, 1.0], 0, 0),
        ([NAN, 1.0], [INF, 1.0], INF, INF),
        ([INF, 1.0], [INF, 2.0], 1, 1),
        ([-INF, 1.0], [INF, 1.0], INF, INF),
        ([1.0, 2.0], [1.0, NAN], INF, INF),
        ([NAN, NAN], [NAN, NAN], 0, 0),
    ],
)
def test_distances(wanted, found, absolute, relative):
    assert distance(torch.tensor(wanted), torch.tensor(found)) == (absolute, relative)


def test_every_tensor_counts_and_shapes_too():
    one, two = torch.ones(2), torch.full((2,), 8.0)
    assert distance({"a": one, "b": two}, {"a": one, "b": two + 4}) == (4, 0.5)
    assert distance(one, torch.ones(1, 2)) == (INF, INF)
    with pytest.raises(ValueError, match="zip"):
        distance((one, two), (one,))
    assert distance(torch.tensor([3, 4]), torch.tensor([3, 5])) == (1, 0.25)


def test_the_tolerance_follows_the_precision():
    assert tolerance_of(torch.nn.Linear(2, 2)) == 1e-4
    assert tolerance_of(torch.nn.Linear(2, 2).double()) == 1e-9
    assert tolerance_of(torch.nn.Linear(2, 2).bfloat16()) == 5e-2
