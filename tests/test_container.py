import contextlib
import errno
import hashlib
import json
import math
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from nestling import container, files, filetable
from nestling.errors import FileError

HEADER = {"version": 1, "name": "Zoë \U0001f426", "counts": [4, 8], "loss": 0.1, "none": None}


def some_tensors():
    torch.manual_seed(0)
    return {
        "conv.weight": torch.randn(3, 2, 3, 3),
        "steps": torch.tensor(7),
        "empty": torch.empty(0, 5),
        "mask": torch.tensor([True, False, True]),
        "half": torch.randn(5).bfloat16(),
    }


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "model.nest"
    container.write(path, HEADER, some_tensors())
    return path.read_bytes()


def refused(path, *words, call=container.read):
    with pytest.raises(FileError) as caught:
        call(path)
    message = str(caught.value)
    for word in (str(path), ";", *words):
        assert word in message
    return message


def forge(path, table, data=b"", header="{}", seal=True):
    """Write a file of any table with digests that fit, as an attacker would."""
    metadata = {
        "nestling": header,
        "data_sha256": hashlib.sha256(data).hexdigest(),
        "sha256": "0" * 64,
    }
    raw = json.dumps({"__metadata__": metadata, **table}).encode()
    if seal:
        metadata["sha256"] = hashlib.sha256(raw).hexdigest()
        raw = json.dumps({"__metadata__": metadata, **table}).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def slot(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


# ---------------------------------------------------------------------------- round trips


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "model.nest"
    container.write(path, HEADER, some_tensors())
    header, tensors = container.read(path)
    assert header == HEADER == container.read_header(path)
    assert set(tensors) == set(some_tensors())
    for name, tensor in some_tensors().items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert os.listdir(tmp_path) == ["model.nest"]


@pytest.mark.parametrize("dtype", filetable.DTYPES.values(), ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 4)], ids=str)
def test_every_dtype_bit_for_bit(tmp_path, dtype, shape):
    count = math.prod(shape) * dtype.itemsize
    raw = torch.randint(0, 2, (count,), dtype=torch.uint8)
    tensor = raw.view(dtype).reshape(shape)
    container.write(tmp_path / "a", {}, {"x": tensor})
    found = container.read(tmp_path / "a")[1]["x"]
    assert found.shape == tensor.shape
    assert found.dtype == dtype
    assert torch.equal(found.reshape(-1).view(torch.uint8), raw)


def test_any_safetensors_reader_opens_it(tmp_path):
    container.write(tmp_path / "a.safetensors", HEADER, some_tensors())
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["nestling"]) == HEADER
        assert set(file.keys()) == set(some_tensors())
        for name, tensor in some_tensors().items():
            assert torch.equal(file.get_tensor(name), tensor)


def test_no_tensors_and_no_header(tmp_path):
    container.write(tmp_path / "a", {}, {})
    assert container.read(tmp_path / "a") == ({}, {})


def test_views_are_saved_alone(tmp_path):
    base = torch.arange(1_000_000.0).reshape(1000, 1000)
    views = {"block": base[:2, :3], "turned": base.T[:2, :2], "tail": base[-1, -4:]}
    container.write(tmp_path / "a", {}, {**views, "spread": torch.ones(1).expand(4)})
    assert (tmp_path / "a").stat().st_size < 2000
    tensors = container.read(tmp_path / "a")[1]
    for name, view in views.items():
        assert torch.equal(tensors[name], view)
        assert tensors[name].untyped_storage().nbytes() == view.numel() * 4
    assert torch.equal(tensors["spread"], torch.ones(4))


def test_conjugates_parameters_and_shared_tensors(tmp_path):
    weight = torch.nn.Parameter(torch.randn(3))
    wave = torch.complex(torch.randn(3), torch.randn(3))
    given_ = {
        "a": weight,
        "b": weight,
        "conj": wave.conj(),
        "minus": torch._neg_view(torch.randn(3)),
    }
    container.write(tmp_path / "a", {}, given_)
    tensors = container.read(tmp_path / "a")[1]
    for name, tensor in given_.items():
        assert torch.equal(tensors[name], tensor.detach())
    tensors["a"].zero_()
    assert torch.equal(tensors["b"], weight.detach())
    assert not tensors["a"].requires_grad


