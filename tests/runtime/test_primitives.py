import os
import subprocess
import sys

import pytest
import torch

import nestling
from nestling.runtime.primitives import KEPT, NAMES

# 441 shapes twice, each with code for a convolution and for the layouts of what it reads and writes
SHAPES = """
import sys, torch, nestling
nestling.load(sys.argv[1])
conv = torch.nn.Conv2d(16, 16, 3).eval()
def every():
    for size in range(441):
        conv(torch.zeros(1, 16, 36 + size // 21, 36 + size % 21))
with torch.inference_mode():
    every()
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON_CREATION):
        every()
"""


@pytest.fixture
def file(tmp_path):
    net = nestling.Supernet(nestling.models.mlp(6, (32,), norm=False), torch.randn(1, 6))
    path = tmp_path / "model.nest"
    nestling.make_menu(net, [net.space.spec(width=0.5)], measure=False).save(path)
    return path


@pytest.fixture
def unset(monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is as before after the test
        monkeypatch.delenv(name)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")
def test_code_for_many_shapes_is_made_once(file, unset):
    words = [sys.executable, "-c", SHAPES, str(file)]

    def made(**more):
        found = subprocess.run(words, env=os.environ | more, capture_output=True, text=True)
        assert not found.returncode, found.stderr
        return found.stdout.count("create:cache_miss"), found.stdout.count("create:cache_hit")

    misses, hits = made()
    assert (misses, hits > 1024) == (0, True)
    assert made(ONEDNN_PRIMITIVE_CACHE_CAPACITY="1024")[0] > 0  # as oneDNN has it


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_of_the_user_stays(name, file, unset, monkeypatch):
    monkeypatch.setenv(name, "2000")
    nestling.load(file)
    assert [os.environ.get(each) for each in NAMES if each != name] == [None]
    assert os.environ[name] == "2000"


@pytest.mark.parametrize("before", [None, ""])
def test_the_setting_is_made_where_there_is_none(before, file, unset, monkeypatch):
    if before is not None:
        monkeypatch.setenv(NAMES[0], before)
    nestling.load(file)
    assert os.environ[NAMES[0]] == str(KEPT)
