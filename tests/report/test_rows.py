import math
from dataclasses import replace

import pytest

from nestling.errors import NestlingError


@pytest.mark.parametrize(
    "change",
    [
        {"accuracy": 95.1},
        {"accuracy": math.nan},
        {"macs": 0},
        {"latency": (0.0, 0.0, 1.0)},
        {"latency": (1.0, 1.1, 1.2)},
        {"latency": (1.0, 0.9, math.inf)},
    ],
)
def test_a_figure_that_cannot_be_is_refused(small, change):
    with pytest.raises(NestlingError, match="'s1'"):
        replace(small.rows[1], **change)


def test_counts_must_fit_the_sizes(small):
    too_many = replace(small.rows[1], counts={"conv1": 17})
    with pytest.raises(NestlingError, match="keeps 17 of the 16 units"):
        replace(small, rows=[small.full, too_many])
    unknown = replace(small.rows[1], counts={"conv": 1})
    with pytest.raises(NestlingError, match="did you mean 'conv1'"):
        replace(small, rows=[small.full, unknown])


@pytest.mark.parametrize("change", [{"rows": []}, {"sizes": {}}])
def test_an_empty_page_is_refused(small, change):
    with pytest.raises(NestlingError, match="at least the full net and one axis"):
        replace(small, **change)
