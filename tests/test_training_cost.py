"""The benchmark of channel execution: its jobs, resumed trainings, figures and tables."""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import nestling
from nestling.interruption import Interrupted

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))

import training_cost
from execution import figures, measured, tables, trial
from execution.protocols import COST, PROTOCOLS, WAYS, Job, Material, Net, Protocol, jobs

TINY = Protocol(
    *("tiny", "digits", {"two": Net("two", 0.5, step=2)}),
    epochs=2,
    batch=50,
    seeds=(0,),
    pictures=300,
    held_out=100,
    precision="float32",
    steps=3,
)
KEYS = [
    *("protocol", "net", "data", "seeds", "keep", "speedup", "memory_ratio", "selection_share"),
    *("accuracy", "accuracy_dense", "accuracy_alone", "accuracy_random"),
    *("macs_ratio", "params_ratio"),
]


def two(num_classes, in_channels, width=8):
    return nn.Sequential(
        *(nn.Conv2d(in_channels, width, 3, 4, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, width, 3, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)),
    )


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(nestling.models, "two", two, raising=False)
    monkeypatch.setitem(PROTOCOLS, "tiny", TINY)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    monkeypatch.setattr(
        measured,
        "_in_a_process",
        lambda words, net, way: {"dense": 100, "executed": 60}.get(way, 50),
    )


def run(folder, *words):
    where = ["--results", str(folder / "results"), "--work", str(folder / "work")]
    return training_cost.main(["--protocol", "tiny", *where, *words])


def test_all_ways_are_trained_measured_and_told(tiny, tmp_path, capsys):
    assert run(tmp_path, "--part", "1/2") == 0
    assert run(tmp_path, "--part", "2/2") == 0
    assert {p.stem for p in (tmp_path / "results" / "tiny-digits").iterdir()} == {
        "two-cost",
        *(f"two-{way}-0" for way in WAYS),
    }
    assert not list((tmp_path / "work" / "tiny").iterdir())
    capsys.readouterr()
    assert run(tmp_path) == 0
    assert capsys.readouterr().out == ""  # all is kept
    run(tmp_path, "--summary")
    row = json.loads(capsys.readouterr().out)
    assert set(KEYS) <= set(row)
    assert (row["net"], row["seeds"], row["keep"], row["memory_ratio"]) == ("two", 1, 0.5, 0.6)
    assert all(isinstance(row[key], (int, float)) for key in KEYS[3:])
    assert row["macs_ratio"] > 2.5
    run(tmp_path, "--tables", "--pictures", str(tmp_path / "pictures"))
    text = capsys.readouterr().out
    assert all(f"| two | {told} | 1 |" in text for told in figures.TOLD.values())
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 2
    run(tmp_path, "--list")
    assert capsys.readouterr().out.count("kept") == 6


@pytest.mark.parametrize("way", WAYS)
def test_a_stopped_training_goes_on(tiny, tmp_path, monkeypatch, way):
    material = Material(TINY, None)
    job = next(job for job in jobs(TINY) if job.way == way)
    whole = trial.train(TINY, job, material, tmp_path)
    start, steps = trial.Curve.along, []

    def counted(curve, objective):
        inner = start(curve, objective)

        def stopping(net):
            steps.append(None)
            if len(steps) == 8:
                os.kill(os.getpid(), signal.SIGTERM)
            return inner(net)

        return stopping

    monkeypatch.setattr(trial.Curve, "along", counted)
    with pytest.raises(Interrupted):
        trial.train(TINY, job, material, tmp_path)
    resumed = trial.train(TINY, job, material, tmp_path)
    assert resumed["accuracy"] == whole["accuracy"]
    assert len(resumed["curve"]) >= len(whole["curve"]) - 1
    assert resumed["macs"] == whole["macs"] <= whole["full_macs"]
    assert (whole["macs"] == whole["full_macs"]) == (way == "dense")


def test_other_settings_are_other_results(tiny, tmp_path, capsys):
    run(tmp_path, "--only", "two-dense-0")
    run(tmp_path, "--list")
    assert capsys.readouterr().out.count(" kept") == 1
    run(tmp_path, "--list", "--epochs", "3")
    assert capsys.readouterr().out.count(" kept") == 0


def test_what_a_step_costs_is_kept_whatever_the_epochs():
    for job in jobs(TINY):
        longer = replace(TINY, epochs=3).settings(job)
        assert (longer == TINY.settings(job)) == (job.way == COST), job
        assert replace(TINY, batch=1).settings(job) != TINY.settings(job)


MACHINE = {"processor": "P", "threads": "2", "torch": "2.13"}


