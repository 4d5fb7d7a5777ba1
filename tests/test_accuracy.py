"""The comparison of methods: its cases, trials, kept results, choices, figures and tables."""

import importlib.util
import json
import os
import random
import shutil
import signal
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import nestling
from nestling.errors import FileError, ModelError
from nestling.interruption import Interrupted

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks"
sys.path.append(str(FOLDER))

from comparison import (  # noqa: E402
    figures,
    latencies,
    pictures,
    protocols,
    results,
    steps,
    tables,
    trial,
)
from comparison.cases import (  # noqa: E402
    BASELINE,
    BUNDLE,
    LONG,
    OURS,
    PLAIN,
    UNIFORM_SHAPE,
    Case,
    Shape,
    alone_label,
    cases,
    chosen,
    parse_part,
)
from comparison.figures import Comparison, summary  # noqa: E402
from comparison.protocols import BUDGETS, Protocol, batches, material, protocol, supernet  # noqa: E402

KEYS = [
    *("protocol", "net", "data", "seeds", "mean_gain_over_us", "max_gain_over_us"),
    *("worst_against_individual", "full_against_plain", "search_share", "rank_share"),
    "mean_gain_at_equal_compute",
]
TINY = Protocol(
    *("tiny", "digits", "small"),
    epochs=2,
    lr=0.1,
    batch=50,
    seeds=(0, 1),
    pictures=200,
    held_out=100,
)
TWO = {"fractions": [1.0, 0.75, 0.5, 0.3], "search_options": {"groups": 4}}


def small(num_classes, in_channels, width=8):
    """Two convolutions, whose widths are free."""
    return nn.Sequential(
        *(nn.Conv2d(in_channels, width, 3, stride=2, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)),
    )


