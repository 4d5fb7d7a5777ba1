import errno
import itertools
import os
import random
import signal
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import nestling
from nestling import DataError, FileError, ModelError, container, files
from nestling.checkpoint import Checkpoint
from nestling.interruption import Interrupted
from nestling.optimizers import cosine, default_optimizer
from nestling.training import Run
from nestling.weights import cloned, tensors_of

pytestmark = pytest.mark.usefixtures("unmeasured")


def fit(net, train, val=None, **options):
    return nestling.fit(net, train, val, progress=False, **options)


# -- learning -------------------------------------------------------------------------------------


def test_the_loss_falls_and_the_menu_is_accurate(small):
    net = small.supernet()
    run = Run(net, small.batches(), 12)
    run.train_stage(nestling.sandwich)
    losses = [row["loss"] for row in run.log]
    assert len(losses) == 12
    assert losses[-1] < 0.6 * losses[0]
    menu = fit(small.supernet(), small.batches(), small.batches(seed=1), epochs=12)
    assert menu.entries[0].accuracy > 0.8


def test_weights_equal_those_of_a_plain_loop(small):
    """One stage with the full net alone is ordinary training."""

    def full(net):
        yield net.pooled(net.space.full).train(), F.cross_entropy

    net = small.supernet()
    run = Run(net, small.batches(), 2, optimizer=small.sgd, precision="float32")
    run.train_stage(full)
    model = small.seeded(small.ConvNet).to(memory_format=torch.channels_last)
    optimizer, step = small.sgd(model.parameters()), 0
    for _ in range(2):
        for images, labels in small.batches():
            optimizer.param_groups[0]["lr"] = 0.05 * cosine(step, 6)
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    for name, own in model.named_parameters():
        torch.testing.assert_close(net.state_dict()[name], own.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("summed", [True, False])
def test_a_step_for_the_sum_of_the_passes_or_one_after_each(small, summed):
    def both(net):
        for width in (1.0, 0.5):
            yield net.pooled(net.space.spec(width=width)).train(), F.cross_entropy

    net, other = small.supernet(), small.supernet()
    run = Run(net, small.batches(), 1, optimizer=small.sgd, precision="float32")
    run.train_stage(both, summed=summed)
    optimizer = small.sgd(other.parameters())
    for step, (images, labels) in enumerate(small.batches()):
        optimizer.param_groups[0]["lr"] = 0.05 * cosine(step, len(small.batches()))
        for number, width in enumerate((1.0, 0.5)):
            subnet = other.subnet(other.space.spec(width=width)).train()
            F.cross_entropy(subnet(images), labels).backward()
            if number or not summed:
                optimizer.step()
                optimizer.zero_grad(set_to_none=False)
    for name, own in other.named_parameters():
        torch.testing.assert_close(net.state_dict()[name], own.detach(), rtol=1e-5, atol=1e-6)


def test_gradients_that_lie_around_are_not_used(small, same):
    nets = [small.supernet(), small.supernet()]
    small.seeded(nn.Linear, 1, 1)
    subnet = nets[1].subnet(nets[1].space.full)
    subnet(torch.ones(2, 1, 8, 8)).sum().backward()
    for net in nets:
        net.load_state_dict(nets[0].state_dict())
    nets[1].load_state_dict(small.supernet().state_dict())
    for net in nets:
        fit(net, small.batches(), epochs=1)
    assert same(dict(nets[0].named_parameters()), dict(nets[1].named_parameters()))


def test_cosine_rises_then_falls_to_zero():
    factors = [cosine(step, 100) for step in range(101)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(factors[5:]))
    assert factors[100] == pytest.approx(0)
    assert cosine(150, 100) == pytest.approx(0)  # a loader that yields more than its length
    assert cosine(0, 1) == 1.0


def test_decay_leaves_biases_norms_and_depthwise_weights_alone():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 1))
    decayed, plain = default_optimizer(model).param_groups
    assert [p.shape for p in decayed["params"]] == [model[2].weight.shape]
    assert decayed["weight_decay"] == 5e-4
    assert plain["weight_decay"] == 0
    assert len(plain["params"]) == 5