def test_writing_is_deterministic(tmp_path):
    container.write(tmp_path / "a", HEADER, some_tensors())
    container.write(tmp_path / "b", HEADER, dict(reversed(some_tensors().items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_loading_ignores_the_default_device(tmp_path, sound):
    (tmp_path / "a").write_bytes(sound)
    with torch.device("meta"):
        tensors = container.read(tmp_path / "a")[1]
    assert tensors["steps"].item() == 7


def test_a_header_of_sixty_four_zeros_and_its_like(tmp_path):
    header = {"id": "0" * 64, "text": '"}]\\\n\x01 \\ud800'}
    container.write(tmp_path / "a", header, {"0" * 64: torch.ones(1)})
    assert container.read(tmp_path / "a")[0] == header


# ---------------------------------------------------------------------------- damage

FUZZ = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@FUZZ
@given(st.data())
def test_any_altered_byte_is_noticed(tmp_path, sound, data):
    raw = bytearray(sound)
    at = data.draw(st.integers(0, len(raw) - 1), "at")
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "remove", "append"]), "kind")
    if kind == "flip":
        raw[at] ^= data.draw(st.integers(1, 255), "bits")
    elif kind == "cut":
        del raw[at:]
    elif kind == "insert":
        raw[at:at] = data.draw(st.binary(min_size=1, max_size=9), "bytes")
    elif kind == "remove":
        del raw[at : at + data.draw(st.integers(1, 9), "count")]
    else:
        raw += data.draw(st.binary(min_size=1, max_size=9), "bytes")
    path = tmp_path / "a"
    path.write_bytes(raw)
    if raw == sound:
        return
    refused(path)
    with contextlib.suppress(FileError):
        assert container.read_header(path) == HEADER


@FUZZ
@given(st.binary(max_size=64))
def test_any_bytes_are_refused(tmp_path, raw):
    (tmp_path / "a").write_bytes(raw)
    refused(tmp_path / "a")


TEXT = st.text(st.characters(codec="utf-8"), max_size=3)
NUMBER = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
)
ANY = NUMBER | TEXT | st.lists(NUMBER, max_size=3) | st.dictionaries(TEXT, NUMBER, max_size=3)


@FUZZ
@given(st.data())
def test_altered_tables_with_fitting_digests(tmp_path, data):
    """An attacker can compute digests; the sizes must still be checked before they are used."""
    odd = (
        st.integers(-(2**70), 2**70)
        | st.sampled_from([2**40 - 1, 2**31, 2**32, 0, -1, 1, 4, 8])
        | ANY
    )
    table = {}
    for name in data.draw(st.lists(st.text(max_size=3), unique=True, max_size=3)):
        table[name] = {
            "dtype": data.draw(st.sampled_from(["F32", "U8", "F4", "BOOL"]) | ANY),
            "shape": data.draw(st.lists(odd, max_size=4) | ANY),
            "data_offsets": data.draw(st.lists(odd, min_size=2, max_size=2) | ANY),
        }
        if data.draw(st.booleans()):
            table[name][data.draw(st.text(max_size=3))] = data.draw(ANY)
    path = forge(tmp_path / "a", table, data.draw(st.binary(max_size=16)))
    try:
        found = container.read(path)[1]
    except FileError:
        return
    assert set(found) == set(table)
    for name, tensor in found.items():
        assert list(tensor.shape) == table[name]["shape"]


def test_every_flipped_bit_of_the_header_is_noticed_without_the_tensors(tmp_path, sound):
    size = 8 + int.from_bytes(sound[:8], "little")
    for at in range(size):
        raw = bytearray(sound)
        raw[at] ^= 1 << (at % 8)
        (tmp_path / "a").write_bytes(raw)
        refused(tmp_path / "a", call=container.read_header)


