import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling import BudgetError
from nestling.entry import Entry, score
from nestling.runtime.choice import Ladder, choose_within, shown

ENTRIES = st.lists(
    st.tuples(st.integers(1, 50), st.none() | st.floats(-1, 1), st.booleans()), min_size=1
)


def ladder_of(rows):
    entries = [
        Entry(str(number), {}, macs, 1, 1, accuracy, offered)
        for number, (macs, accuracy, offered) in enumerate(rows)
    ]
    return entries, Ladder.of("macs", entries, {entry.name: entry.macs for entry in entries})


def worth(entry):
    """An entry that is not offered is worth less than any that is."""
    return entry.offered, score(entry)


@given(ENTRIES.filter(lambda rows: len({row[1] is None for row in rows}) == 1), st.integers(1, 60))
def test_the_choice_is_that_of_exhaustion(rows, budget):
    entries, ladder = ladder_of(rows)
    fitting = [entry for entry in entries if entry.macs <= budget]
    if not fitting:
        least = min(entry.macs for entry in entries)
        with pytest.raises(BudgetError, match=f"which needs macs={least}; allow") as caught:
            ladder.choose(budget)
        closest = [entry for entry in entries if f"closest is '{entry.name}'" in str(caught.value)]
        assert [entry.macs for entry in closest] == [least]
        return
    chosen = ladder.choose(budget)
    best = max(map(worth, fitting))
    assert worth(chosen) == best
    assert chosen.macs == min(entry.macs for entry in fitting if worth(entry) == best)


@given(ENTRIES.filter(lambda rows: len({row[1] is None for row in rows}) == 1), st.data())
def test_the_choice_within_several_budgets_is_that_of_exhaustion(rows, data):
    entries, macs = ladder_of(rows)
    some = entries[: data.draw(st.integers(1, len(entries)))]
    prices = {entry.name: data.draw(st.integers(1, 9)) for entry in some}
    params = Ladder.of("params", some, prices)
    limits = [(macs, data.draw(st.integers(1, 60))), (params, data.draw(st.integers(1, 10)))]
    fitting = [
        entry for entry in some if entry.macs <= limits[0][1] and prices[entry.name] <= limits[1][1]
    ]
    if not fitting:
        with pytest.raises(BudgetError, match=r"the closest is .* allow at least that"):
            choose_within(limits)
        return
    chosen = choose_within(limits)
    assert chosen in fitting
    assert worth(chosen) == max(map(worth, fitting))


@pytest.mark.parametrize("budget", [0, -1, float("nan"), "8", None, [1], True, 1j])
def test_budgets_that_are_no_numbers(budget):
    _, ladder = ladder_of([(1, 0.5, True)])
    with pytest.raises(BudgetError, match="macs= is a number above 0"):
        ladder.choose(budget)


@given(st.floats(1e-9, 1e12))
def test_the_shown_cost_can_be_given_back(cost):
    assert cost <= float(shown(cost)) <= cost * 1.002