@pytest.fixture(scope="module", autouse=True)
def small_net():
    """A net of the comparison that trains in no time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(protocols.NETS, "small", protocols.Net("small", step=2))
        patch.setattr(nestling.models, "small", small, raising=False)
        yield


@pytest.fixture(scope="module")
def accuracy():
    """The script, under another name than the metric."""
    spec = importlib.util.spec_from_file_location("accuracy_benchmark", FOLDER / "accuracy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def given():
    return material(TINY)


def made(label, seed=0, method="progressive", rows=(), seconds=None, **more):
    """A result without a training: rows are (macs, params, held_out, test) of 1000 and 100."""
    case = more.pop("case", Case(label, method, {}, seed))
    content = {
        "protocol": replace(protocol("short"), **more.pop("protocol", {})).settings(),
        "case": json.loads(json.dumps(results.asdict(case))),
        "machine": {"processor": "some", "torch": "2"},
        "commit": "abc",
        "format": results.FORMAT,
        "axes": ["a", "b"],
        "full": {"macs": 1000, "params": 100},
        "shape": [1, 8, 8],
        "classes": 10,
        "epochs": 10,
        "equal_to": {},
        "trained_in": "float32",
        "seconds": seconds or {"joint": 100.0},
        "seconds_complete": True,
        "subnets": [
            {"name": f"m{n}", "counts": [macs, params], "macs": macs, "params": params}
            | {"held_out": held_out, "test": test}
            for n, (macs, params, held_out, test) in enumerate(rows)
        ],
    }
    return results.Result({**content, **more})


def run(case, given, folder, of=TINY, every=()):
    """Train a case, and keep its result in a folder."""
    known = {(each.label, each.seed): each for each in (*every, case)}
    needed = trial.Needed(of, case, known, folder / "kept")
    content = trial.run(of, case, given, needed, folder / "work")
    results.write(results.place(of, case, folder / "kept"), content)
    return content


# -- cases -------------------------------------------------------------------------------------


def test_cases_have_names_of_their_own_and_stand_after_those_that_they_need():
    every = cases(protocol("full", seeds=(0, 1)))
    assert len({case.name for case in every}) == len(every)
    for number, case in enumerate(every):
        before = {other.label for other in every[:number] if other.seed == case.seed}
        assert set(case.needs) <= before, case.label
    labels = {case.label for case in every}
    assert {PLAIN, BASELINE, LONG, BUNDLE, OURS, "norms", "slimmable"} <= labels
    groups = {case.group for case in every}
    assert {"ranker", "noise", "groups", "threshold", "distillation", "shortcuts"} <= groups
    assert {"re-selection", "start", "norms", "draws", "search", "steps", "paper", "main"} <= groups


def test_options_of_all_cases_exist():
    from nestling import catalogue, methods, rankers, search

    for case in cases(protocol("short", seeds=(0,))):
        methods.check_options(case.method, methods.find(case.method), case.options)
        if case.method == "progressive":
            by = search.find(case.options.get("search", "progressive"))
            assert set(case.options.get("search_options", {})) <= set(catalogue.options(by))
            ranker = rankers.find(case.options.get("rank_by", "noise"))
            assert set(case.options.get("rank_options", {})) <= set(catalogue.options(ranker))


@pytest.mark.parametrize("count", [1, 2, 7, 400])
def test_parts_have_every_case_once(count):
    every = cases(protocol("short"))
    wanted = chosen(every, only=["*"])
    parts = [chosen(every, only=["*"], part=(i + 1, count)) for i in range(count)]
    assert sorted(case.name for part in parts for case in part) == sorted(c.name for c in every)
    assert len(wanted) == len(every)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_cases_are_chosen_by_label_and_pattern():
    every = cases(protocol("short", seeds=(0,)))
    assert {case.group for case in chosen(every)} == {"main"}
    assert [case.label for case in chosen(every, only=[OURS])] == [OURS]
    alone = [case.label for case in chosen(every, only=["alone uniform*"])]
    assert alone == ["alone uniform 75", "alone uniform 50", "alone uniform 25", "alone uniform 15"]
    with pytest.raises(ModelError, match="no case is called 'progresive'; did you mean"):
        chosen(every, only=["progresive"])


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_a_part_that_is_none_is_refused(text):
    with pytest.raises(ModelError, match="--part is i/n"):
        parse_part(text)


# -- the data ----------------------------------------------------------------------------------


def test_pictures_are_the_same_for_all_and_parts_do_not_overlap(given):
    again = material(TINY)
    assert torch.equal(given.learn.images, again.learn.images)
    assert torch.equal(given.held_out.images, again.held_out.images)
    parts = given.learn, given.held_out, given.data.test
    assert [len(part.labels) for part in parts] == [200, 100, 360]
    together = torch.cat([part.images for part in parts]).flatten(1)
    every = torch.cat([given.data.train.images, given.data.test.images]).flatten(1)
    twice = len(every) - len(every.unique(dim=0))  # pictures that the data set has more than once
    assert len(together) - len(together.unique(dim=0)) <= twice == 0
    assert given.final is given.learn
    whole = material(replace(TINY, all_pictures=True, pictures=None))
    assert len(whole.final.labels) == 1437
    assert len(whole.learn.labels) == 1337


def test_all_methods_start_with_the_same_weights_and_see_the_same_batches(given):
    one, other = (supernet(TINY, (1, 8, 8), 10, seed) for seed in (3, 3))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    different = supernet(TINY, (1, 8, 8), 10, 4)
    assert not torch.equal(next(one.parameters()), next(different.parameters()))
    first, second = (next(iter(batches(TINY, given, given.learn, 3))) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert len(batches(TINY, given, given.learn, 3)) == 4


def test_optimisers_decay_what_the_default_one_decays():
    from comparison.protocols import optimizer

    from nestling.optimizers import default_optimizer

    model = nestling.models.mobilenet_v1(10, 0.25, stem_stride=1)
    ours = optimizer(replace(TINY, lr=0.03))(model.parameters())
    usual = default_optimizer(model)
    for mine, theirs in zip(ours.param_groups, usual.param_groups, strict=True):
        assert [id(p) for p in mine["params"]] == [id(p) for p in theirs["params"]]
        assert mine["weight_decay"] == theirs["weight_decay"]
        assert mine["lr"] == 0.03
        assert mine["nesterov"]
    assert ours.defaults["lr"] == 0.03


# -- trials ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(given, tmp_path_factory):
    """Some cases of a tiny protocol, trained one after the other."""
    folder = tmp_path_factory.mktemp("trained")
    every = [
        Case(PLAIN, "individual", shapes=(Shape(UNIFORM_SHAPE, 1.0),)),
        Case(BASELINE, "uniform", {"fractions": [1.0, 0.3]}),
        Case(OURS, "progressive", TWO),
        Case("alone progressive 50", "individual", shapes=(Shape(OURS, 0.5),)),
        Case(LONG, "uniform", {"fractions": [1.0, 0.3]}, equals=(BASELINE,)),
    ]
    for case in every:
        run(case, given, folder, every=every)
    return folder, every


def test_a_comparison_from_end_to_end(trained):
    folder, every = trained
    (group,) = results.groups(folder / "kept").values()
    found = Comparison(group)
    assert set(found.labels) == {case.label for case in every}
    line = summary(found)
    assert list(line) == KEYS
    assert line["seeds"] == 1
    assert line["full_against_plain"] is not None
    assert line["search_share"] > 0
    assert line["rank_share"] > 0
    row = found.at(OURS, 0, 0.5)
    (alone,) = found["alone progressive 50", 0].rows
    assert alone.counts == row.counts
    assert found.against_alone(OURS, 0.5).mean == pytest.approx(100 * (row.test - alone.test))


def test_the_baseline_has_every_width_that_it_was_trained_for(trained):
    folder, every = trained
    found = results.find(TINY, every[1], folder / "kept")
    net = supernet(TINY, (1, 8, 8), 10)
    least = net.space.macs(nestling.search.ladder(net.space, [0.3])[0])
    wanted = {tuple(spec.values()) for spec in net.space.uniform if net.space.macs(spec) >= least}
    assert {row.counts for row in found.rows} == wanted
    assert len(wanted) > 2


def test_equal_compute_is_that_of_ranking_search_and_joint_training(trained):
    folder, every = trained
    ours, base, long = (results.find(TINY, every[n], folder / "kept") for n in (2, 1, 4))
    assert {"noise ranking", "search", "joint"} <= set(ours.seconds)
    epochs = TINY.epochs * sum(ours.seconds.values()) / sum(base.seconds.values())
    assert long.epochs == max(1, round(epochs))
    assert base.epochs == TINY.epochs


def test_other_machines_and_lost_seconds_make_no_equal_compute():
    one = made(OURS)
    with pytest.raises(ModelError, match="seconds on one machine"):
        trial._check_machine([one, made(BASELINE, machine={"processor": "other", "torch": "2"})])
    with pytest.raises(ModelError, match="a killed process took some of uniform-seed0"):
        trial._check_machine([one, made(BASELINE, seconds_complete=False)])


def counting(count, stop_at=0):
    """Return what makes optimisers that count their steps; one of them comes with a signal."""

    def of_protocol(of):
        def make(parameters):
            optimizer = protocols.optimizer(of)(parameters)
            plain = optimizer.step

            def step():
                count.append(None)
                if len(count) == stop_at:
                    os.kill(os.getpid(), signal.SIGTERM)
                return plain()

            optimizer.step = step
            return optimizer

        return make

    return of_protocol


@pytest.fixture(scope="module")
def unbroken(given, trained, tmp_path_factory):
    """How many steps "progressive" makes."""
    count = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "optimizer", counting(count))
        run(trained[1][2], given, tmp_path_factory.mktemp("unbroken"))
    return len(count)


@pytest.mark.parametrize(("step", "scores"), [(2, 0), (11, 0), (0, 3)])
def test_a_trial_that_was_stopped_goes_on_as_if_it_had_not(
    given, tmp_path, trained, unbroken, monkeypatch, step, scores
):
    """Stopped in a step of ranking, of joint training, and while it scores."""
    folder, every = trained
    case = every[2]
    whole = results.find(TINY, case, folder / "kept")
    count, evaluated = [], []

    def evaluate(module, data, plain=nestling.evaluate):
        evaluated.append(None)
        if len(evaluated) == scores:
            raise Interrupted("stopped while scoring")
        return plain(module, data)

    monkeypatch.setattr(trial, "optimizer", counting(count, step))
    monkeypatch.setattr(nestling, "evaluate", evaluate)
    with trial.stopping_after(None), pytest.raises(Interrupted):
        run(case, given, tmp_path)
    assert len(count) == unbroken if scores else 0 < len(count) < unbroken
    assert not results.place(TINY, case, tmp_path / "kept").exists()
    content = run(case, given, tmp_path)
    assert content["subnets"] == whole.content["subnets"]
    assert len(count) == unbroken  # nothing was trained twice
    assert len(evaluated) == 2 * len(content["subnets"]) + (scores > 0)  # one was cut short
    assert content["seconds_complete"]
    assert set(content["seconds"]) == set(whole.seconds)


def test_a_kill_is_told_from_a_stop(given, tmp_path):
    case = Case(PLAIN, "individual", shapes=(Shape(UNIFORM_SHAPE, 1.0),))
    work = tmp_path / "work" / TINY.folder / case.name
    work.mkdir(parents=True)
    killed = {"seconds": {"full": 5.0}, "lost": False, "open": True}
    (work / "seconds.json").write_text(json.dumps(killed))
    content = run(case, given, tmp_path)
    assert not content["seconds_complete"]
    assert content["seconds"]["full"] >= 5


def test_a_work_folder_of_other_settings_is_refused(given, tmp_path):
    case = Case(PLAIN, "individual", shapes=(Shape(UNIFORM_SHAPE, 1.0),))
    run(case, given, tmp_path)
    with pytest.raises(FileError, match=r"holds a training with .*lr=0.1 \(now 0.2\)"):
        run(case, given, tmp_path, replace(TINY, lr=0.2))


def test_the_time_that_is_up_stops_what_runs():
    with pytest.raises(Interrupted, match="the same command goes on"), trial.stopping_after(1e-4):
        signal.pause()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_test_pictures_are_read_when_training_is_done(given, tmp_path, monkeypatch):
    order = []
    scored, trained = trial.scored, trial._trained

    def reading(of, part):
        order.append("test" if part is None else "held out")
        return scored(of, part)

    def training(*args):
        modules = trained(*args)
        order.append("trained")
        return modules

    monkeypatch.setattr(trial, "scored", reading)
    monkeypatch.setattr(trial, "_trained", training)
    run(Case(OURS, "progressive", {**TWO, "rank_by": None}), given, tmp_path)
    assert order.index("trained") < order.index("test")
    assert order.count("trained") == 1
    assert order[0] == "held out"


def test_with_all_pictures_the_list_trains_on_what_the_search_was_held_out(
    given, tmp_path, monkeypatch
):
    of = replace(TINY, all_pictures=True)
    whole = given._replace(final=nestling.data.Part(*(p[:250] for p in given.data.train)))
    seen = []
    plain = trial.batches
    monkeypatch.setattr(trial, "batches", lambda *a: seen.append(len(a[2].labels)) or plain(*a))
    content = run(Case(OURS, "progressive", {**TWO, "rank_by": None}), whole, tmp_path, of)
    assert seen == [250, 200, 250]  # the list, then ranking and search, then recalibration
    assert all(row["held_out"] is None for row in content["subnets"])


# -- kept results ------------------------------------------------------------------------------


def test_results_of_two_machines_merge_by_copying(tmp_path):
    one, two = tmp_path / "one" / "x", tmp_path / "two" / "x"
    for folder, seed in ((one, 0), (two, 1)):
        result = made(OURS, seed, rows=[(1000, 100, 0.9, 0.8)])
        results.write(folder / f"{result.case.name}.json", result.content)
    shutil.copytree(two, one, dirs_exist_ok=True)
    (group,) = results.groups(tmp_path / "one").values()
    assert Comparison(group).seeds(OURS) == [0, 1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"protocol": {"epochs": 20}}, r"epochs=10 \(now 20\)"),
        ({"protocol": {"lr": 0.2}}, r"lr=0.1 \(now 0.2\)"),
        ({"trained_in": "bfloat16"}, r"trained in='float32' \(now 'bfloat16'\)"),
    ],
)
def test_results_of_different_settings_are_not_read_together(tmp_path, more, message):
    for result in (made(OURS, 0), made(OURS, 1, **more)):
        results.write(tmp_path / "x" / f"{result.case.name}.json", result.content)
    with pytest.raises(FileError, match=message):
        results.groups(tmp_path)


def test_equal_compute_with_what_was_trained_again_is_refused(tmp_path):
    ours = made(OURS)
    long = made(LONG, method="uniform", equal_to={OURS: results.digest([ours])})
    keep(tmp_path, [ours, long])
    assert len(results.groups(tmp_path)) == 1
    keep(tmp_path, [made(OURS, seconds={"joint": 101.0})])
    with pytest.raises(FileError, match="an earlier progressive-seed0, which was trained again"):
        results.groups(tmp_path)


def test_a_kept_result_of_another_protocol_or_case_is_refused(tmp_path):
    of, case = protocol("short"), Case(OURS, "progressive")
    result = made(OURS)
    results.write(results.place(of, case, tmp_path), result.content)
    assert results.find(of, case, tmp_path).content == result.content
    with pytest.raises(FileError, match=r"batch=128 \(now 64\)"):
        results.find(replace(of, batch=64), case, tmp_path)
    with pytest.raises(FileError, match=r"options=\{\} \(now \{'draw': 1\}\)"):
        results.find(of, replace(case, options={"draw": 1}), tmp_path)
    assert results.find(of, replace(case, seed=5), tmp_path) is None


def test_a_damaged_result_is_one_clear_error(tmp_path):
    path = tmp_path / "x" / "progressive-seed0.json"
    path.parent.mkdir()
    path.write_text('{"format": 1')
    with pytest.raises(FileError, match="train the case again"):
        results.groups(tmp_path)
    path.write_text("{}")
    with pytest.raises(FileError, match="no result of this benchmark"):
        results.groups(tmp_path)


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


def rows_at(*tests):
    """The full net and one subnet at each budget, with these accuracies."""
    return [
        (round(1000 * share), round(100 * share), test, test)
        for share, test in zip((1.0, *BUDGETS), tests, strict=True)
    ]


def compared():
    """Three seeds of ours and the baseline, one of the nets alone."""
    made_ = []
    for seed, lead in enumerate((0.01, 0.02, 0.06)):
        base = [0.9, 0.8, 0.7, 0.6, 0.5]
        ours = [0.9, 0.8 + lead, 0.7 + lead, 0.6 + lead, 0.5 + 2 * lead]
        spent = {"noise ranking": 30.0 + seed, "search": 10.0, "joint": 100.0, "other": 1.0}
        made_.append(made(BASELINE, seed, "uniform", rows_at(*base)))
        made_.append(made(LONG, seed, "uniform", rows_at(*(value + 0.01 for value in base))))
        made_.append(made(OURS, seed, rows=rows_at(*ours), seconds=spent))
        made_.append(made(PLAIN, seed, "individual", [(1000, 100, 0.9, 0.895)]))
        for share, value in zip(BUDGETS, ours[1:], strict=True):
            shape = Shape(OURS, share)
            alone = [(round(1000 * share), round(100 * share), None, value + share / 100)]
            case = Case(alone_label(shape), "individual", {}, seed, shapes=(shape,))
            made_.append(made(case.label, seed, rows=alone, case=case))
    return made_


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


# -- what is shown -----------------------------------------------------------------------------


def keep(folder, group):
    for result in group:
        name = Protocol.of(result.settings).folder
        results.write(folder / name / f"{result.case.name}.json", result.content)


def test_the_tables_have_the_figures(tmp_path):
    variant = Case(f"{OURS}, 4 groups", "progressive", {}, 0, "groups")
    row = made(variant.label, rows=rows_at(0.9, 0.8, 0.7, 0.6, 0.5), case=variant)
    keep(tmp_path, [*compared(), row])
    text = tables.page(tmp_path)
    assert "## ResNet-20 on CIFAR-10, short protocol" in text
    assert "| plain | 89.50 ± 0.00 |" in text
    assert "| uniform | +3.75 (-4.47 to +11.97) | +0.00" in text
    assert "| progressive | 31.0% | 10.0% | 100 s |" in text
    assert "| groups | progressive, 4 groups | 90.00 | 80.00 |" in text
    assert "| progressive | -1.25 |" in text  # the variant's lead over the default, of seed 0
    assert "-0.75 (-0.75 to -0.75)" in text  # against the same shape alone
    assert "latency" not in text
    for table in text.split("\n\n"):
        bars = {line.count("|") for line in table.splitlines() if line.startswith("|")}
        assert len(bars) <= 1
    assert tables.page(tmp_path / "none") == "No result is kept yet."


def test_the_page_and_its_pictures_are_those_of_the_kept_results(tmp_path, accuracy):
    assert "<!-- table accuracy -->" in (ROOT / "docs" / "accuracy.md").read_text()
    assert pictures.stale(results.KEPT, accuracy.PICTURES) == []
    keep(tmp_path, compared())
    assert pictures.stale(tmp_path, tmp_path) == ["short-cifar10-resnet20"]


def test_pictures_are_drawn_and_known_as_fresh(trained, tmp_path):
    folder, every = trained
    kept = tmp_path / "kept"
    shutil.copytree(folder / "kept", kept)
    trial.keep_search_log(TINY, every[2], folder / "work", kept)
    drawn = pictures.draw(kept, tmp_path / "pictures")
    kinds = [path.stem.rpartition("-")[2] for path in drawn]
    assert kinds == ["methods", "subnets", "search"]
    assert all(path.stat().st_size > 10_000 for path in drawn)
    assert pictures.stale(kept, tmp_path / "pictures") == []
    path = results.place(TINY, every[0], kept)
    path.write_text(path.read_text().replace('"test": 0', '"test": 1'))
    assert pictures.stale(kept, tmp_path / "pictures") == [TINY.folder]
    text = tables.page(kept, tmp_path / "pictures")
    assert f"![{TINY.folder}-search](pictures/{TINY.folder}-search.png)" in text


def test_latencies_are_ratios_to_the_full_net_and_complete(trained, tmp_path):
    folder, _ = trained
    (group,) = results.groups(folder / "kept").values()
    content = latencies.measure(replace(TINY, latency_batch=2), group, seconds=0.001)
    latencies.write(tmp_path, content)
    ratios, where = latencies.read(tmp_path)
    assert {row.counts for each in group for row in each.rows} <= set(ratios)
    full = max(ratios, key=lambda counts: sum(counts))
    assert ratios[full] == 1
    assert all(value > 0 for value in ratios.values())
    assert where["batch"] == 2
    found = Comparison(group, {counts: sum(counts) / sum(full) for counts in ratios})
    row = found.at(BASELINE, 0, 0.75, "latency")
    assert sum(row.counts) <= 0.75 * sum(full)
    assert latencies.read(tmp_path / "none") == ({}, {})


def test_a_joint_step_is_measured_against_its_passes(trained, tmp_path):
    folder, _ = trained
    (group,) = results.groups(folder / "kept").values()
    content = steps.measure(TINY, (1, 8, 8), 10, Comparison(group), 0.05)
    (row,) = content["rows"]
    assert 0.5 < row["value"] < 3
    assert row["low"] <= row["value"] <= row["high"]
    steps.write(tmp_path, content)
    assert f"| {row['what']} | {row['value']:.3f}" in steps.table(tmp_path)


def test_graphs_of_a_compiled_training_are_counted_by_epoch(monkeypatch, tmp_path):
    monkeypatch.setattr(steps, "compiling", lambda of: {"compile": "eager"})
    net = supernet(TINY, (1, 8, 8), 10)
    specs = [net.space.full, net.space.spec(fraction=0.3)]
    batch = torch.randn(8, 1, 8, 8), torch.randint(10, (8,))
    found = steps.graphs(replace(TINY, compiled=True), net, specs, batch)
    assert found == [2, 0, 0]


# -- the command -------------------------------------------------------------------------------


def test_the_summary_is_a_line_of_json_for_each_net(accuracy, tmp_path, capsys):
    keep(tmp_path, compared())
    keep(tmp_path, [made(OURS, rows=rows_at(*[0.5] * 5), protocol={"net": "resnet18"})])
    assert accuracy.main(["--summary", "--results", str(tmp_path)]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["net"] for line in found] == ["resnet18", "resnet20"]
    assert all(list(line) == KEYS for line in found)
    assert found[1] == summary(Comparison(compared()))


def test_a_mistake_is_one_line_without_a_traceback(accuracy, capsys):
    for words, message in (
        (["--protocol", "shrot"], "unknown protocol 'shrot'; did you mean 'short'?"),
        (["--net", "resnet21"], "unknown net 'resnet21'"),
        (["--part", "5/4"], "--part is i/n"),
        (["--only", "nothing"], "no case is called 'nothing'"),
    ):
        assert accuracy.main(words) == 1
        assert message in capsys.readouterr().err


def test_cases_are_listed_with_their_states(accuracy, tmp_path, capsys):
    keep(tmp_path, [each for each in compared() if each.case.label == OURS])
    words = ["--list", "--results", str(tmp_path), "--seeds", "0"]
    of = protocol("short", seeds=(0,))
    ours = next(case for case in cases(of) if case.label == OURS)
    results.write(
        results.place(of, ours, tmp_path), made(OURS, case=ours, rows=rows_at(*[0.5] * 5)).content
    )
    assert accuracy.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    state = {line.split("'")[1]: line.rpartition("seed 0")[2].strip() for line in lines}
    assert state[OURS] == "kept"
    assert state[BASELINE] == "to do"
    assert state["alone progressive 50"] == "to do"
    assert state["alone norms 50"] == "waits for norms"
    assert state[LONG] == "waits for uniform"


@pytest.mark.parametrize(("name", "side"), [("imagenet", 224), ("tiny-imagenet", 64)])
def test_a_folder_of_pictures_goes_through_the_same_command(accuracy, tmp_path, capsys, name, side):
    image = pytest.importorskip("PIL.Image")
    draw = random.Random(0)
    for part, count in (("train", 6), ("val", 2)):
        for kind in ("n1", "n2"):
            place = tmp_path / "data" / part / kind
            place.mkdir(parents=True)
            for number in range(count):
                color = tuple(draw.randrange(256) for _ in range(3))
                image.new("RGB", (70, 64), color).save(place / f"{number}.JPEG")
    words = ["--protocol", "full", "--net", "small", "--data", name]
    words += ["--data-dir", str(tmp_path / "data"), "--device", "cpu", "--eager"]
    words += ["--epochs", "1", "--batch", "4", "--held-out", "2", "--seeds", "0"]
    words += ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "kept")]
    assert accuracy.main([*words, "--only", PLAIN, "alone progressive 50"]) == accuracy.UNFINISHED
    said = capsys.readouterr().out
    assert "alone-progressive-50-seed0 waits for progressive" in said
    (path,) = (tmp_path / "kept").glob("*/*.json")
    assert path.parent.name == f"full-{name}-small"
    content = json.loads(path.read_text())
    assert content["shape"] == [3, side, side]
    assert content["classes"] == 2
    assert content["subnets"][0]["held_out"] is None
    assert 0 <= content["subnets"][0]["test"] <= 1
    before = path.stat().st_mtime_ns
    assert accuracy.main([*words, "--only", PLAIN]) == 0  # kept: nothing to do
    assert path.stat().st_mtime_ns == before
