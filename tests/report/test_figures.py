from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.report import Row, figures


def untimed(page):
    return replace(page, rows=[replace(row, latency=None) for row in page.rows])


def test_speed_ups(small):
    smallest = small.rows[-1]
    assert figures.speedup(small, smallest) == pytest.approx(3.10 / 0.60)
    assert figures.ideal_speedup(small, smallest) == pytest.approx(12.3 / 0.9)
    assert figures.ideal_latency(small, smallest) == pytest.approx(3.10 * 0.9 / 12.3)
    assert figures.speedup(small, small.full) == figures.ideal_speedup(small, small.full) == 1
    assert figures.speedup(untimed(small), smallest) is None


def test_front_of_the_small_menu(small):
    names = [row.name for row in figures.front(small.rows, figures.cost_of(small))]
    assert names == ["s4", "s3", "s2", "s1", "full"]


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), max_size=12))
def test_front_is_what_no_other_row_beats(pairs):
    rows = [Row(str(n), x, 0, 0, y / 6, None, True, {}) for n, (x, y) in enumerate(pairs)]
    expected = {
        row.name
        for row in rows
        if not any(
            other.macs <= row.macs
            and other.accuracy >= row.accuracy
            and (other.macs, other.accuracy) != (row.macs, row.accuracy)
            for other in rows
        )
    }
    found = figures.front(rows, lambda row: float(row.macs))
    assert {row.name for row in found} == expected
    assert [row.macs for row in found] == sorted(row.macs for row in found)


def test_why_not_offered(small):
    loser = small.rows[3]
    say = figures.why_not_offered
    assert say(small, loser) == "slower than s2 and no more accurate"
    assert say(untimed(small), loser) == "more MACs than s2 and no more accurate"
    assert say(small, replace(loser, latency=None)) == "its latency was not measured"
    assert say(small, replace(loser, accuracy=None)) == "its accuracy was not measured"
    same = replace(loser, latency=(1.62, 1.6, 1.7))
    assert say(small, same) == "no faster than s2 and no more accurate"
    close = replace(loser, latency=(1.61, 1.6, 1.7))
    assert say(small, close) == "not measurably faster than s2 and no more accurate"
    best = replace(loser, accuracy=1.0)
    assert say(small, best) == "left out when the menu was made"
    known = replace(loser, reason="no faster than s2 here and no better")
    assert say(small, known) == "no faster than s2 here and no better"


def test_head_line(small):
    line = "The smallest offered subnet runs 5.2 times faster at 4.1 points less accuracy."
    assert figures.head_line(small) == line
    assert "needs 13.7 times fewer MACs" in figures.head_line(untimed(small))
    alone = replace(small, rows=[small.full])
    assert figures.head_line(alone) == "No subnet smaller than the full net is offered."
    assert figures.key_figures(alone) == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"latency": (3.0, 2.9, 3.1)}, "is not measurably faster than the full net"),
        ({"latency": (6.2, 6.1, 6.3)}, "runs 2.0 times slower than the full net"),
        ({"accuracy": None}, "(accuracy not measured)"),
        ({"accuracy": 0.992}, "at the same accuracy"),
        ({"accuracy": 0.9945}, "at 0.25 points more accuracy"),
    ],
)
def test_head_line_claims_no_more_than_was_measured(small, change, words):
    page = replace(small, rows=[small.full, replace(small.rows[-1], **change)])
    assert words in figures.head_line(page)
