"""How the benchmarks' commands end, and that every one of them tells its options."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import nested
import pytest
import serving
import training_cost
from comparison.commands import UNFINISHED, ended, replaced
from comparison.protocols import PROTOCOLS

from nestling.errors import ModelError
from nestling.interruption import Interrupted


@pytest.mark.parametrize(
    ("stop", "status", "said"),
    [
        (ModelError("no such net"), 1, "error: no such net\n"),
        (Interrupted("stopped and saved"), UNFINISHED, "stopped and saved\n"),
    ],
)
def test_what_stops_a_command_is_told_without_a_traceback(capsys, stop, status, said):
    def do(options):
        raise stop

    assert ended(do, argparse.Namespace()) == status
    assert capsys.readouterr() == ("", said)


def test_a_command_that_runs_through_has_its_own_status():
    assert ended(lambda options: options.status, argparse.Namespace(status=4)) == 4


@pytest.mark.parametrize("lines", [9999, 1])  # the last one waits for Python's end
def test_a_reader_that_has_seen_enough_is_no_mistake(lines):
    script = "import sys; from comparison.commands import ended; "
    script += "print('x' * 99, flush=True); sys.stdin.read(); "
    script += f"sys.exit(ended(lambda many: [print('x') for _ in range(many)] and 0, {lines}))"
    buffered = {name: each for name, each in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env=buffered,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(training_cost.__file__).parent,
    ) as command:
        assert command.stdout.readline().strip() == b"x" * 99
        command.stdout.close()
        command.stdin.close()
        assert command.stderr.read() == b""
        assert command.wait() == 1


def test_help_and_what_replaces_settings(accuracy):
    nouns = {accuracy: "cases", nested: "cases", training_cost: "jobs", serving: "scenarios"}
    for script, noun in nouns.items():
        text = " ".join(script.parser().format_help().split())
        assert f"print the {noun} and their states" in text
    options = nested.parser().parse_args(["--seeds", "3", "5", "--lr", "0.1", "--epochs", "7"])
    assert replaced(options, "lr", "held_out") == {
        "data": None, "epochs": 7, "batch": None, "device": None, "lr": 0.1, "held_out": None,
        "seeds": (3, 5),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["short", "full"])
def test_whether_steps_are_compiled_replaces_what_the_protocol_does(accuracy, name):
    words = ["--protocol", name, "--list"]
    found = [
        accuracy.settings(accuracy.parser().parse_args([*words, *more])).compiled
        for more in ([], ["--compile"], ["--no-compile"])
    ]
    assert found == [PROTOCOLS[name].compiled, True, False]
