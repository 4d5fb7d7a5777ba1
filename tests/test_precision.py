import pytest
import torch
from torch import nn

from nestling import ModelError
from nestling.precision import choose, fast_bfloat16

CPU = torch.device("cpu")
CONV, LINEAR = nn.Conv2d(1, 1, 1), nn.Linear(1, 1)


def test_names():
    assert str(choose("float32", CPU, CONV)) == "float32, channels-last"
    assert str(choose("bfloat16", CPU, LINEAR)) == "bfloat16"
    auto = choose("auto", CPU, LINEAR)
    assert auto.mixed == fast_bfloat16(CPU)
    for name in ("float23", 16, None):
        with pytest.raises(ModelError, match="precision="):
            choose(name, CPU, LINEAR)


def test_autocast_is_on_only_where_it_is_asked_for():
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with choose(name, CPU, LINEAR).autocast(CPU):
            assert LINEAR(torch.ones(1, 1)).dtype == dtype


def test_other_weights_train_in_their_own_dtype():
    double = nn.Linear(1, 1).double()
    assert choose("auto", CPU, double).dtype == torch.float64
    assert not choose("auto", CPU, double).mixed
    with pytest.raises(ModelError, match="float32 weights"):
        choose("bfloat16", CPU, double)


def test_volumes_stay_as_they_are():
    both = nn.Sequential(nn.Conv3d(1, 1, 1), nn.Conv2d(1, 1, 1))
    assert choose("float32", CPU, both).memory_format == torch.contiguous_format
    assert choose("float32", CPU, CONV).memory_format == torch.channels_last
