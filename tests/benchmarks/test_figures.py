"""Figures: choices at budgets, gains over seeds, the summary."""

import random
import statistics

import pytest
from comparison import figures
from comparison.cases import BASELINE, OURS, Case, Shape
from comparison.figures import Comparison, summary
from comparison.protocols import BUDGETS
from made_results import KEYS, compared, made, rows_at

# -- choices -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", figures.COSTS)
@pytest.mark.parametrize("kind", ["held out", "size", "uniform"])
def test_choices_at_budgets_are_those_of_brute_force(cost, kind):
    draw = random.Random(f"{cost} {kind}")
    for _ in range(50):
        rows = [
            (draw.randint(1, 1000), draw.randint(1, 100), draw.random(), draw.random())
            for _ in range(12)
        ]
        if kind == "size":
            rows = [(macs, params, None, test) for macs, params, _, test in rows]
        method = "uniform" if kind == "uniform" else "progressive"
        times = {row[:2]: draw.random() for row in rows}
        found = Comparison([made("x", rows=rows, method=method)], times)
        for budget in BUDGETS:
            best = None
            for row in rows:
                share = {"macs": row[0] / 1000, "params": row[1] / 100, "latency": times[row[:2]]}
                worth = {"held out": row[2], "size": row[:2], "uniform": row[3]}[kind]
                if share[cost] <= budget and (best is None or worth > best[0]):
                    best = worth, row
            row = found.at("x", 0, budget, cost)
            assert (row and row.counts) == (best and best[1][:2])


def test_the_full_net_is_none_of_the_smaller_ones():
    found = Comparison([made("x", rows=[(1000, 100, 0.5, 0.5), (900, 90, 0.9, 0.9)])])
    assert found.at("x", 0, 1.0).test == 0.5
    assert Comparison([made("x", rows=[(900, 90, 0.9, 0.9)])]).at("x", 0, 1.0) is None


def test_without_the_latency_of_all_there_is_no_choice():
    rows = [(1000, 100, 0.5, 0.5), (500, 50, 0.4, 0.4)]
    found = Comparison([made("x", rows=rows)], {(1000, 100): 1.0})
    assert found.at("x", 0, 0.75, "latency") is None
    assert found.accuracy("x", 0.75, "latency") is None
    assert found.accuracy("x", 0.75).mean == 0.4


# -- figures -----------------------------------------------------------------------------------


def test_gains_are_paired_by_seed_with_the_interval_of_student():
    found = Comparison(compared()).gain(OURS, BASELINE)
    by_seed = [1.25, 2.5, 7.5]  # points, mean over the four budgets
    assert found.mean == pytest.approx(3.75)
    assert found.std == pytest.approx(statistics.stdev(by_seed))
    margin = 4.302653 * statistics.stdev(by_seed) / 3**0.5  # t of 2 degrees of freedom, 97.5 %
    assert found.low == pytest.approx(3.75 - margin)
    assert found.high == pytest.approx(3.75 + margin)
    assert found.seeds == 3


def test_the_summary_has_the_figures():
    line = summary(Comparison(compared()))
    assert list(line) == KEYS
    assert line == {
        "protocol": "short",
        "net": "resnet20",
        "data": "cifar10",
        "seeds": 3,
        "mean_gain_over_us": 3.75,
        "max_gain_over_us": 6.0,
        "worst_against_individual": -0.75,
        "full_against_plain": 0.5,
        "search_share": 0.1,
        "rank_share": 0.31,
        "mean_gain_at_equal_compute": 2.75,
    }


@pytest.mark.parametrize("stage", ["ranking", "l1 ranking", "lasso ranking"])
def test_shares_are_of_the_joint_training_and_have_nothing_of_the_compiler(stage):
    spent = {stage: 50.0, "search": 20.0, "joint": 200.0, "other": 3.0, "compiling": 500.0}
    result = made(OURS, seconds=spent)
    found = Comparison([result]).spent()
    assert (found["rank"].mean, found["search"].mean) == (0.25, 0.1)
    assert result.spent == 273


def test_figures_of_held_out_pictures_choose_by_them_whatever_the_method():
    rows = [(700, 70, 0.8, 0.1), (600, 60, 0.5, 0.9)]
    found = Comparison([made("a", rows=rows, method="uniform"), made("b", rows=rows)])
    assert found.at("a", 0, 0.75).test == 0.9
    assert found.at("a", 0, 0.75, on=figures.HELD_OUT).held_out == 0.8
    assert found.gain("b", "a", [0.75]).mean == pytest.approx(-80)
    assert found.gain("b", "a", [0.75], on=figures.HELD_OUT).mean == 0
    unknown = Comparison([made(n, rows=[(700, 70, None, 0.1)]) for n in "ab"])
    assert unknown.gain("b", "a", [0.75], on=figures.HELD_OUT) is None
    assert unknown.gain("b", "a", [0.75]).mean == 0


def test_what_is_not_kept_is_no_figure():
    line = summary(Comparison([made(OURS, rows=rows_at(0.9, 0.8, 0.7, 0.6, 0.5))]))
    assert line["seeds"] == 0
    assert {line[key] for key in KEYS[4:8]} == {None}
    partly = [each for each in compared() if each.case.label != "alone progressive 15"]
    assert summary(Comparison(partly))["worst_against_individual"] is None
    lost = [made(OURS, rows=rows_at(0.9, 0.8, 0.7, 0.6, 0.5), seconds_complete=False)]
    assert summary(Comparison(lost))["search_share"] is None


def test_a_shape_that_is_no_longer_chosen_is_no_comparison():
    group = [each for each in compared() if each.case.seed == 0]
    assert Comparison(group).against_alone(OURS, 0.5).mean == pytest.approx(-0.5)
    other = [(501, 50, None, 0.7)]
    case = Case("alone progressive 50", "individual", shapes=(Shape(OURS, 0.5),))
    group = [each for each in group if each.case.label != case.label]
    assert (
        Comparison([*group, made(case.label, rows=other, case=case)]).against_alone(OURS, 0.5)
        is None
    )
