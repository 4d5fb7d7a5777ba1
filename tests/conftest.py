"""Fixtures of many tests."""

import importlib.util
import os
import sys
from pathlib import Path

# Small nets gain nothing from threads, and lose much where other processes want the cores. Before
# torch is imported, so that threads and processes which tests start compute with one thread too.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import HealthCheck, settings

from nestling.menu import Menu

sys.path.append(str(Path(__file__).parent))  # helpers that several files of tests share

# The same cases every time, and no statement about time: a busy machine is no failure.
settings.register_profile(
    "repeatable",
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _one_thread():
    """What a test sets, such as a command with its option for threads, ends with the test."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small():
    """The small nets and data of `small.py`."""
    path = Path(__file__).parent / "small.py"
    spec = importlib.util.spec_from_file_location("nestling_small", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["nestling_small"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def unmeasured(monkeypatch):
    """No latency is measured when a menu is made."""
    monkeypatch.setattr(Menu, "measured", lambda menu, *args, **kwargs: menu)


@pytest.fixture
def same():
    """Whether two mappings hold the same tensors, bit for bit."""

    def compare(one, two):
        return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)

    return compare
