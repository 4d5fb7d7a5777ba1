import pytest
import torch

from nestling import DataError, finiteness
from nestling.finiteness import Finiteness

TRUE, FALSE = torch.tensor(True), torch.tensor(False)


def error():
    return DataError("not finite")


def test_only_a_gpu_runs_behind():
    kinds = ("cpu", "cuda", "cuda:1", "meta")
    assert [finiteness.runs_behind(torch.device(kind)) for kind in kinds] == [
        False, True, True, False,
    ]  # fmt: skip


def test_a_flag_on_a_cpu_is_looked_at_when_it_comes():
    finite = Finiteness()
    finite.require(TRUE, error)
    with pytest.raises(DataError, match=r"^not finite$"):
        finite.require(FALSE, error)
    finite.look()  # it is not kept


def test_flags_on_a_gpu_are_looked_at_together(monkeypatch):
    monkeypatch.setattr(finiteness, "runs_behind", lambda device: True)
    monkeypatch.setattr(finiteness, "EVERY", 3)
    finite = Finiteness()
    for _ in range(4):
        finite.require(TRUE, error)
        finite.step()
    finite.require(FALSE, lambda: DataError("first"))
    finite.require(FALSE, error)
    finite.step()
    with pytest.raises(DataError, match=r"first .*every 3 steps"):
        finite.step()
    finite.look()  # nothing is left
