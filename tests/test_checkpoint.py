import random

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from nestling import FileError, ModelError, container
from nestling.checkpoint import Checkpoint, RandomState, generators_of, seed_all

HEADER = {
    **{"facts": {}, "stage": 0, "epoch": 1, "batch": 0, "alone": False},
    **{"log": [], "losses": [], "optimizer": {}, "first_loss": 1.0},
    **{"gradients": ["a"], "compiled": {}, "stages": [{"batches": 3}], "changes": 0},
    **{"orders": {}, "trained in": None},
}


def draws():
    return [torch.rand(3).tolist(), random.random(), random.gauss(0, 1), np.random.randn()]


def test_random_states_come_back():
    before = RandomState.now()
    seed_all(3)
    random.gauss(0, 1)  # leaves a second number cached
    np.random.randn()
    state = RandomState.now()
    first = draws()
    draws()
    state.restore()
    assert draws() == first
    before.restore()


@pytest.mark.parametrize("seed", [-1, 1.0, "x", None, True, 2**63])
def test_seeds(seed):
    with pytest.raises(ModelError, match="seed="):
        seed_all(seed)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        torch.optim.AdamW,
        lambda p: torch.optim.Adam(p, lr=torch.tensor(0.1)),
        torch.optim.RMSprop,
    ],
)
def test_a_checkpoint_comes_back(tmp_path, make):
    weights = [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(()))]
    optimizer = make(weights)
    sum(weight.sum() for weight in weights).backward()
    optimizer.step()
    state = optimizer.state_dict()
    now = RandomState.now()
    own = {"a/b": weights[0].detach(), "c": torch.ones(0)}
    Checkpoint(HEADER, own, state, now, now, {"0": {"x.y": torch.ones(2)}}).save(tmp_path / "c")
    found = Checkpoint.load(tmp_path / "c")
    assert found.header == HEADER
    assert found.weights.keys() == own.keys()
    assert torch.equal(found.weights["a/b"], own["a/b"])
    assert torch.equal(found.results["0"]["x.y"], torch.ones(2))
    assert found.optimizer["state"].keys() == state["state"].keys()
    for index, values in state["state"].items():
        for key, value in values.items():
            assert torch.equal(torch.as_tensor(found.optimizer["state"][index][key]), value)
    again = make(weights)
    again.load_state_dict(found.optimizer)
    found.present.restore()


def test_files_that_are_no_checkpoints(tmp_path):
    path = tmp_path / "state"
    for header in ({}, {"checkpoint": 3}, {"checkpoint": 2}, {"checkpoint": 2, "run": HEADER}):
        container.write(path, header, {})
        with pytest.raises(FileError, match="checkpoint"):
            Checkpoint.load(path)
    with pytest.raises(FileError):
        Checkpoint.load(tmp_path / "none")


def test_a_checkpoint_of_an_earlier_version_says_what_to_do(tmp_path):
    container.write(tmp_path / "state", {"checkpoint": 1, "run": HEADER}, {})
    with pytest.raises(
        FileError, match=r"version 2 \(it says 1\); start .* anew, or resume it with"
    ):
        Checkpoint.load(tmp_path / "state")


@pytest.mark.parametrize(
    ("key", "value"),
    [("stages", [3]), ("stages", {}), ("compiled", None), ("changes", "x"), ("orders", 3)],
)
def test_a_header_of_other_values_is_refused(tmp_path, key, value):
    now = RandomState.now()
    state = {"state": {}, "param_groups": []}
    for header, fine in ((HEADER, True), ({**HEADER, key: value}, False)):
        Checkpoint(header, {}, state, now, now).save(tmp_path / "state")
        if fine:
            Checkpoint.load(tmp_path / "state")
        else:
            with pytest.raises(FileError, match=f"no complete checkpoint.*'{key}'"):
                Checkpoint.load(tmp_path / "state")


def test_a_loaders_own_generators_come_back():
    data = TensorDataset(torch.arange(6))
    own = torch.Generator().manual_seed(4)
    loader = DataLoader(data, batch_size=2, shuffle=True, generator=own)
    assert generators_of(loader) == {"generator": own}
    other = torch.Generator()
    sampled = DataLoader(data, batch_size=2, sampler=RandomSampler(data, generator=other))
    assert generators_of(sampled) == {"sampler.generator": other}
    batched = BatchSampler(RandomSampler(data, generator=other), 2, drop_last=False)
    found = generators_of(DataLoader(data, batch_sampler=batched))
    assert found == {"batch_sampler.sampler.generator": other}
    assert generators_of([1]) == generators_of(DataLoader(data, shuffle=True)) == {}
    state = RandomState.now(generators_of(loader))
    first = torch.cat([rows for (rows,) in loader]).tolist()
    state.restore(generators_of(loader))
    assert torch.cat([rows for (rows,) in loader]).tolist() == first
    with pytest.raises(FileError, match="random states"):
        RandomState.now().restore(generators_of(loader))