# -- resuming -------------------------------------------------------------------------------------


def equal_runs(one, two, same):
    """The last checkpoints hold the same bytes: weights, optimiser, random states, log."""
    (net1, menu1, state1), (net2, menu2, state2) = one, two
    assert state1.read_bytes() == state2.read_bytes()
    assert same(tensors_of(net1.model), tensors_of(net2.model))
    assert menu1.entries == menu2.entries
    for mine, theirs in zip(menu1, menu2, strict=True):
        assert same(dict(mine.private), dict(theirs.private))
    assert menu1.identity() == menu2.identity()


@pytest.fixture(scope="module")
def unbroken(small, tmp_path_factory):
    made = {}

    def run(kind):
        if kind not in made:
            state = tmp_path_factory.mktemp("unbroken") / "state"
            made[kind] = (*small.train(kind, state), state)
        return made[kind]

    return run


@pytest.mark.parametrize("kill", [2, 3, 7], ids=["middle", "end of epoch", "last epoch"])
@pytest.mark.parametrize(
    "kind",
    [
        *("batches-sgd", "loader-adamw", "noisy-sgd"),
        *("list-dropout", "loader-individual", "batches-individual"),
        *("skipping-uniform", "skipping-individual", "own-generator", "own-sampler"),
    ],
)
def test_resume_is_bit_equal(small, tmp_path, same, unbroken, kind, kill):
    state = tmp_path / "state"
    with pytest.raises(Interrupted, match="goes on from"):
        small.train(kind, state, kill=kill)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)  # a new process has other states
    net, menu = small.train(kind, state, resume=True)
    equal_runs(unbroken(kind), (net, menu, state), same)


def test_resume_in_the_second_stage_and_twice(small, tmp_path, same, unbroken):
    state = tmp_path / "state"
    for resume in (False, True):  # in the third epoch of the first net, the second of the other
        with pytest.raises(Interrupted):
            small.train("loader-individual", state, resume=resume, kill=5 if resume else 8)
    torch.manual_seed(9)
    net, menu = small.train("loader-individual", state, resume=True)
    equal_runs(unbroken("loader-individual"), (net, menu, state), same)


@pytest.mark.parametrize("kind", ["batches-sgd", "loader-adamw", "loader-individual"])
def test_resume_of_a_finished_training_makes_the_same_menu(small, tmp_path, same, unbroken, kind):
    state = tmp_path / "state"
    state.write_bytes(unbroken(kind)[2].read_bytes())
    torch.manual_seed(7)
    net, menu = small.train(kind, state, resume=True)
    equal_runs(unbroken(kind), (net, menu, state), same)


@pytest.mark.parametrize(
    ("kind", "kill", "number"),
    [("loader-adamw", 5, signal.SIGTERM), ("list-dropout", 5, signal.SIGKILL)],
    ids=["SIGTERM", "SIGKILL"],
)
def test_a_killed_process_goes_on(small, tmp_path, same, kind, kill, number, unbroken):
    command = [sys.executable, small.__file__, kind, str(tmp_path), str(kill), str(int(number))]
    first = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    if number == signal.SIGKILL:
        assert first.returncode == -signal.SIGKILL
    else:
        assert first.returncode == 130
        assert "stopped" in first.stderr
        assert "Traceback" not in first.stderr
    assert (tmp_path / "state").exists()
    state = tmp_path / "state"
    net, menu = small.train(kind, state, resume=True)
    equal_runs(unbroken(kind), (net, menu, state), same)


def test_ctrl_c_is_as_good_as_sigterm(small, tmp_path, same, unbroken):
    state = tmp_path / "state"
    with pytest.raises(Interrupted, match="goes on from"):
        small.train("batches-sgd", state, kill=5, number=signal.SIGINT)
    net, menu = small.train("batches-sgd", state, resume=True)
    equal_runs(unbroken("batches-sgd"), (net, menu, state), same)


