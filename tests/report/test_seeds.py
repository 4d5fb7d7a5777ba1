"""Figures over seeds, against SciPy and the standard library."""

import itertools
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nestling.errors import NestlingError
from nestling.report import Result, at_budget, best_within, curve, summarize
from nestling.report.seeds import budgets_of, student

SHARES = st.floats(0, 1, allow_nan=False)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 30, 101])
@pytest.mark.parametrize("share", [0.5, 0.95, 0.99])
def test_students_distribution(freedom, share):
    assert student(freedom, share) == pytest.approx(stats.t.ppf(0.5 + share / 2, freedom))


@given(st.lists(SHARES, min_size=2, max_size=6))
def test_a_summary_equals_scipys(values):
    found = summarize(values)
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert found.std == pytest.approx(statistics.stdev(values))
    error = stats.sem(values)
    if error > 1e-12:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=found.mean, scale=error)
        assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.seeds == len(values)


def test_one_seed_has_no_spread():
    assert summarize([0.5]) == (0.5, None, None, None, 1)
    for wrong in ([], [0.5, float("nan")]):
        with pytest.raises(NestlingError, match="at least one value"):
            summarize(wrong)


def made(*seeds):
    return [Result("a", n, cost, acc) for n, run in enumerate(seeds) for cost, acc in run]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=8), st.integers(0, 10))
def test_the_best_within_a_budget_is_found_by_looking_at_all(rows, budget):
    results = made([(cost, score / 10) for cost, score in rows])
    found = best_within(results, budget)
    within = [each for each in results if each.cost <= budget]
    if not within:
        assert found is None
        return
    assert found.cost <= budget
    assert all(found.accuracy >= each.accuracy for each in within)
    assert all(found.cost <= e.cost for e in within if e.accuracy == found.accuracy)


def test_at_a_budget_every_seed_counts_or_none():
    results = made([(10, 0.9), (5, 0.8)], [(11, 0.95), (6, 0.7)])
    assert at_budget(results, 10).mean == pytest.approx((0.9 + 0.7) / 2)
    assert at_budget(results, 11).mean == pytest.approx((0.9 + 0.95) / 2)
    assert at_budget(results, 5) is None  # the second seed has nothing so cheap
    assert at_budget([], 5) is None


def test_a_dearer_net_that_is_worse_is_not_taken():
    assert at_budget(made([(10, 0.6), (5, 0.8)]), 10).mean == 0.8


def test_entries_are_matched_where_seeds_have_as_many():
    results = made([(100, 0.9), (52, 0.8), (20, 0.7)], [(100, 0.92), (48, 0.7), (23, 0.5)])
    assert [cost for cost, _ in curve(results)] == [23, 52, 100]
    assert curve(results)[1][1].mean == pytest.approx((0.8 + 0.7) / 2)
    assert [cost for cost, _ in curve(results, [50, 10, 100])] == [50, 100]


def test_close_entries_are_matched_where_seeds_have_different_numbers():
    results = made(
        [(100, 0.9), (51, 0.8), (20, 0.7)], [(100, 0.9), (50, 0.8), (30, 0.7), (20, 0.6)]
    )
    assert budgets_of(results) == [20, 30, 51, 100]


def test_a_curve_never_falls():
    random.seed(0)
    runs = [[(random.random(), random.random()) for _ in range(5 + n % 2)] for n in range(4)]
    means = [summary.mean for _, summary in curve(made(*runs))]
    assert len(means) > 2
    assert all(one <= other for one, other in itertools.pairwise(means))