def made(folder, accuracies, cost=None):
    """Keep made-up results of the tiny protocol: accuracies by way and seed, and a speed-up."""
    trained = {"seconds": 90.0, "macs": 1, "full_macs": 4, "params": 1, "full_params": 2}
    found = {
        f"two-{way}-{seed}": {**trained, "accuracy": value, "curve": [], "machine": MACHINE}
        for (way, seed), value in accuracies.items()
    }
    ways = {"dense": 10.0, "executed": 10.0 * (cost or 1), "alone": 40.0}
    measured_cost = {"images_per_second": ways, "speedup": cost, "speedup_alone": 4.0}
    measured_cost |= {"memory_ratio": 0.5, "memory_ratio_alone": 0.4, "parameters": 2e6}
    measured_cost |= {"shares": {"selection": 0.01, "gathering": 0.02}, "machine": MACHINE}
    found |= {"two-cost": measured_cost} if cost else {}
    folder = folder / "tiny-digits"
    folder.mkdir(parents=True)
    settings = {job.name: PROTOCOLS["tiny"].settings(job) for job in jobs(PROTOCOLS["tiny"])}
    for name, result in found.items():
        kept = json.loads(json.dumps(settings[name]))
        content = {"job": name, "settings": kept, "result": {"precision": "float32", **result}}
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_how_a_training_begins_is_a_setting_of_those_that_execute_a_part():
    of = replace(TINY, options={"exploration": 0.3}, course={"start": 1.0})
    found = {way: of.settings(Job(next(iter(of.nets)), way))["options"] for way in (*WAYS, COST)}
    whole = {"exploration": 0.3, "start": 1.0}
    assert {way for way, options in found.items() if options == whole} == {"executed", "random"}
    assert {way for way in found if found[way] == {"exploration": 0.3}} == {
        COST, "dense", "alone", "slimming"
    }  # fmt: skip


def test_the_page_has_the_costs_of_every_folder_and_leads_seed_by_seed(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "tiny", replace(TINY, seeds=(0, 1, 2)))
    monkeypatch.setattr(training_cost, "PICTURES", tmp_path)
    reached = {("dense", 0): 0.9, ("dense", 1): 0.92, ("executed", 0): 0.89, ("executed", 1): 0.9}
    made(tmp_path / "kept", {**reached, ("alone", 1): 0.895, ("executed", 2): 0.8}, cost=3.0)
    made(tmp_path / "kept" / "slow", {}, cost=2.0)
    groups = training_cost.groups(tmp_path / "kept")
    costs = tables.costs(groups).splitlines()
    assert [line.split(" | ")[6] for line in costs[2:4]] == ["3.00 x", "2.00 x"]
    assert "2.00 M | 10 | 30 | 40 | 3.00 x | 4.00 x | 0.50 x | 0.40 x | 3.0 (1.0, 2.0)" in costs[2]
    monkeypatch.setattr(training_cost, "groups", lambda: groups)
    lines = training_cost.accuracy_page().splitlines()
    # standard deviations of two: the difference over the square root of 2
    assert "| two | dense | 2 | 91.00 ± 1.41 |  | -1.50 ± 0.71 | 25 % | 0.00 of" in lines[2]
    assert "channel execution | 3 | 86.33 ± 5.51 | -1.50 ± 0.71 |  | 25 %" in lines[3]
    assert "| compact shape alone | 1 | 89.50 | -2.50 | +0.50 | 25 %" in lines[4]
    assert lines[4].endswith("| 1.5 |")
    assert "in float32; P, 2 threads" in lines[-1]


def test_a_page_without_trainings_says_so(tiny, tmp_path):
    assert tables.page([], tmp_path) == tables.NOTHING
    made(tmp_path / "kept", {}, cost=2.0)
    assert tables.page(training_cost.groups(tmp_path / "kept"), tmp_path) == tables.NOTHING
    assert tables.costs([]) == ""


def test_mistakes_are_told(tiny, tmp_path, capsys):
    assert run(tmp_path, "--part", "3/2") == 1
    assert training_cost.main(["--protocol", "shrt"]) == 1
    text = capsys.readouterr().err
    assert "--part is i/n" in text
    assert "did you mean 'short'" in text


def test_memory_of_a_way(tiny):
    big = replace(TINY, nets={"two": Net("two", 0.25, {"width": 64}, step=8)}, batch=200)
    material = Material(big, None)
    dense, executed = (measured.memory_of(big, "two", way, material) for way in ("dense", "alone"))
    assert dense > 0
    assert executed < dense


def test_protocols_name_what_exists():
    for of in PROTOCOLS.values():
        assert of.data in nestling.data.names()
        for net in of.nets.values():
            assert callable(getattr(nestling.models, net.builder))
        assert len({job.name for job in jobs(of)}) == len(jobs(of))
    assert {"vgg16-half", "resnet56-half"} == set(figures.GOALS)
    assert set(figures.GOALS) <= set(PROTOCOLS["short"].nets) & set(PROTOCOLS["full"].nets)
