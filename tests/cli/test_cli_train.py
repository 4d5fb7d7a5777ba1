import csv
import json
import shlex
import signal
import time

import pytest

from nestling import container

FILES = {
    "config.json",
    "environment.json",
    "metrics.csv",
    "log.txt",
    "checkpoint.safetensors",
    "model.nest",
    "model.profile.json",
    "pareto.png",
    "skyline.png",
    "report.html",
}
TINY = ("--model", "digits_resnet", "--arg", "width=8", "--data", "digits", "--threads", 1)


def test_the_run_folder_is_complete(trained):
    assert {path.name for path in trained.iterdir()} == FILES
    assert json.loads((trained / "config.json").read_text())["settings"]["model_args"] == {
        "width": 8
    }
    with (trained / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["epoch"] == "1"
    assert float(row["loss"]) > 0
    assert "held out" in (trained / "log.txt").read_text()


def test_data_is_on_stdout_and_the_rest_on_stderr(training):
    _, said = training
    found = json.loads(said.out)
    assert {"name", "spec", "macs", "accuracy", "test_accuracy"} <= set(found["menu"][0])
    assert "device: cpu" in said.err
    assert "training in" in said.err


def test_a_nested_training(nestling, tmp_path, unmeasured):
    words = ("train", "--model", "mlp", "--arg", "in_features=64", "--arg", "hidden=[16,16]")
    words += ("--data", "digits", "--threads", 1, "--method", "nested", "--epochs", 1)
    options = ("--option", 'kinds=["neurons"]', "--option", "fractions=[1.0,0.6]")
    said = nestling(*words, *options, "--out", tmp_path / "run", "--json")
    assert said.code == 0, said
    whole, cut = (entry["spec"] for entry in json.loads(said.out)["menu"])
    assert any(cut[name] < whole[name] for name in whole)
    assert nestling(*words, "--option", 'kinds=["depth"]').failed("'depth', but no axis")


def test_a_narrowed_training(nestling, tmp_path, monkeypatch):
    from nestling.costs.latency import Ratio

    def compare(smaller, larger, precision, seconds):
        return Ratio(1.0, 1.0, 1.0, 40)  # a machine on which size costs nothing

    monkeypatch.setattr("nestling.timing._comparer", lambda *given: compare)
    out = tmp_path / "run"
    said = nestling("train", *TINY, "--epochs", 1, "--narrow", 5, "--out", out)
    assert said.code == 0
    assert "narrowed: " in said.out
    assert "is no faster than 8 here, so 8 is used" in said.out
    assert [line.split()[0] for line in said.out.splitlines()[2:4]] == ["name", "full"]
    assert "is no faster than" in (out / "report.html").read_text()
    assert "is no faster than" in (out / "log.txt").read_text()
    found = json.loads(nestling("info", out / "model.nest", "--json").out)
    assert [entry["name"] for entry in found["menu"]] == ["full"]
    assert found["menu"][0]["scored"] > 100
    assert json.loads((out / "config.json").read_text())["settings"]["narrow"] == 5


def test_folders_are_numbered(nestling, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "digits_resnet-digits-uniform-1").mkdir(parents=True)
    said = nestling("train", *TINY, "--epochs", 1)
    assert "test accuracy, on 360 pictures looked at only now" in said.out
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["digits_resnet-digits-uniform-1", "digits_resnet-digits-uniform-2"]


def test_an_earlier_run_is_never_overwritten(nestling, trained):
    before = (trained / "model.nest").read_bytes()
    assert nestling("train", *TINY, "--out", trained).failed("never overwrites", "--out")
    assert nestling("train", "--resume", "--out", trained).failed("finished", "nestling info")
    assert (trained / "model.nest").read_bytes() == before


def test_a_killed_training_goes_on_exactly(nestling, shell, tmp_path):
    args = ("train", *TINY, "--epochs", 4)
    assert nestling(*args, "--out", tmp_path / "whole").code == 0
    process = shell(*args, "--out", tmp_path / "broken")
    checkpoint = tmp_path / "broken" / "checkpoint.safetensors"
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=600)
    if process.returncode == 0:
        pytest.skip("the training was over before it could be stopped")
    assert process.returncode == 130, err
    line = err.strip().splitlines()[-1]
    assert line.startswith("stopped: ")
    assert "--resume --out" in line
    assert "Traceback" not in err
    contrary = nestling("train", "--resume", "--out", tmp_path / "broken", "--epochs", 5)
    assert contrary.failed("--epochs", "4", "5")
    assert nestling("train", "--resume", "--out", tmp_path / "broken").code == 0
    _, whole = container.read(tmp_path / "whole" / "model.nest")
    _, broken = container.read(tmp_path / "broken" / "model.nest")
    assert whole.keys() == broken.keys()
    assert all(whole[name].equal(broken[name]) for name in whole)
    metrics = [(tmp_path / run / "metrics.csv").read_text() for run in ("whole", "broken")]
    assert metrics[0] == metrics[1]


