"""The verb that searches a trained net."""

import json
import shutil

import pytest

from nestling import search
from nestling.search import front

QUICK = ("--groups", 1, "--floor", 0.5)


@pytest.fixture
def run(trained, tmp_path, unmeasured):
    """A run folder that a test may add to; nothing is measured."""
    return shutil.copytree(trained, tmp_path / "run")


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_menu_is_found_and_saved(nestling, run):
    before = (run / "model.nest").read_bytes()
    said = nestling("search", run, *QUICK, "--json")
    assert said.code == 0, said
    found = json.loads(said.out)
    assert found["model"] == str(run / "greedy.nest")
    assert len(found["found"]) > 3
    assert 2 <= len(found["menu"]) <= 9
    assert found["menu"][0]["name"] == "full"
    macs = [entry["macs"] for entry in found["menu"]]
    assert macs == sorted(macs, reverse=True)
    log = rows(run / "greedy.jsonl")
    assert log[0]["search"] == "greedy"
    assert [row["spec"] for row in log if row.get("kind") == "found"] == [
        each["spec"] for each in found["found"]
    ]
    assert (run / "model.nest").read_bytes() == before
    assert "evaluations; front:" in said.err
    info = nestling("info", run / "greedy.nest", "--json")
    assert len(json.loads(info.out)["menu"]) == len(found["menu"])


def test_a_table_and_few_points(nestling, run, monkeypatch):
    """The full net is one of the points, also where it is not on the front."""
    monkeypatch.setattr(search, "front", lambda found, cost: front(found, cost)[1:])
    said = nestling("search", run, *QUICK, "--points", 2, "--out", run / "two.nest")
    assert said.code == 0, said
    assert "full" in said.out
    assert "chose the subnets" in said.out
    assert len(json.loads(nestling("info", run / "two.nest", "--json").out)["menu"]) == 2


def test_other_searches_costs_and_tuning(nestling, run):
    options = ("--by", "greedy", "--cost", "params", "--target", 0.6, "--groups", 1, "--json")
    found = json.loads(nestling("search", run, *options).out)
    assert len(found["found"]) == 1
    options = ("--by", "greedy", "--kind", "depth", "--cost", "bytes", "--out", run / "depth.nest")
    assert nestling("search", run, *options, "--budget", 10).failed("no subnet costs at most 10")
    assert nestling("search", run, "--by", "progressive", "--kind", "depth").failed(
        "takes no --kind"
    )
    said = nestling("search", run / "model.nest", "--by", "uniform", "--target", 0.5, "--json")
    assert len(json.loads(said.out)["found"]) == 1


def test_a_search_that_was_stopped_goes_on(nestling, run):
    whole = json.loads(nestling("search", run, *QUICK, "--json").out)
    (run / "greedy.nest").unlink()
    log = run / "greedy.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[: len(lines) // 2]) + '{"kind":"sco')
    assert nestling("search", run, *QUICK).failed("--resume", "greedy.jsonl")
    again = nestling("search", run, *QUICK, "--resume", "--json")
    assert json.loads(again.out) == whole
    (run / "greedy.nest").unlink()
    assert nestling("search", run, "--resume", "--floor", 0.5).failed("another search", "options")


def test_what_cannot_be_searched(nestling, run, tmp_path):
    assert nestling("search", tmp_path / "nothing").failed("nestling train", "nothing")
    assert nestling("search", run, "--by", "gredy").failed("did you mean 'greedy'")
    assert nestling("search", run, "--by", "path").failed("recorded")
    assert nestling("search", run, "--cost", "mac").failed("did you mean 'macs'")
    assert nestling("search", run, "--by", "uniform", "--groups", 2).failed("takes no --groups")
    assert nestling("search", run, "--by", "progressive", "--target", 0.5).failed(
        "takes no --target"
    )
    assert nestling("search", run, "--floor", 2).failed("above 0 and at most 1")
    assert nestling("search", run, "--resume").failed("no search to resume")
    (run / "greedy.nest").write_text("here")
    assert nestling("search", run).failed("never overwrites")
    (run / "config.json").unlink()
    assert nestling("search", run).failed("config.json")


def test_norms_of_their_own_are_not_searched(nestling, train, unmeasured):
    """The shared ones were trained with the full net alone."""
    run = train("slimmable", fractions=[1.0, 0.5])
    said = nestling("search", run, *QUICK)
    assert said.failed("norm weights that all subnets share", "'bn1.", "--option own_norms=false")
    assert "data:" not in said.err  # it fails early
    assert {path.name for path in run.glob("progressive.*")} == set()


def test_a_model_of_ones_own_class(nestling, trained_own, tmp_path, unmeasured):
    run = shutil.copytree(trained_own, tmp_path / "own")
    said = nestling("search", run, *QUICK, "--json")
    assert said.code == 0, said
    assert json.loads(said.out)["menu"][0]["name"] == "full"
