"""The verbs that take a model file: info, bench, profile, run."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from nestling import data


@pytest.fixture
def copy(trained, tmp_path):
    """Return a model file that a test may change."""
    for name in ("model.nest", "model.profile.json"):
        shutil.copy(trained / name, tmp_path / name)
    return tmp_path / "model.nest"


@pytest.fixture
def digits(tmp_path):
    images, _ = next(iter(data.load("digits").test_batches(3)))
    np.save(tmp_path / "digits.npy", images.numpy())
    return tmp_path / "digits.npy"


@pytest.fixture
def picture(tmp_path):
    pixels = data.load("digits").test_images[0, 0]
    Image.fromarray(pixels.numpy()).save(tmp_path / "digit.png")
    return tmp_path / "digit.png"


# -- info -----------------------------------------------------------------------------------------


def test_info_json(nestling, copy):
    found = json.loads(nestling("info", copy, "--json").out)
    first = found["menu"][0]
    assert {"name", "spec", "macs", "params", "bytes", "accuracy", "offered"} <= set(first)
    assert first["name"] == "full"
    assert first["latencies"][0]["batch"] == 1
    assert first["latencies"][0]["median"] > 0


def test_info_text(nestling, copy):
    said = nestling("info", copy)
    assert said.code == 0
    assert "digits_resnet(" in said.out
    assert "mean 0.3" in said.out
    assert "std 0.3" in said.out
    assert "full" in said.out
    assert max(map(len, said.out.splitlines()[2:6])) <= 100


def test_the_folder_of_a_run_stands_for_its_file(nestling, copy):
    assert nestling("info", copy.parent).out == nestling("info", copy).out


def test_info_without_a_profile(nestling, copy):
    (copy.parent / "model.profile.json").unlink()
    found = json.loads(nestling("info", copy, "--json").out)
    assert found["menu"][0]["latencies"] == []
    (copy.parent / "model.profile.json").write_text("{")
    said = nestling("info", copy)
    assert said.code == 0
    assert "no latencies" in said.err


def test_info_needs_no_source_of_ones_own_class(nestling, trained_own):
    said = nestling("info", trained_own / "model.nest", "--json")
    assert json.loads(said.out)["model"]["class"].endswith("Own")
    assert "Own" in nestling("info", trained_own / "model.nest").out


@pytest.mark.parametrize("verb", ["info", "bench", "profile"])
def test_bad_files(nestling, copy, verb):
    content = copy.read_bytes()
    assert nestling(verb, copy.parent / "no.nest").failed("no.nest")
    copy.write_bytes(content[: len(content) // 2])
    assert nestling(verb, copy).failed("model.nest")
    copy.write_bytes(b"\xff" * 1000)
    assert nestling(verb, copy).failed("model.nest")
    copy.write_bytes(b"")
    assert nestling(verb, copy).failed("model.nest")
    assert nestling(verb, copy.parent).failed(str(copy.parent))


def test_an_altered_file_is_refused(nestling, copy, digits):
    content = bytearray(copy.read_bytes())
    content[-100] ^= 1
    copy.write_bytes(content)
    assert nestling("run", copy, digits).failed("model.nest")


def test_another_version_is_refused(nestling, copy):
    from nestling import container

    header, tensors = container.read(copy)
    container.write(copy, {**header, "version": 99}, tensors)
    assert nestling("info", copy).failed("99")


# -- bench and profile ----------------------------------------------------------------------------


def test_bench(nestling, copy):
    said = nestling("bench", copy, "--batch", 2, "--seconds", 0.01, "--json",
                    "--csv", copy.parent / "figures.csv")  # fmt: skip
    found = json.loads(said.out)
    assert found["conditions"]["batch"] == 2
    first = found["subnets"][0]
    assert first["low_ms"] <= first["median_ms"] <= first["high_ms"]
    assert first["per_second"] == pytest.approx(2000 / first["median_ms"])
    assert first["activation_bytes"] > 0
    assert first["speedup"] == first["ideal_speedup"] == 1
    with (copy.parent / "figures.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == [
            row["name"] for row in found["subnets"]
        ]


def test_bench_table_fits_a_terminal(nestling, copy):
    said = nestling("bench", copy, "--seconds", 0.01)
    assert "speed-up" in said.out
    assert max(map(len, said.out.splitlines())) <= 80


def test_bench_cannot_write(nestling, copy):
    said = nestling("bench", copy, "--seconds", 0.01, "--csv", copy.parent / "no" / "f.csv")
    assert said.failed("f.csv")


def test_profile_answers_a_latency_budget(nestling, copy, digits):
    (copy.parent / "model.profile.json").unlink()
    missing = nestling("run", copy, digits, "--latency-ms", 1e6)
    assert missing.failed(f"nestling profile {copy} --batch 3 --threads 1")
    assert nestling("profile", copy, "--batch", 3, "--batch", 1, "--seconds", 0.01).code == 0
    said = nestling("run", copy, digits, "--latency-ms", 1e6)
    assert said.code == 0
    assert nestling("run", copy, digits, "--latency-ms", 1e-9).failed("closest", "latency_ms")


def test_profile_narrows_and_info_tells(nestling, copy, monkeypatch):
    from nestling import menu as menus
    from nestling.costs.latency import Latency, Ratio, measure

    def compare(smaller, larger, precision, seconds):
        return Ratio(1.0, 1.0, 1.0, 40)  # a machine on which size costs nothing

    def alike(calls, **options):
        return {name: Latency(1.0, 0.9, 1.1, 11) for name in measure(calls, **options)}

    monkeypatch.setattr("nestling.timing._comparer", lambda *given: compare)
    monkeypatch.setattr(menus.latency, "measure", alike)
    assert "narrowed" not in nestling("info", copy).out
    said = nestling("profile", copy, "--seconds", 0.01, "--narrow", 5)
    assert said.code == 0
    assert "worth having" in said.err
    assert "narrowed: " in said.out
    told = [line for line in nestling("info", copy).out.splitlines() if "narrowed: " in line]
    assert told
    assert all("is no faster than" in line for line in told)
    assert all("a menu that is made here uses" in line for line in told)
    found = json.loads(nestling("info", copy, "--json").out)
    assert [f"narrowed: {line}" for line in found["narrowed"]] == told
    # The axes of the file allow what they allowed.
    assert all(axis["counts"][-1] == axis["size"] for axis in found["axes"].values())
    assert nestling("profile", copy, "--narrow", -1).code == 2


def test_info_says_why_a_subnet_is_not_offered(nestling, copy):
    from nestling import container

    header, tensors = container.read(copy)
    row = header["menu"][1]
    row |= {"offered": False, "reason": "no faster than full here and no better"}
    container.write(copy, header, tensors)
    assert f"not offered: {row['name']}, no faster than full here" in nestling("info", copy).out
    # A file of an earlier version of the format has neither reasons nor numbers of examples.
    for each in header["menu"]:
        del each["reason"], each["scored"]
    container.write(copy, header, tensors)
    found = json.loads(nestling("info", copy, "--json").out)
    assert {(e["reason"], e["scored"]) for e in found["menu"]} == {("", None)}


def test_profile_replaces_one_that_is_damaged(nestling, copy):
    (copy.parent / "model.profile.json").write_text("{")
    assert nestling("bench", copy, "--seconds", 0.01).failed("nestling profile")
    said = nestling("profile", copy, "--seconds", 0.01, "--json")
    assert json.loads(said.out)["tables"]
    assert (copy.parent / "model.profile.json.old").read_text() == "{"


# -- run ------------------------------------------------------------------------------------------


def test_run_a_batch(nestling, copy, digits):
    said = nestling("run", copy, digits, "--fraction", 0.5)
    assert said.code == 0
    assert len(said.out.splitlines()) == 3
    assert "subnet m" in said.err
    assert "numbers taken as already normalised, with mean 0.3" in said.err


def test_run_a_picture_as_in_training(nestling, copy, picture, digits):
    one = json.loads(nestling("run", copy, picture, "--json").out)
    many = json.loads(nestling("run", copy, digits, "--json").out)
    assert one["subnet"]["name"] == "full"
    assert "already normalised" not in nestling("run", copy, picture).err
    top, same = one["results"][0]["top"], many["results"][0]["top"]
    assert [each["class"] for each in top] == [each["class"] for each in same]
    assert len(top) == 5
    assert top[0]["score"] == pytest.approx(same[0]["score"], abs=1e-4)


def test_run_resizes(nestling, copy, tmp_path):
    Image.new("RGB", (40, 30), "white").save(tmp_path / "big.jpg")
    said = nestling("run", copy, tmp_path / "big.jpg")
    assert said.code == 0
    assert "resized from 40x30 to 8x8" in said.err


def test_run_stdin(nestling, copy, digits):
    said = nestling("run", copy, "-", "--subnet", "full", stdin=digits.read_bytes())
    assert said.code == 0
    assert len(said.out.splitlines()) == 3
    assert nestling("run", copy, "-", stdin=b"rubbish").failed("stdin")


def test_run_one_example_without_a_batch(nestling, copy, tmp_path):
    np.save(tmp_path / "one.npy", np.zeros((1, 8, 8), dtype=np.float64))
    assert nestling("run", copy, tmp_path / "one.npy").code == 0


def test_run_refuses_bad_inputs(nestling, copy, tmp_path):
    file = tmp_path / "x.npy"

    def saved(array):
        np.save(file, array)
        return nestling("run", copy, file)

    assert saved(np.zeros((2, 3, 8, 8), np.float32)).failed("(2, 3, 8, 8)")
    assert saved(np.zeros((8,), np.float32)).failed("(8,)")
    assert saved(np.zeros((0, 1, 8, 8), np.float32)).failed("(0, 1, 8, 8)")
    assert saved(np.zeros((2, 1, 8, 8), np.uint8)).failed("uint8", "normalise", "with mean 0.3")
    assert saved(np.full((2, 1, 8, 8), np.nan, np.float32)).failed("NaN")
    assert saved(np.array(["text"])).failed("no .npy array of numbers")
    assert saved(np.array([{}], dtype=object)).failed("no .npy array of numbers")
    (tmp_path / "x.png").write_bytes(b"no picture")
    assert nestling("run", copy, tmp_path / "x.png").failed("no picture that Pillow can read;")
    file.write_text("some words")
    assert nestling("run", copy, file).failed("its first bytes are not those of the format")
    assert nestling("run", file, file).failed("is this a .nest file?")
    assert nestling("run", copy, tmp_path / "none.npy").failed("none.npy")
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((2, 1, 8, 8), np.float32))
    file.write_bytes(buffer.getvalue()[:-10])
    assert nestling("run", copy, file).failed("x.npy")


def test_run_refuses_bad_budgets(nestling, copy, digits):
    assert nestling("run", copy, digits, "--macs", 1).failed("closest", "macs")
    assert nestling("run", copy, digits, "--subnet", "ful").failed("did you mean 'full'")
    both = nestling("run", copy, digits, "--subnet", "full", "--fraction", 0.5)
    assert both.failed("--subnet", "fraction")
    assert nestling("run", copy, digits, "--fraction", 0.5, "--macs", 1).failed("macs")
    assert nestling("run", copy, digits, "--fraction", "nan").failed("nan")
    assert nestling("run", copy, digits, "--fraction", 50).failed("for 50 % write 0.5")


def test_ones_own_class_is_named(nestling, trained_own, own_file, digits):
    file = trained_own / "model.nest"
    for verb in (("run", file, digits), ("bench", file), ("profile", file)):
        assert nestling(*verb).failed("Own", "--model FILE.py:function")
    own = ("--model", f"{own_file}:make_model")
    assert nestling("run", file, digits, *own, "--fraction", 1).code == 0
    assert nestling("bench", file, *own, "--seconds", 0.01).code == 0
    assert nestling("run", file, digits, *own, "--arg", "width=8").failed("does not fit")


def test_info_takes_ones_own_class_and_checks_it(nestling, trained_own, own_file):
    file, own = trained_own / "model.nest", ("--model", f"{own_file}:make_model")
    assert nestling("info", file, *own).out == nestling("info", file).out
    assert nestling("info", file, *own, "--arg", "width=8").failed("does not fit the model")
    assert nestling("info", file, "--arg", "width=8").failed("--model FILE.py:function")
