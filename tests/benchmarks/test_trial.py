"""Trials: from end to end, stopped and gone on with, and what they read when."""

import json
import os
import signal
from dataclasses import replace

import pytest
from comparison import protocols, results, tables, trial
from comparison.cases import BASELINE, LONG, OURS, PLAIN, UNIFORM_SHAPE, Case, Shape
from comparison.figures import Comparison, summary
from comparison.protocols import supernet
from made_results import KEYS, TINY, TWO, made, run

import nestling
from nestling.errors import FileError, ModelError
from nestling.interruption import Interrupted


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
    assert {"plain ranking", "search", "joint"} <= set(ours.seconds)
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


def test_a_resume_under_other_code_is_refused_or_told(given, tmp_path, monkeypatch):
    """Stopped under one commit, gone on with under another one."""
    case = Case(PLAIN, "individual", shapes=(Shape(UNIFORM_SHAPE, 1.0),))
    with monkeypatch.context() as patch, trial.stopping_after(None):
        patch.setattr(trial, "optimizer", counting([], 2))
        with pytest.raises(Interrupted):
            run(case, given, tmp_path)
    monkeypatch.setenv("NESTLING_COMMIT", "def")
    with pytest.raises(FileError, match=r"commit='abc' \(now 'def'\).* give --any-commit"):
        run(case, given, tmp_path)
    content = run(case, given, tmp_path, any_commit=True)
    result = results.Result(content)
    assert result.commits == {"abc", "def"}
    assert content["commit"] == "abc"  # where it began
    assert content["versions"]["torch"] == content["pieces"][1]["versions"]["torch"]
    assert "commit abc, def" in tables.conditions([result], {})
    monkeypatch.setattr(results, "versions", lambda: {"torch": "9"})
    with pytest.raises(FileError, match=r"torch='.*' \(now '9'\)"):
        run(case, given, tmp_path)


def test_a_result_tells_the_code_of_the_training_not_that_of_the_end(given, tmp_path, monkeypatch):
    case = Case(PLAIN, "individual", shapes=(Shape(UNIFORM_SHAPE, 1.0),))
    plain = trial._trained

    def trained(*args):
        modules = plain(*args)
        monkeypatch.setenv("NESTLING_COMMIT", "committed meanwhile")
        return modules

    monkeypatch.setattr(trial, "_trained", trained)
    assert run(case, given, tmp_path)["commit"] == "abc"


def test_a_training_that_an_earlier_version_began(given, tmp_path):
    """Its work folder tells neither commit nor what cases have learned to tell since."""
    case = Case(PLAIN, "individual", shapes=(Shape(UNIFORM_SHAPE, 1.0),))
    run(case, given, tmp_path)
    path = tmp_path / "work" / TINY.folder / case.name / "case.json"
    begun = json.loads(path.read_text())
    del begun["pieces"], begun["case"]["lr"], begun["case"]["steps"]
    path.write_text(json.dumps(begun))
    with pytest.raises(FileError, match=r"commit='unknown' \(now 'abc'\)"):
        run(case, given, tmp_path)
    content = run(case, given, tmp_path, any_commit=True)
    assert results.Result(content).commits == {"unknown", "abc"}
    with pytest.raises(ModelError, match=r"of .*unknown"):  # whose seconds nobody knows
        trial._check_machine([results.Result(content)])


def test_the_seconds_of_the_compiler_are_no_equal_compute():
    seconds = {"joint": 100.0, "other": 20.0}
    ours = made(OURS, seconds={**seconds, "compiling": 900.0})
    base = made(BASELINE, method="uniform", seconds={"sandwich": 50.0, "compiling": 5.0})
    case = Case(LONG, "uniform", equals=(BASELINE,))
    _, epochs = trial._settled(case, None, {OURS: ours, BASELINE: base}, 10)
    assert epochs == 24  # 120 seconds of 5 an epoch


def test_several_steps_a_batch_are_those_of_a_training_on_each_batch_as_often(given, tmp_path):
    """Four times the steps, on the same pictures; as many as a joint training of four makes."""
    alone = Case(PLAIN, "individual", shapes=(Shape(UNIFORM_SHAPE, 1.0),))
    several, once = replace(alone, label="several", steps=4), []
    seen = []

    def objective(net):
        seen.append(net)
        yield "module", "loss"

    assert list(trial._repeated(objective, 3)("net")) == [("module", "loss")] * 3
    assert seen == ["net"] * 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "optimizer", counting(once))
        run(alone, given, tmp_path)
        first = len(once)
        content = run(several, given, tmp_path)
    assert len(once) - first == 4 * first == 4 * TINY.epochs * 4
    assert results.Result(content).updates == 4


def test_the_learning_rate_of_a_case_is_a_share_of_the_protocols(given, tmp_path, monkeypatch):
    rates = []
    plain = protocols.optimizer
    monkeypatch.setattr(trial, "optimizer", lambda of: rates.append(of.lr) or plain(of))
    case = Case(PLAIN, "individual", shapes=(Shape(UNIFORM_SHAPE, 1.0),))
    one, other = (run(replace(case, label=f"x{lr}", lr=lr), given, tmp_path) for lr in (1.0, 0.3))
    assert rates == pytest.approx([0.1, 0.03])
    assert one["subnets"] != other["subnets"]


def test_updates_for_a_batch_are_counted_in_the_options():
    rows = [(1000 - n, 100, 0.5, 0.5) for n in range(5)]
    for method, options, number in (
        ("uniform", {}, 4),
        ("uniform", {"random": 1}, 3),
        ("uniform", {"summed": True}, 1),
        ("progressive", {}, 4),
        ("progressive", {"draw": 4}, 6),
        ("progressive", {"draw": None}, 5),
        ("slimmable", {}, 5),
        ("norms", {}, 5),
    ):
        assert made("x", rows=rows, case=Case("x", method, options)).updates == number


@pytest.mark.parametrize("method", ["uniform", "progressive"])
def test_updates_for_a_batch_are_those_that_are_made(given, tmp_path, monkeypatch, method):
    count = []
    monkeypatch.setattr(trial, "optimizer", counting(count))
    options = {"fractions": [1.0, 0.3]} if method == "uniform" else {**TWO, "rank_by": "random"}
    content = run(Case("x", method, options), given, tmp_path)
    joint = len(count) - sum(
        TINY.epochs * 4 for stage in content["seconds"] if stage.endswith("ranking")
    )
    assert joint == results.Result(content).updates * TINY.epochs * 4


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
