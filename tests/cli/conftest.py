"""The command line as a function, and one small trained file for all tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
from typer.testing import CliRunner

OWN = """
from torch import nn

class Own(nn.Module):
    def __init__(self, width=16, classes=10):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))

def make_model(width=16, classes=10):
    return Own(width, classes)

def make_nothing():
    return "a model"

def make_trouble():
    raise RuntimeError("out of luck")

class Failing(nn.Linear):
    def forward(self, x):
        raise ValueError("no forward today")

def make_failing():
    return Failing(4, 4)

def make_stiff():
    return nn.Linear(4, 4)
"""


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    def failed(self, *words: str) -> bool:
        """Exit code 2, nothing on stdout, one line on stderr that has all words, no traceback."""
        last = self.err.strip().splitlines()[-1]
        assert self.code == 2, self
        assert self.out == ""
        assert "Traceback" not in self.err
        assert self.err.count("error:") == 1, self.err
        assert last.startswith("error: ")
        for word in words:
            assert word in last, (word, last)
        return True


@pytest.fixture
def nestling():
    """Run the command line in this process."""
    from nestling.cli import app

    def call(*args, stdin=None):
        found = CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)
        return Said(found.exit_code, found.stdout, found.stderr)

    return call


@pytest.fixture
def shell():
    """Run the command line in a process of its own."""

    def start(*args, **options):
        code = "from nestling.cli import main; main()"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            **options,
        )

    return start


@pytest.fixture(scope="session")
def own_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "mynet.py"
    path.write_text(OWN)
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run folder of one epoch on the digits; not to be changed."""
    return _train(tmp_path_factory.mktemp("runs") / "small", "digits_resnet", "width=8")


@pytest.fixture(scope="session")
def trained_own(tmp_path_factory, own_file):
    return _train(tmp_path_factory.mktemp("runs") / "own", f"{own_file}:make_model", "width=16")


@pytest.fixture
def train(nestling, tmp_path):
    """Train on the digits for one epoch with a method and its options; returns the new folder."""

    def call(method, **options):
        out = tmp_path / f"{method}-{len(list(tmp_path.iterdir()))}"
        given = [part for n, v in options.items() for part in ("--option", f"{n}={json.dumps(v)}")]
        said = nestling(
            "train", "--model", "digits_resnet", "--arg", "width=8", "--data", "digits",
            "--epochs", 1, "--threads", 1, "--method", method, "--out", out, *given,
        )  # fmt: skip
        assert said.code == 0, said
        return out

    return call


def _train(out, model, arg):
    from nestling.cli import app

    args = f"train --model {model} --arg {arg} --data digits --epochs 1 --threads 1 --out {out}"
    found = CliRunner().invoke(app, args.split())
    assert found.exit_code == 0, found.stderr
    return out