def test_nothing_to_resume(nestling, tmp_path):
    assert nestling("train", "--resume").failed("--out")
    assert nestling("train", "--resume", "--out", tmp_path / "no").failed("no run")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--data", "digits"), ("--model",)),
        (("--model", "resnet20"), ("--data",)),
        (("--model", "resnet2", "--data", "digits"), ("did you mean 'resnet20'",)),
        ((*TINY, "--data", "digit"), ("did you mean 'digits'",)),
        ((*TINY, "--method", "unifrom"), ("did you mean 'uniform'",)),
        ((*TINY, "--epochs", -1), ("--epochs", "-1")),
        ((*TINY, "--lr", -1), ("--lr", "-1")),
        ((*TINY, "--batch", 0), ("--batch", "0")),
        ((*TINY, "--precision", "float23"), ("did you mean 'float32'",)),
        ((*TINY, "--device", "gpu"), ("'gpu'", "choose auto, cpu")),
        ((*TINY, "--weights", "no.safetensors"), ("no.safetensors",)),
        ((*TINY, "--held-out", 5000), ("5000",)),
        (("--model", "resnet20", "--data", "digits"), ("--arg in_channels=1",)),
        (
            ("--model", "mlp", "--data", "digits", "--arg", "in_features=784"),
            ("mlp", "--arg in_features=64"),
        ),
        (
            ("--model", "digits_resnet", "--arg", "num_classes=4", "--data", "digits"),
            ("(batch, 10)",),
        ),
    ],
)
def test_bad_input_is_told_before_a_folder_is_made(nestling, tmp_path, args, words):
    said = nestling("train", *args, "--out", tmp_path / "run")
    assert said.failed(*words)
    assert not (tmp_path / "run").exists()


def test_missing_and_corrupt_data(nestling, tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    resnet = ("--model", "resnet20", "--data", "cifar10", "--data-dir", tmp_path)
    said = nestling("train", *resnet, "--out", tmp_path / "run")
    assert said.failed("https://www.cs.toronto.edu", "--data-dir")
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name in [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]:
        (folder / name).write_bytes(b"123")
    assert nestling("train", *resnet, "--out", tmp_path / "run").failed("damaged")


def test_a_full_disk_is_one_clear_error(nestling, tmp_path, monkeypatch):
    import errno
    import os

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    said = nestling("train", *TINY, "--epochs", 1, "--out", tmp_path / "run")
    assert said.failed("No space left")


def test_a_file_where_the_folder_should_be(nestling, tmp_path):
    (tmp_path / "run").write_text("mine")
    assert nestling("train", *TINY, "--out", tmp_path / "run").failed("exists")
    assert nestling("train", *TINY, "--out", tmp_path / "run" / "deep").failed("--out")
    assert (tmp_path / "run").read_text() == "mine"


def test_a_diverged_training_says_so(nestling, tmp_path):
    said = nestling("train", *TINY, "--lr", 900, "--precision", "float32", "--epochs", 4,
                    "--out", tmp_path / "run")  # fmt: skip
    if said.code:
        assert said.failed("diverged", "learning rate")


def test_weights_and_inputs_in_few_bits():
    from nestling.errors import ModelError
    from nestling.experiment import Settings, prepare
    from nestling.progress import Reporter

    settings = Settings("mlp", "digits", bits=(2, 8), input_bits=(8,), threads=1)
    assert Settings.from_config(json.loads(json.dumps(settings.config()))) == settings
    net = prepare(settings, Reporter(quiet=True)).net
    counts = {n: axis.counts for n, axis in net.space.axes.items() if axis.kind == "bits"}
    assert counts == {"linear2.bits": (2, 8, 32)}
    assert [coding.inputs for coding in net.space.codings] == [8]
    with pytest.raises(ModelError, match="add --bits too"):
        Settings("mlp", "digits", input_bits=(8,))


def test_an_mlp_takes_as_many_numbers_as_the_pictures_have():
    from nestling import experiment
    from nestling.progress import Reporter

    settings = experiment.Settings("mlp", "digits", {"hidden": [16]})
    net = experiment.prepare(settings, Reporter(quiet=True)).net
    assert net.signature.args[0].shape[1:] == (1, 8, 8)


def test_the_tip_names_ones_own_model(nestling, own_file, tmp_path):
    given = ("--model", f"{own_file}:make_model", "--arg", "width=24", "--threads", 1)
    out = tmp_path / "a run"
    said = nestling("train", *given, "--data", "digits", "--epochs", 1, "--out", out)
    _, *words = shlex.split(said.out.splitlines()[-1])
    assert words[1:] == [str(out / "model.nest"), "--model", str(given[1]), "--arg", "width=24"]
    assert nestling(*words, "--seconds", 0.01).code == 0


LAZY = """
from torch import nn

def make():
    return nn.Sequential(
        nn.LazyConv2d(16, 3, padding=1), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(10)
    )
"""


def test_lazy_layers_train_and_load(nestling, tmp_path):
    (tmp_path / "lazy.py").write_text(LAZY)
    own = ("--model", f"{tmp_path / 'lazy.py'}:make")
    run = ("--data", "digits", "--epochs", 1, "--threads", 1, "--out", tmp_path / "run")
    said = nestling("train", *own, *run)
    assert said.code == 0, said.err
    file = tmp_path / "run" / "model.nest"
    assert nestling("bench", file, *own, "--seconds", 0.01).code == 0
