"""The serving benchmark: its figures, rivals and records; a short trial in real time."""

import itertools
import json

import pytest
import serving
import torch
from serving_parts import costs, menus, picture, results, rivals, tables, trial
from serving_parts.scenarios import LARGEST, SCENARIOS, Scenario
from serving_parts.trial import Sent, figures, held, timeline

import nestling
from nestling.energy import Meter
from nestling.governor import Forecast, Reading

NAMES = ("e0", "e1", "e2")
FORECAST = Forecast.of(
    {"e0": 0.7, "e1": 0.8, "e2": 0.9},
    {
        b: {n: ms * (1 + b) / 2 for n, ms in zip(NAMES, (1, 2, 4), strict=True)}
        for b in (1, 2, 4, 8)
    },
)


@pytest.fixture(scope="module")
def served():
    torch.manual_seed(0)
    net = nestling.Supernet(nestling.models.mlp(6, (32,), norm=False), torch.randn(1, 6))
    pictures = torch.randn(20, 6)
    specs = [net.space.spec(width=width) for width in (0.5, 0.25)]
    menu = nestling.make_menu(net, specs, [(pictures, torch.zeros(20, dtype=int))], measure=False)
    model = nestling.LoadedModel(menu, packed=True)
    for batch in (1, 4):
        model = model.measured(batch, seconds=0.02)
    accuracy = {entry.name: entry.accuracy for entry in menu}
    return menus.Served(model, list(pictures), torch.zeros(20, dtype=int), accuracy, {})


@pytest.mark.parametrize(
    ("queries", "late", "is_held"),
    [
        (459, 0, True),
        (458, 0, False),
        (2010, 10, True),
        (2010, 11, False),
        (0, 0, False),
        (5, 5, False),
    ],
)
def test_the_objective_is_held_by_loadgens_rule(queries, late, is_held):
    assert held(queries, late) == is_held


def test_figures_count_what_was_not_answered_as_late():
    sent = [Sent(k, 0.0, 5.0 + k, "e0" if k else "e2", k % 2 == 0) for k in range(8)]
    sent += [Sent(8, 0.0, None, "", False), Sent(9, 0.0, None, "", False)]
    found = figures(sent, 10.0, {"e0": 0.5, "e2": 0.9})
    assert (found["queries"], found["late"], found["answered"]) == (10, 4, 8)
    assert found["attained"] == pytest.approx(0.6)
    assert found["mean_accuracy"] == pytest.approx((7 * 0.5 + 0.9) / 8)
    assert found["right"] == 0.5
    assert found["p99_answered_ms"] == 12.0
    assert found["p99_ms"] is None  # two of ten were never answered
    assert figures(sent[:8], 10.0, {"e0": 0.5, "e2": 0.9})["p99_ms"] == 12.0


def test_the_timeline_counts_every_request_once():
    sent = [
        Sent(0, 0.0, 1.0, "a", True),
        Sent(1, 0.6, 99.0, "b", True),
        Sent(2, 9.0, None, "", False),
    ]
    found = timeline(sent, 10.0, 1.0, ["a", "b"])
    assert found == {
        "asked": [1, 0, 1, 1],
        "late": [0, 0, 1, 1],
        "by a": [1, 0, 0, 0],
        "by b": [0, 0, 1, 0],
    }


def test_between_is_every_fixed_net_but_the_ends():
    found = rivals.each_of(["governor", "between"], ["a", "b", "c", "d"])
    assert found == ["governor", "fixed-b", "fixed-c"]
    assert rivals.each_of(["between", "random"], ["a", "b"]) == ["random"]


def test_the_lead_is_over_the_best_fixed_net_that_attains_as_much():
    def row(attained, accuracy):
        return {"attained": attained, "mean_accuracy": accuracy}

    rows = {"governor": row(0.99, 0.6), "largest": row(0.5, 0.9), "smallest": row(1.0, 0.3)}
    assert tables.equal(rows) == "+30.00 (smallest)"
    rows |= {"fixed-m": row(0.99, 0.62), "fixed-n": row(0.98, 0.8), "random": row(1.0, 0.7)}
    assert tables.equal(rows) == "-2.00 (m)"
    assert tables.equal(rows | {"governor": row(1.01, 0.6)}) == "none attains as much"


@pytest.mark.parametrize("policy", rivals.each_of(rivals.POLICIES, NAMES))
def test_every_rival_answers_in_bounds(policy):
    steer = rivals.made(policy, 20.0)(FORECAST)
    seen = set()
    for number in range(200):
        choice = steer(Reading(number / 20, 1 + number % 9, number % 25, 2))
        assert 0 <= choice.rung <= 2
        assert 1 <= choice.batch <= 8
        assert choice.entry == NAMES[choice.rung]
        seen.add(choice.rung)
    expected = {"largest": {2}, "smallest": {0}, "fixed-e1": {1}, "random": {0, 1, 2}}
    assert seen == expected.get(policy, seen)


