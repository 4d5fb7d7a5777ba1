"""`nestling run --watch`, without a terminal and drawn on one that is made up."""

import io
import json
import re

import pytest
from rich.console import Console

from nestling.cli import watch
from nestling.engine import Engine, figures


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Measure for no longer than needed."""
    monkeypatch.setattr(figures, "SECONDS", 0.01)
    monkeypatch.setattr(watch, "measured", lambda model: figures.measured(model, (1, 4)))


def test_lines_where_there_is_no_terminal(nestling, trained):
    said = nestling(
        "run", trained, "--watch", "--for", 1.2, "--rate", 40, "--option", "ms=2000", "--json"
    )
    assert said.code == 0, said
    assert "load: step, 40 a second" in said.err
    assert re.search(r"\d s +[\d.]+/s +\d+ waiting +p50 .* accuracy .*answered", said.err)
    found = json.loads(said.out)
    assert found["counts"]["answered"] > 0
    assert found["entry"]
    assert found["changes"][0].startswith("p99 <= 2000 ms: ")


def test_an_objective_that_nothing_meets(nestling, trained):
    said = nestling("run", trained, "--watch", "--option", "ms=0.0001")
    assert said.failed("no entry meets p99 <= 0.0001 ms", "the fastest here is")


def test_what_says_nothing_is_refused(nestling, trained):
    assert nestling("run", trained, "--watch", "--fraction", 0.5).failed("--watch", "fraction")
    assert nestling("run", trained, "x.npy", "--watch").failed("--watch", "INPUT")
    assert nestling("run", trained, "x.npy", "--rate", 5).failed("--rate", "--watch")
    assert nestling("run", trained).failed("input is missing", "--watch")
    assert nestling("run", trained, "--watch", "--objective", "speed").failed("unknown objective")
    assert nestling("run", trained, "--watch", "--shape", "stepp").failed("did you mean 'step'")


def test_the_picture_shows_load_latency_subnet_and_accuracy(trained):
    from nestling.cli.options import in_run, opened

    model = figures.measured(opened(in_run(trained)), (1, 2))
    with Engine(model, "latency", ms=5000) as engine:
        for example in watch._examples(engine):
            engine(example)
        screen = Console(file=io.StringIO(), force_terminal=True, width=100)
        screen.print(watch.picture(engine, engine.sight(), [1.0, 4.0, 2.0]))
        shown = re.sub(r"\x1b\[[\d;]*m", "", screen.file.getvalue())
        entry = engine.sight().entry
    for words in ("a second", "▂█▄", "p99", entry, "accuracy", "16 answered", "fits"):
        assert words in shown, shown
    reverse = f"\x1b[1;7m {entry} "
    assert reverse in screen.file.getvalue()


def test_sparks():
    assert watch.sparks([]) == ""
    assert watch.sparks([0.0, 0.0]) == "▁▁"
    assert watch.sparks([0.0, 1.0, 2.0]) == "▁▄█"
