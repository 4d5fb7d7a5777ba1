import re

import pytest
import torch
from typer.testing import CliRunner

from nestling import experiment
from nestling.cli import app

VERBS = ("quickstart", "inspect", "train", "info", "bench", "profile", "run", "doctor")


def test_no_verb_prints_the_help(nestling):
    for args in ([], ["--help"], ["-h"]):
        said = nestling(*args)
        assert said.code == 0
        assert all(verb in said.out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_help_has_examples(nestling, verb):
    said = nestling(verb, "--help")
    assert said.code == 0
    assert f"nestling {verb}" in said.out.partition("Examples")[2]
    assert "\\" not in said.out


def test_every_verb_that_reads_has_json(nestling):
    for verb in set(VERBS) - {"quickstart"}:
        assert "--json" in nestling(verb, "--help").out


def test_version(nestling):
    assert re.fullmatch(r"nestling \d+\.\d+\.\d+\n", nestling("--version").out)


def test_a_mistyped_verb_is_suggested(nestling):
    assert nestling("trian").failed("'trian'", "'train'", "--help")


def test_a_mistyped_option_is_suggested(nestling):
    assert nestling("train", "--epoch", 3).failed("--epoch", "'--epochs'", "train --help")


def test_a_missing_argument_and_a_bad_number_are_usage_errors(nestling):
    assert nestling("info").failed("FILE")
    assert nestling("quickstart", "--epochs", "many").failed("epochs", "many")


def test_a_bug_leaves_a_traceback_in_a_file(nestling, monkeypatch, tmp_path):
    def broken(*_):
        raise KeyError("lost")

    monkeypatch.setattr("nestling.profile.machine", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    said = nestling("doctor")
    assert said.code == 1
    assert "this is a bug in Nestling: KeyError: 'lost'" in said.err
    assert "Traceback" not in said.err
    (file,) = tmp_path.glob("nestling-error-*.txt")
    assert str(file) in said.err
    assert "Traceback" in file.read_text()


def test_ctrl_c_has_its_exit_code(nestling, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("nestling.profile.machine", stopped)
    said = nestling("doctor")
    assert said.code == 130
    assert said.err.startswith("stopped: ")


def test_threads_are_put_back():
    with experiment.threads(2):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 1
    with experiment.threads(0):
        assert torch.get_num_threads() == 1


def test_errors_have_no_colour_where_there_is_no_terminal():
    assert "\x1b" not in CliRunner().invoke(app, ["trian"]).stderr


def test_a_process_says_the_same(shell):
    process = shell("info", "nowhere.nest")
    out, err = process.communicate(timeout=600)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
