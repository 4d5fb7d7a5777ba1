"""`nestling export`, and `nestling profile` on several backends."""

import json
import shutil

import pytest


@pytest.fixture
def copy(trained, tmp_path):
    shutil.copy(trained / "model.nest", tmp_path / "model.nest")
    return tmp_path / "model.nest"


def smallest(nestling, copy):
    return json.loads(nestling("info", copy, "--json").out)["menu"][-1]["name"]


def test_export_writes_a_file_and_its_certificate(nestling, copy):
    name = smallest(nestling, copy)
    said = nestling("export", copy, "--subnet", name, "--to", "safetensors", "--data", "digits")
    assert said.code == 0, said
    path = copy.with_name(f"model-{name}.safetensors")
    assert f"{path}: " in said.out
    assert "largest difference from the subnet: 0 " in said.out
    assert "accuracy: " in said.out
    kept = json.loads(path.with_name(f"{path.name}.certificate.json").read_text())
    assert kept["subnet"]["name"] == name
    assert kept["accuracy"]["export"] == kept["accuracy"]["subnet"]
    again = nestling("export", copy, "--subnet", name, "--to", "safetensors")
    assert again.failed("never overwrites anything", str(path))


def test_export_to_another_place_as_json(nestling, copy, tmp_path):
    place = tmp_path / "deep.safetensors"
    said = nestling("export", copy, "--to", "safetensors", "--out", place, "--json")
    found = json.loads(said.out)
    assert found["file"] == str(place)
    assert found["largest_relative_difference"] == 0
    assert place.exists()


def test_bad_exports(nestling, copy, trained_own, own_file, tmp_path):
    name = smallest(nestling, copy)
    assert nestling("export", copy, "--subnet", name[:-1] + "x").failed("no entry", "did you mean")
    assert nestling("export", copy, "--to", "onx").failed("unknown export target", "'onnx'")
    assert nestling("export", copy, "--out", tmp_path / "a.pt2").failed("ends in .onnx")
    assert nestling("export", copy, "--to", "safetensors", "--out", "/proc/a.safetensors").failed(
        "choose a folder"
    )
    assert nestling("export", copy, "--to", "safetensors", "--data", "digts").failed(
        "did you mean 'digits'"
    )
    own = trained_own / "model.nest"
    assert nestling("export", own, "--to", "safetensors").failed("--model FILE.py:function")
    assert nestling(
        "export", own, "--to", "safetensors", "--out", tmp_path / "own",
        "--model", f"{own_file}:make_model", "--arg", "width=16",
    ).code == 0  # fmt: skip
    assert (tmp_path / "own.safetensors").exists()


def test_profile_on_backends(nestling, copy):
    said = nestling(
        "profile", copy, "--backend", "packed", "--backend", "eager", "--seconds", 0.01,
        "--batch", 2, "--threads", 1,
    )  # fmt: skip
    assert said.code == 0, said
    assert "not available here" in said.out
    tables = json.loads(copy.with_name("model.profile.json").read_text())["tables"]
    assert [each["key"]["backend"] for each in tables] == ["packed", "eager"]
    assert tables[0]["upkeep"]["bytes"] > tables[1]["upkeep"]["bytes"] == 0
    told = nestling("info", copy)
    assert "ms b2 t1 packed" in told.out


def test_bad_profiles(nestling, copy, monkeypatch):
    assert nestling("profile", copy, "--backend", "egaer").failed("did you mean 'eager'")
    assert nestling("profile", copy, "--backend", "auto").failed("auto is the fastest")
    from nestling import backends

    monkeypatch.setattr(backends, "absent", lambda packages: list(packages)[:1])
    assert nestling("profile", copy, "--backend", "onnxruntime").failed(
        "pip install 'nestling[onnx]'"
    )
    assert not copy.with_name("model.profile.json").exists()