BIG = [2**39, 2**39, 2**39]
HOSTILE = {
    "dtype": ({"x": slot(dtype="F4")}, b"abcd", "dtype"),
    "dtype type": ({"x": slot(dtype=["F32"])}, b"abcd", "dtype"),
    "negative dim": ({"x": slot(shape=(-1,))}, b"abcd", "integers of 0"),
    "two negative dims": ({"x": slot(shape=(-1, -1))}, b"abcd", "integers of 0"),
    "float dim": ({"x": slot(shape=(1.0,))}, b"abcd", "integers of 0"),
    "bool dim": ({"x": slot(shape=(True,))}, b"abcd", "integers of 0"),
    "huge dim": ({"x": slot(shape=(2**40,))}, b"abcd", "integers of 0"),
    "huge product": ({"x": slot(shape=BIG)}, b"abcd", "too large"),
    "huge beside zero": ({"x": slot(shape=[0, *BIG], offsets=(0, 0))}, b"", "too large"),
    "rank": ({"x": slot(shape=[1] * 65)}, b"abcd", "at most 64"),
    "claims more than is there": ({"x": slot(shape=(2**38,), offsets=(0, 2**40))}, b"abcd", "cut"),
    "span": ({"x": slot(shape=(2,))}, b"abcd", "takes 8 bytes"),
    "reversed": ({"x": slot(shape=(0,), offsets=(4, 0))}, b"abcd", "takes 0 bytes"),
    "negative offset": ({"x": slot(offsets=(-4, 0))}, b"abcd", "one after another"),
    "starts late": ({"x": slot(offsets=(4, 8))}, b"abcdefgh", "one after another"),
    "overlap": ({"x": slot(), "y": slot()}, b"abcd", "one after another"),
    "gap": ({"x": slot(), "y": slot(offsets=(8, 12))}, b"abcdefghijkl", "one after another"),
    "rest": ({"x": slot()}, b"abcdef", "something was added"),
    "three offsets": ({"x": slot(offsets=(0, 4, 4))}, b"abcd", "two integers"),
    "float offsets": ({"x": slot(offsets=(0.0, 4.0))}, b"abcd", "two integers"),
    "no entry": ({"x": 3}, b"", "must have a dtype"),
    "extra field": ({"x": {**slot(), "code": "import os"}}, b"abcd", "must have a dtype"),
    "long name": ({"x" * 1000: slot()}, b"abcd", "fewer than 1000"),
    "half a character": ({"\ud800": slot()}, b"abcd", "surrogate"),
    "odd truth": ({"x": slot(dtype="BOOL", shape=(4,))}, b"abcd", "0 or 1"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_tables(tmp_path, case):
    table, data, word = HOSTILE[case]
    refused(forge(tmp_path / "a", table, data), word)


def test_too_many_tensors(tmp_path, monkeypatch):
    monkeypatch.setattr(filetable, "MAX_TENSORS", 2)
    empty = slot(shape=(0,), offsets=(0, 0))
    refused(forge(tmp_path / "a", {"a": empty, "b": empty, "c": empty}), "at most 2 tensors")
    assert len(container.read(forge(tmp_path / "a", {"a": empty, "b": empty}))[1]) == 2


@pytest.mark.parametrize(
    ("header", "word"),
    [
        ("[1]", "must be a mapping"),
        ("", "not valid JSON"),
        ('{"a": NaN}', "finite"),
        ('{"a": -Infinity}', "finite"),
        ('{"a": 1e999}', "finite"),
        ('{"a": 1, "a": 2}', "appears twice"),
        ('{"a": {"b": 1, "b": 1}}', "appears twice"),
        ('{"a": ' + "[" * 64 + "]" * 64 + "}", "nested at most 64"),
        ("[" * 1_000_000, "nested at most 64"),
        ('{"a": "\\ud800"}', "surrogate"),
        ('{"a": ' + "1" * 10_000 + "}", ""),
    ],
)
def test_hostile_headers(tmp_path, header, word):
    refused(forge(tmp_path / "a", {}, header=header), word)


def test_header_length_is_bounded(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    refused(path, "at most 67108864")
    path.write_bytes(struct.pack("<Q", 100) + b"{}")
    refused(path, "cut short", "100")
    path.write_bytes(struct.pack("<Q", 2) + b"[]")
    refused(path, "begins with")


def test_wrong_files(tmp_path):
    path = tmp_path / "a"
    refused(path, "No such file", "check the path")
    refused(tmp_path, "a folder")
    path.write_bytes(b"")
    refused(path, "this one has 0")
    path.write_text("import nestling\n" * 10)
    refused(path, "looks like text")
    path.write_bytes(pickle.dumps({"a": "x" * 100}))
    refused(path, "pickle")
    torch.save({"a": torch.ones(3)}, path)
    refused(path, "torch.save")
    save_file({"a": torch.ones(3)}, path)
    refused(path, "not one that Nestling saved")
    save_file({"a": torch.ones(3)}, path, metadata={"nestling": "{}"})
    refused(path, "64 hexadecimal digits")
    os.remove(path)
    os.mkfifo(path)
    refused(path, "a pipe")
    with pytest.raises(FileError, match="null"):
        container.read("a\0b")


def test_unsealed_table_is_refused(tmp_path):
    refused(forge(tmp_path / "a", {"x": slot()}, b"abcd", seal=False), "altered")


def test_a_file_that_does_not_fit_in_memory(tmp_path, monkeypatch, sound):
    (tmp_path / "a").write_bytes(sound)

    def no_memory(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nstack ...")

    monkeypatch.setattr(torch, "empty", no_memory)
    message = refused(tmp_path / "a", "does not fit in memory", "can't allocate")
    assert "stack" not in message


# ---------------------------------------------------------------------------- what cannot be saved


@pytest.mark.parametrize(
    ("header", "word"),
    [
        ({"a": math.nan}, "finite"),
        ({"a": [math.inf]}, "finite"),
        ({1: "a"}, "must be text"),
        ({"a": {2: "b"}}, "must be text"),
        ({"a": torch.ones(1)}, "plain JSON"),
        ({"a": {1, 2}}, "plain JSON"),
        ({"a": np.int64(1)}, "plain JSON"),
        ({"a": "\ud800"}, "surrogate"),
    ],
)
def test_headers_that_json_cannot_hold(tmp_path, header, word):
    with pytest.raises(FileError, match=word):
        container.write(tmp_path / "a", header, {})
    assert os.listdir(tmp_path) == []


def test_a_header_that_holds_itself(tmp_path):
    header = {}
    header["me"] = header
    with pytest.raises(FileError, match="64 deep"):
        container.write(tmp_path / "a", header, {})


def test_depth_is_the_same_both_ways(tmp_path):
    value = []
    for _ in range(62):
        value = [value]
    container.write(tmp_path / "a", {"x": value}, {})  # 64 with the header itself
    assert container.read_header(tmp_path / "a") == {"x": value}
    with pytest.raises(FileError, match="64 deep"):
        container.write(tmp_path / "a", {"x": [value]}, {})


@pytest.mark.parametrize(
    ("tensors", "word"),
    [
        ({"x": [1, 2]}, "not a list"),
        ({3: torch.ones(1)}, "a tensor name"),
        ({"__metadata__": torch.ones(1)}, "a tensor name"),
        ({"x" * 1000: torch.ones(1)}, "fewer than 1000"),
        ({"\ud800": torch.ones(1)}, "surrogate"),
        ({"x": torch.ones(2, device="meta")}, "meta"),
        ({"x": torch.eye(2).to_sparse()}, "sparse"),
        ({"x": torch.ones(2, dtype=torch.complex128)}, "complex128"),
    ],
)
def test_tensors_that_cannot_be_saved(tmp_path, tensors, word):
    with pytest.raises(FileError, match=word):
        container.write(tmp_path / "a", {}, tensors)
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------------------- writing safely


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "cure"),
    [(errno.ENOSPC, "free some space"), (errno.EACCES, "may write to"), (errno.EIO, "another")],
)
def test_a_failed_write_leaves_the_earlier_file(tmp_path, monkeypatch, step, number, cure):
    path = tmp_path / "a"
    path.write_bytes(b"earlier")

    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, step, fail)
    with pytest.raises(FileError) as caught:
        container.write(path, HEADER, some_tensors())
    monkeypatch.undo()
    assert str(path) in str(caught.value)
    assert os.strerror(number) in str(caught.value)
    assert cure in str(caught.value)
    assert path.read_bytes() == b"earlier"
    assert os.listdir(tmp_path) == ["a"]
