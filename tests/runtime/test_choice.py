import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling import BudgetError
from nestling.entry import Entry, score
from nestling.runtime.choice import Ladder, shown

ENTRIES = st.lists(
    st.tuples(st.integers(1, 50), st.none() | st.floats(-1, 1), st.booleans()), min_size=1
)


def ladder_of(rows):
    entries = [
        Entry(str(number), {}, macs, 1, 1, accuracy, offered)
        for number, (macs, accuracy, offered) in enumerate(rows)
    ]
    return entries, Ladder.of("macs", entries, lambda entry: entry.macs)


@given(ENTRIES.filter(lambda rows: len({row[1] is None for row in rows}) == 1), st.integers(1, 60))
def test_the_choice_is_that_of_exhaustion(rows, budget):
    entries, ladder = ladder_of(rows)
    offered = [entry for entry in entries if entry.offered] or entries
    fitting = [entry for entry in offered if entry.macs <= budget]
    if not fitting:
        with pytest.raises(BudgetError, match=f"closest is '{ladder.cheapest.name}'"):
            ladder.choose(budget)
        assert ladder.cheapest.macs == min(entry.macs for entry in offered)
        return
    chosen = ladder.choose(budget)
    best = max(score(entry) for entry in fitting)
    assert score(chosen) == best
    assert chosen.macs == min(entry.macs for entry in fitting if score(entry) == best)


@pytest.mark.parametrize("budget", [0, -1, float("nan"), "8", None, [1], True, 1j])
def test_budgets_that_are_no_numbers(budget):
    _, ladder = ladder_of([(1, 0.5, True)])
    with pytest.raises(BudgetError, match="macs= is a number above 0"):
        ladder.choose(budget)


@given(st.floats(1e-9, 1e12))
def test_the_shown_cost_can_be_given_back(cost):
    assert cost <= float(shown(cost)) <= cost * 1.002
