"""Data sets on the command line: their names, and a training on pictures in files."""

import json
import re

import pytest
from typer.testing import CliRunner

from nestling import data, experiment
from nestling.cli import app
from nestling.data import Batches, FileBatches
from nestling.progress import Reporter

NET = """
from torch import nn

def make_model(classes=3):
    return nn.Sequential(
        nn.Conv2d(3, 8, 8, stride=16), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes),
    )
"""
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12


@pytest.fixture
def net(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    return f"{tmp_path / 'net.py'}:make_model"


def nestling(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def settings(net, folder, **changes):
    usual = {"model": net, "data": "imagenet", "data_dir": str(folder), "batch": 5, "threads": 1}
    return experiment.Settings(**usual | changes)


def test_the_help_and_errors_of_train_name_every_data_set():
    shown = re.sub(r"[\s│]+", " ", nestling("train", "--help").stdout)
    assert f"Data set: {', '.join(data.names())}." in shown
    said = nestling("train", "--model", "mlp", "--data", "imagnet")
    assert said.exit_code == 2
    assert "did you mean 'imagenet'" in said.stderr
    assert all(repr(name) in said.stderr for name in data.names())


def test_the_doctor_looks_for_every_data_set(imagenet):
    found = json.loads(nestling("doctor", "--json", "--data-dir", imagenet).stdout)
    assert set(found["data"]) == {"folder", *data.names()}
    assert found["data"]["imagenet"] == "found: 24 training and 12 test pictures"
    assert found["data"]["svhn"].startswith("not there")
    missing = {
        name: line for name in data.names() for line in found["missing"] if f" {name} " in line
    }
    assert "tries to fetch it" in missing["cifar100"]
    assert "imagenet" not in missing


def test_the_doctor_promises_to_fetch_only_what_is_free(tmp_path):
    missing = json.loads(nestling("doctor", "--json", "--data-dir", tmp_path).stdout)["missing"]
    (line,) = [line for line in missing if "data set imagenet " in line]
    assert "tries to fetch it" not in line
    assert "not fetched for you" in line


def test_a_training_reads_its_pictures_from_files(net, imagenet, tmp_path, unmeasured):
    options = ("--model", net, "--data", "imagenet", "--data-dir", imagenet, "--threads", 1)
    run = ("--epochs", 1, "--batch", 5, "--held-out", 6, "--out", tmp_path / "run")
    said = nestling("train", *options, *run)
    assert said.exit_code == 0, said.stderr
    assert "18 pictures (3x224x224) to train on, 6 of the training set held out, 12 to test" in (
        re.sub(r"\s+", " ", said.stderr)
    )
    assert "test accuracy, on 12 pictures looked at only now: full " in said.stdout


def test_held_out_pictures_are_read_once(net, imagenet):
    ready = experiment.prepare(settings(net, imagenet), Reporter(quiet=True))
    assert isinstance(ready.train, FileBatches)
    assert isinstance(ready.held_out, Batches)
    assert ready.pictures == sum(len(labels) for _, labels in ready.held_out) == 3


def test_a_damaged_picture_ends_a_training_with_one_line(net, imagenet, tmp_path):
    for name in ("n01", "n02", "n03"):
        for number in range(8):
            (imagenet / "train" / name / f"{name}_{number}.JPEG").write_bytes(b"noise")
    options = ("--model", net, "--data", "imagenet", "--data-dir", imagenet, "--threads", 1)
    said = nestling("train", *options, "--epochs", 1, "--batch", 5, "--out", tmp_path / "run")
    assert said.exit_code == 2
    assert said.stdout == ""
    assert "Traceback" not in said.stderr
    last = said.stderr.strip().splitlines()[-1]
    assert re.search(r"error: .*train/n0\d/n0\d_\d.JPEG is damaged", last)


def test_an_mlp_is_made_to_fit_the_framed_pictures(tiny):
    ready = experiment.prepare(settings("mlp", tiny, data="tiny-imagenet"), Reporter(quiet=True))
    assert ready.net.model[1].in_features == 3 * 64 * 64
