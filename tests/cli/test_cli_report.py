"""The verb that compares runs."""

import json
import shutil
from dataclasses import replace

import pytest

from nestling.menu import Menu
from nestling.report import read_run
from nestling.search import conduct, progressive


@pytest.fixture
def runs(trained, tmp_path):
    """One run, and the same as if it had had another seed."""
    other = shutil.copytree(trained, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["settings"]["seed"] = 1
    (other / "config.json").write_text(json.dumps(config))
    return [trained, other]


def test_runs_are_compared(nestling, runs, tmp_path):
    said = nestling("report", *runs, "--out", tmp_path / "out")
    assert said.code == 0, said
    assert "uniform" in said.out
    assert f"The report is in {tmp_path / 'out' / 'report.html'}" in said.out
    assert "± 0.00" in said.out  # the same run twice
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"report.html", "comparison.png"} < files
    before = (tmp_path / "out" / "report.html").read_bytes()
    assert nestling("report", *runs, "--out", tmp_path / "out").failed("never overwrites", "--out")
    assert (tmp_path / "out" / "report.html").read_bytes() == before


def test_the_numbers_as_json(nestling, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    menu = json.loads(nestling("info", runs[0] / "model.nest", "--json").out)["menu"]
    for cost in ("params", "latency"):
        said = nestling("report", runs[0], runs[0], "--json", "--cost", cost)
        assert said.code == 0, said
        found = json.loads(said.out)
        (method,) = found["methods"]
        assert method["seeds"] == [[0]]  # the run that was named twice counts once
        assert method["label"] == "uniform"
        assert [row["share"] for row in method["budgets"]] == [0.75, 0.5, 0.25, 0.15]
        assert "warning: the spread is unknown with one seed" in said.err
        if cost == "params":
            assert found["full_cost"] == menu[0]["params"]
            assert {row["cost"] for row in method["points"]} == {e["params"] for e in menu}
        else:
            assert "batch 1" in found["conditions"]
    assert found["report"] == "runs/report-2/report.html"


def searched(run):
    """Leave what `nestling search` leaves, with made-up accuracies."""
    menu = Menu.load(run / "model.nest")
    space = menu.net.space
    conduct(
        progressive(space, groups=1, floor=0.5),
        menu.net,
        score=lambda spec: space.macs(spec) / space.macs(space.full),
        log=run / "progressive.jsonl",
    )
    on = "205 held-out training pictures, which also chose the subnets"
    facts = {"search": "progressive", "search seed": 0, "cost": "macs", "accuracy on": on}
    replace(menu, facts=facts).save(run / "progressive.nest")


def test_a_search_shows_its_path(nestling, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    searched(run)
    said = nestling("report", run, run / "progressive.nest", "--out", tmp_path / "out", "--json")
    assert said.code == 0, said
    labels = [method["label"] for method in json.loads(said.out)["methods"]]
    assert labels == ["uniform", "progressive search"]
    assert "the accuracies of progressive search flatter" in said.err
    page = (tmp_path / "out" / "report.html").read_text()
    assert "The paths of the searches" in page
    assert "The accuracies of progressive search flatter" in page
    assert (tmp_path / "out" / "search-1.png").exists()


def test_the_search_of_a_method_shows_its_path_too(nestling, train, trained, tmp_path, unmeasured):
    run = train(
        "progressive", rank_by=None, rank_epochs=0, fractions=[0.5], search="greedy",
        search_options={"groups": 1, "floor": 0.5, "targets": [0.4]},
    )  # fmt: skip
    said = nestling("report", run, trained, "--out", tmp_path / "out", "--json")
    assert said.code == 0, said
    found = json.loads(said.out)
    assert [method["label"] for method in found["methods"]] == ["progressive", "uniform"]
    flatter = "the accuracies of progressive flatter"
    assert sum(flatter in line for line in found["warnings"]) == 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert "The paths of the searches" in page
    assert "progressive, seed 0: the way it went" in page
    pictures = {path.name for path in (tmp_path / "out").glob("search-*")}
    assert pictures == {"search-1.png"}
    (run / "checkpoint.safetensors.search.jsonl").unlink()
    assert read_run(run / "model.nest").log is None


def test_what_cannot_be_compared(nestling, trained, tmp_path):
    out = tmp_path / "out"
    assert nestling("report", tmp_path / "no", "--out", out).failed("does not exist", "train")
    assert nestling("report", trained, "--cost", "mac", "--out", out).failed("did you mean 'macs'")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(trained / "config.json", unfinished)
    assert nestling("report", trained, unfinished, "--out", out).failed("--resume", "not finished")
    assert nestling("report", trained, trained / "model.nest", "--out", out).failed("same seed")
    assert not out.exists()  # nothing is left of what failed


def test_a_model_of_ones_own_class_is_named_in_its_report(nestling, trained_own, own_file):
    page = (trained_own / "report.html").read_text()
    for verb in ("profile", "bench", "run"):
        (line,) = [each for each in page.splitlines() if f"nestling {verb} " in each]
        assert f"--model {own_file}:make_model --arg width=16" in line
    assert "from mynet import make_model" in page
    assert "model=make_model(width=16))" in page
    assert nestling("report", trained_own, "--out", trained_own.parent / "compared").code == 0