def test_without_a_checkpoint_an_interrupt_says_so(small):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="nothing was saved"):
        small.train("list-dropout", None, kill=2)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epochs": 4}, "epochs=3 \\(now 4\\)"),
        ({"seed": 1}, "seed=0 \\(now 1\\)"),
        ({"low": 0.5}, "options"),
        ({"optimizer": lambda p: torch.optim.AdamW(p, lr=0.02)}, "groups"),
        ({"optimizer": lambda p: torch.optim.SGD(p, lr=0.01)}, "AdamW"),
        ({"method": "individual"}, "method='uniform'"),
        ({"precision": "float32"}, "precision"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(small, tmp_path, unbroken, change, named):
    kind = "loader-adamw"
    state = tmp_path / "state"
    state.write_bytes(unbroken(kind)[2].read_bytes())
    settings = Checkpoint.load(state).header["facts"]["precision"]
    if settings == "float32, channels-last" and "precision" in change:
        change = {"precision": "bfloat16"}
    with pytest.raises(FileError, match=named):
        small.train(kind, state, resume=True, **change)


def test_a_checkpoint_of_another_model_changes_nothing(small, tmp_path, same, unbroken):
    state = tmp_path / "state"
    state.write_bytes(unbroken("list-dropout")[2].read_bytes())
    options = {"epochs": 3, "checkpoint": state, "resume": True}
    wide = small.supernet(small.ConvNet(width=16))
    before = cloned(tensors_of(wide.model))
    with pytest.raises(FileError, match="axes="):
        fit(wide, small.batches(), loss=F.cross_entropy, **options)
    found = Checkpoint.load(state)
    found.weights.pop("conv1.weight")
    found.save(state)
    net = small.supernet()
    weights = cloned(tensors_of(net.model))
    with pytest.raises(FileError, match=r"another model.*conv1\.weight"):
        fit(net, small.batches(), loss=F.cross_entropy, **options)
    assert same(weights, tensors_of(net.model))
    assert same(before, tensors_of(wide.model))


def test_a_damaged_checkpoint_is_refused(small, tmp_path, unbroken):
    state = tmp_path / "state"
    data = bytearray(unbroken("list-dropout")[2].read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(data)
    with pytest.raises(FileError):
        small.train("list-dropout", state, resume=True)
    header, tensors = container.read(unbroken("list-dropout")[2])
    for key, value in [("stage", "x"), ("losses", 3), ("batch", None)]:
        container.write(state, {**header, "run": {**header["run"], key: value}}, tensors)
        with pytest.raises(FileError, match="no complete checkpoint"):
            small.train("list-dropout", state, resume=True)
    container.write(state, {**header, "checkpoint": 99}, tensors)
    with pytest.raises(FileError, match="version 2"):
        small.train("list-dropout", state, resume=True)
    bad = {**tensors, "random/now/torch": torch.zeros(3, dtype=torch.uint8)}
    container.write(state, header, bad)
    with pytest.raises(FileError, match="random states"):
        small.train("list-dropout", state, resume=True)


def test_resume_needs_a_file_and_starts_anew_without_one(small, tmp_path):
    with pytest.raises(ModelError, match="checkpoint="):
        fit(small.supernet(), small.batches(), epochs=1, resume=True)
    with pytest.raises(FileError, match="make it first"):
        fit(small.supernet(), small.batches(), epochs=1, checkpoint=tmp_path / "no" / "state")
    fit(small.supernet(), small.batches(), epochs=1, checkpoint=tmp_path / "new", resume=True)
    assert (tmp_path / "new").exists()


def test_a_full_disk_loses_nothing(small, tmp_path, monkeypatch, same, unbroken):
    state = tmp_path / "state"
    with pytest.raises(Interrupted):
        small.train("loader-adamw", state, kill=4)
    good = state.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(FileError, match="No space left"):
            small.train("loader-adamw", state, resume=True)
    assert state.read_bytes() == good
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    net, menu = small.train("loader-adamw", state, resume=True)
    equal_runs(unbroken("loader-adamw"), (net, menu, state), same)


# -- structured outputs --------------------------------------------------------------------------


def test_losses_see_float32_in_a_dataclass(small):
    @dataclass
    class Out:
        logits: torch.Tensor

    class Model(small.Mlp):
        def forward(self, x):
            return Out(super().forward(x))

    seen = set()

    def loss(out, targets):
        seen.add(out.logits.dtype)
        return F.cross_entropy(out.logits, targets)

    net = nestling.Supernet(small.seeded(Model), torch.randn(2, 6), step=2)
    data = [(torch.randn(8, 6), torch.randint(3, (8,)))]
    fit(net, data, epochs=1, loss=loss, precision="bfloat16")
    assert seen == {torch.float32}


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1e6, 1e30])
def test_divergence_is_an_error_and_keeps_the_last_good_state(small, tmp_path, rate):
    state = tmp_path / "state"
    model = small.seeded(small.Mlp)
    net = nestling.Supernet(model, torch.randn(2, 6), step=2)
    data = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(2)]

    def optimizer(parameters):
        return torch.optim.SGD(parameters, lr=rate)

    with pytest.raises(ModelError, match="diverged; lower the learning rate"):
        fit(net, data, epochs=60, optimizer=optimizer, checkpoint=state, precision="float32")
    if state.exists():
        assert all(torch.isfinite(w).all() for w in Checkpoint.load(state).weights.values())


