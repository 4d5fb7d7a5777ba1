"""The shelf, with backends made for the test: what is held, what goes first, what is left out."""

import os

import pytest
import torch

from nestling import BudgetError, backends
from nestling.backends import shelf as shelves
from nestling.backends.shelf import Shelf

SIZE = 1000


@pytest.fixture
def made(monkeypatch):
    """Entries that were made, in order; each adds SIZE bytes to what the process has."""
    order = []

    def prepare(subject):
        if subject.name == "bad":
            raise RuntimeError("no such op")
        order.append(subject.name)
        return lambda *args: subject.name if not args else args[0] + (subject.name == "wrong")

    def find(name):
        bound = {"engine": "threads", "code": "batch"}.get(name, "")
        return backends.Backend(name, lambda subject: None, prepare, True, bound, "", ())

    monkeypatch.setattr(backends, "find", find)
    monkeypatch.setattr(shelves, "resident_bytes", lambda: SIZE * len(order))
    monkeypatch.setattr(shelves, "_weights", lambda module: 0)
    return order


@pytest.fixture
def shelf(small):
    net = small.supernet()
    return lambda cap=None: Shelf(net, lambda name: torch.nn.Identity(), cap)


def held(shelf):
    return [each.place.entry for each in shelf.ready]


def test_what_was_used_last_stays(made, shelf):
    found = shelf(2.5 * SIZE)
    for name in ("a", "b"):
        assert found.prepare(name, "engine", 1, 1).bytes == SIZE
    assert found.find("a", "engine", 1, 1)() == "a"
    assert found.find("c", "engine", 1, 1)() == "c"
    assert held(found) == ["a", "c"]
    assert found.bytes == 2 * SIZE
    assert found.find("b", "engine", 1, 1)() == "b"
    assert held(found) == ["c", "b"]
    assert made == ["a", "b", "c", "b"]


def test_without_a_cap_all_stay_and_are_made_once(made, shelf):
    found = shelf()
    for _ in range(2):
        for name in "abcd":
            assert found.find(name, "engine", 1, 1)() == name
    assert made == list("abcd")


def test_what_is_larger_than_the_cap_is_left_out(made, shelf):
    found = shelf(SIZE / 2)
    assert found.find("a", "engine", 1, 1) is None
    assert "takes 1000 bytes, and the cap is 500" in found.left_out["engine", "a"]
    assert found.find("a", "engine", 1, 1) is None
    assert made == ["a"]  # it is not tried at every call


def test_one_that_fails_leaves_the_others(made, shelf):
    found = shelf()
    assert found.find("bad", "engine", 1, 1) is None
    assert found.find("a", "engine", 1, 1)() == "a"
    assert found.left_out == {("engine", "bad"): "engine fails on 'bad': RuntimeError: no such op"}
    assert not found.runs("bad", "engine", 1, 1)
    assert found.runs("a", "engine", 1, 1)


def test_an_engine_that_computes_something_else_is_left_out(made, shelf):
    found = shelf()
    assert found.find("wrong", "engine", 1, 1) is None
    assert "within 0.0001 of the largest output" in found.left_out["engine", "wrong"]
    assert found.find("right", "engine", 1, 1)() == "right"


def test_what_an_entry_is_bound_to(made, shelf):
    found = shelf()
    for batch, threads in ((1, 1), (8, 1), (8, 2)):
        found.find("a", "engine", batch, threads)
    assert made == ["a", "a"]  # once for each number of threads
    assert found.find("a", "code", 1, 1) is None  # never made during a call
    assert not found.runs("a", "code", 1, 1)
    found.prepare("a", "code", 1, 1)
    assert found.runs("a", "code", 1, 1)
    assert found.find("a", "code", 1, 1)() == "a"
    assert found.find("a", "code", 2, 1) is None
    assert found.find("a", "code", 1, 2) is None


def test_changes_are_counted(made, shelf):
    found = shelf()
    found.find("a", "engine", 1, 1)
    before = found.changes
    found.find("a", "engine", 1, 1)
    assert found.changes == before
    found.find("b", "engine", 1, 1)
    assert found.changes > before


def test_a_fork_makes_its_own(made, shelf, monkeypatch):
    found = shelf()
    found.find("a", "engine", 1, 1)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert found.find("a", "engine", 1, 1)() == "a"
    assert made == ["a", "a"]
    assert held(found) == ["a"]


def test_a_real_fork_answers_and_conversions_are_gone_in_the_end(small):
    net = small.supernet()
    subnet = net.subnet(net.space.full).eval()
    found = Shelf(net, lambda name: subnet)
    images = torch.randn(2, 1, 8, 8)
    assert found.prepare("full", "onnxruntime", 2, 1).bytes >= 4 * sum(
        parameter.numel() for parameter in subnet.parameters()
    )
    wanted = found.find("full", "onnxruntime", 2, 1)(images)
    process = os.fork()
    if not process:
        same = torch.equal(found.find("full", "onnxruntime", 2, 1)(images), wanted)
        os._exit(0 if same else 1)
    assert os.waitpid(process, 0)[1] == 0
    assert found.find("full", "onnxruntime", 2, 1)(images).equal(wanted)
    folder = found._conversions._folder
    found.prepare("full", "onnxruntime", 2, 2)
    assert [file.name for file in folder.iterdir()] == ["0.onnx"]  # converted once
    del found
    assert not folder.exists()


@pytest.mark.parametrize("cap", [-1, "1 GB", float("nan"), True])
def test_bad_caps(shelf, cap):
    with pytest.raises(BudgetError, match="memory_cap= is a number of bytes"):
        shelf(cap)
