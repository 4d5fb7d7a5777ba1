import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.report import rows, units
from nestling.report.html import _round_up
from nestling.report.units import human_bytes, human_count, human_ms, human_times, shorten


@pytest.mark.parametrize("module", [units, rows])
def test_examples(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_units():
    assert human_count(0) == "0"
    assert human_count(999) == "999"
    assert human_bytes(270_000) == "0.27 MB"
    assert human_bytes(4_000) == "4.0 kB"
    assert human_ms(0.00456) == "0.00456"
    assert human_times(9.999) == "10.0×"


@given(st.text(max_size=60), st.integers(3, 40))
def test_shorten_keeps_the_limit_and_both_ends(text, limit):
    short = shorten(text, limit)
    assert len(short) == min(len(text), limit)
    assert short[:1] == text[:1]
    assert short[-1:] == text[-1:]


@given(st.floats(1e-4, 1e4))
def test_round_up_is_a_budget_that_is_met(value):
    up = _round_up(value)
    assert value * (1 - 1e-9) <= up <= value * 1.1 + 1e-12
    assert math.isfinite(up)