def test_weights_that_overflow_in_the_last_step_are_not_saved(small, tmp_path):
    net = nestling.Supernet(small.seeded(small.Mlp), torch.randn(2, 6), step=2)
    data = [(torch.randn(8, 6), torch.randint(3, (8,)))]
    with pytest.raises(ModelError, match="weights hold NaN or infinity in epoch 1"):
        fit(
            net,
            data,
            epochs=1,
            loss=lambda outputs, targets: outputs.sum() * 1e30,
            optimizer=lambda p: torch.optim.SGD(p, lr=1e30),
            precision="float32",
            checkpoint=tmp_path / "state",
            summed=True,
        )
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_bad_pictures_change_neither_weights_nor_statistics(small, same, bad):
    net = small.supernet()
    images, labels = small.pictures()
    images[3, 0, 2, 2] = bad
    before = cloned(tensors_of(net.model))
    with pytest.raises(DataError, match="NaN or infinity"):
        fit(net, [(images, labels)], epochs=1)
    assert same(before, tensors_of(net.model))


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([torch.zeros(2, 1, 8, 8)], "pair"),
        ([(torch.zeros(2, 1, 8, 8), torch.zeros(2), 3)], "of 3"),
        ([], "no batch"),
        ((batch for batch in []), "no len"),
        ([(torch.zeros(2, 3, 8, 8), torch.zeros(2).long())], r"\(2, 3, 8, 8\) float32"),
        ([(torch.zeros(2, 1, 8, 8), torch.zeros(2).long() + 7)], "loss"),
        ([(torch.zeros(2, 1, 8, 8).double(), torch.zeros(2).long())], "float64"),
    ],
)
def test_bad_batches_are_data_errors(small, train, message):
    with pytest.raises(DataError, match=message):
        fit(small.supernet(), train, epochs=1)


def test_a_loader_of_a_stream_is_refused(small):
    class Stream(IterableDataset):
        def __iter__(self):
            yield from small.batches()

    with pytest.raises(DataError, match="no len"):
        fit(small.supernet(), DataLoader(Stream(), batch_size=None), epochs=1)


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": -1},
        {"epochs": 1.5},
        {"epochs": True},
        {"seed": -1},
        {"seed": "x"},
        {"precision": "fp16"},
        {"precision": 16},
        {"optimizer": lambda p: None},
        {"optimizer": torch.optim.LBFGS},
        {"loss": lambda o, t: F.cross_entropy(o, t, reduction="none")},
    ],
)
def test_bad_settings_are_errors(small, options):
    with pytest.raises((ModelError, DataError)):
        fit(small.supernet(), small.batches(), **{"epochs": 1, **options})


def test_a_model_with_nothing_to_train_is_refused(small):
    model = small.seeded(small.ConvNet).requires_grad_(False)
    with pytest.raises(ModelError, match="requires_grad"):
        fit(small.supernet(model), small.batches(), epochs=1)