def test_slackfit_takes_the_fullest_bucket_below_the_slack():
    """Calls within 20 ms: e0 up to 4.5, e1 up to 9, e2 2 to 18; 4 buckets of 4.75 ms."""
    policy = nestling.governor.policy("latency", FORECAST, {"ms": 20.0})
    steer = rivals.slackfit(policy, buckets=4)

    def at(waited):
        choice = steer(Reading(0.0, 9, waited))
        return choice.entry, choice.batch

    assert at(0.0) == ("e2", 8)  # 18 ms
    assert at(5.0) == ("e1", 8)  # 15 left: 9 ms, in one bucket with e2 at batch 4, 10 ms
    assert at(10.5) == ("e1", 8)  # 9.5 left: 9 ms
    assert at(12.0) == ("e0", 8)  # 8 left: 4.5 ms
    assert at(19.9) == ("e0", 1)  # nothing fits: the fastest


def test_scenarios_are_shares_of_a_capacity():
    one = Scenario("x", "poisson", 0.5, LARGEST, 3.0)
    assert one.rate(FORECAST) == pytest.approx(0.5 * 8 / 18 * 1000)
    assert one.objective(FORECAST) == 12.0
    assert len({each.name for each in SCENARIOS}) == len(SCENARIOS)


def test_a_trial_is_kept_told_and_drawn(served, tmp_path, monkeypatch):
    monkeypatch.setenv("NESTLING_COMMIT", "abc")
    scenario = Scenario("short", "poisson", 0.01, LARGEST, 400.0)
    options = serving.parser().parse_args(["--note", "A note."])
    about = serving.described(served, options)
    counts = itertools.count(100, 5)
    made = {rivals.SMALLEST: Meter("made up", [lambda: next(counts)], 1.0, [0])}
    for policy in (rivals.OURS, rivals.LARGEST, rivals.SMALLEST, rivals.RELOAD):
        meter = made.get(policy)
        monkeypatch.setattr(trial, "find_meter", lambda device, meter=meter: meter)
        found = trial.run(scenario, policy, served, 0.3, seed=1)
        told = (5.0, "made up") if meter else (None, "not available here")
        assert (found["joules"], found["energy"]) == told
        assert found["queries"] == sum(found["timeline"]["asked"]) > 0
        serving.keep(tmp_path, f"short--{policy}", found, about)
    taken = {
        "governor_step_us": 5.0,
        "overhead": costs.overhead(served, 20),
        "memory": costs.memory_growth(served, 200),
    }
    results.write(tmp_path, results.COSTS, taken, about)
    *rows, last = results.summary(tmp_path)
    assert len(rows) == 4
    assert all(tuple(row) == results.FIELDS for row in rows)
    assert json.loads(json.dumps(rows)) == rows
    assert set(last) == {
        "engine_overhead_p99_ms", "governor_step_us", "memory_growth_mib",
        "quarter_macs_speedup_b1", "quarter_macs_speedup_b32", "auto_against_best_engine",
    }  # fmt: skip
    text = tables.page(tmp_path)
    for words in ("A note.", "| short, ", "governor", "against fixed nets", "µs", "commit abc"):
        assert words in text
    kept = {each["policy"]: each for each in results.read(tmp_path)}
    assert picture.draw(kept, tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_figures_of_the_backends_are_merged_where_there_are_some(tmp_path):
    assert results.summary(tmp_path, tmp_path)[-1]["quarter_macs_speedup_b1"] is None
    (tmp_path / "backends.py").write_text(
        "def kept():\n    return 3.5\n"
        "def summary(kept):\n    return {'quarter_macs_speedup_b1': kept, 'more': 1}\n"
    )
    last = results.summary(tmp_path, tmp_path)[-1]
    assert last["quarter_macs_speedup_b1"] == 3.5
    assert last["quarter_macs_speedup_b32"] is None
    assert "more" not in last


def test_nothing_kept_is_said(tmp_path):
    assert tables.page(tmp_path) == "No result is kept yet."


def test_loadgen_or_a_word_on_how_to_get_it(served):
    from serving_parts import loadgen

    try:
        import mlperf_loadgen  # noqa: F401
    except ImportError:
        with pytest.raises(nestling.ModelError, match="pip install mlcommons-loadgen"):
            loadgen.server(SCENARIOS[0], served, 5)
        return
    scenario = Scenario("short", "poisson", 0.01, LARGEST, 400.0)
    found = loadgen.server(scenario, served, 30)
    assert found["queries"] == 30
    assert found["p99_ms"] > 0
    assert loadgen.single_stream(scenario, served, 20)["queries"] == 20
