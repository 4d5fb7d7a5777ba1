import time

import pytest
import torch

from nestling.stopwatch import Stopwatch


@pytest.fixture
def now(monkeypatch):
    """Seconds of the processor and of the wall clock, which tests set."""
    found = {"processor": 0.0, "wall": 0.0, "waits": 0}
    monkeypatch.setattr(time, "process_time", lambda: found["processor"])
    monkeypatch.setattr(time, "perf_counter", lambda: found["wall"])

    def synchronize(device):
        found["waits"] += 1
        found["wall"] += 10.0  # what the device still has to do

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    return found


def test_processor_time_on_a_cpu(now):
    watch = Stopwatch(torch.device("cpu"))
    now["processor"], now["wall"] = 2.0, 7.0
    watch.spent("one")
    now["processor"] = 2.5
    watch.spent("two")
    now["processor"] = 3.5
    watch.spent("one")
    assert watch.seconds == {"one": 3.0, "two": 0.5}
    assert not now["waits"]


def test_wall_clock_on_a_gpu_when_it_is_done(now):
    watch = Stopwatch(torch.device("cuda"))
    now["processor"], now["wall"] = 2.0, 17.0
    watch.spent("one")
    assert watch.seconds == {"one": 17.0}
    assert now["waits"] == 2


def test_a_gpu_that_has_failed_hides_no_error(now, monkeypatch):
    watch = Stopwatch(torch.device("cuda"))

    def synchronize(device):
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    now["wall"] += 1.0
    watch.spent("one")
    assert watch.seconds == {"one": 1.0}


def test_a_block_is_counted_apart_also_where_it_fails(now):
    watch = Stopwatch(torch.device("cpu"))
    now["processor"] = 1.0

    def compile():
        with watch.apart("compiling"):
            now["processor"] = 5.0
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        compile()
    now["processor"] = 7.0
    watch.spent("stage")
    assert watch.seconds == {"compiling": 4.0, "stage": 3.0}
