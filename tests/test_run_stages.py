"""What a run keeps beside weights: extra parameters, what was made once, orders; also stopped."""

import os
import signal

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from nestling import DataError, FileError, ModelError, container, finiteness, rankers
from nestling.checkpoint import Checkpoint
from nestling.interruption import Interrupted
from nestling.optimizers import add_group
from nestling.supernet import rearranged
from nestling.training import Run
from nestling.weights import all_finite, cloned, tensors_of

EPOCHS = 2
STEPS = {"l1": 0, "noise": 6, "lasso": 6}  # that the ranker makes in 2 epochs of 3 batches


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.01)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1)


def method(run, by):
    """Rank, put in order, train, and do it again."""
    found = []
    for _ in range(2):
        scores = rankers.scores(run, by)
        found.append(scores)
        run.reorder(rankers.orders(run.net.space, scores))
        run.train_stage(lambda net: full(net, run.loss))
    return found


def full(net, loss):
    yield net.pooled(net.space.full).train(), loss


def start(small, path, by, optimizer, kill=None):
    calls = []

    def loss(outputs, targets):
        calls.append(None)
        if len(calls) == kill:
            os.kill(os.getpid(), signal.SIGTERM)
        return F.cross_entropy(outputs, targets)

    net = small.supernet(small.seeded(small.ConvNet, dropout=0.3))
    run = Run(
        net, small.batches(), EPOCHS, loss=loss, optimizer=optimizer, precision="float32",
        checkpoint=path,
    )  # fmt: skip
    return net, run


@pytest.mark.parametrize("optimizer", [sgd, adamw])
@pytest.mark.parametrize("by", STEPS)
def test_a_stop_anywhere_changes_nothing(small, same, tmp_path, by, optimizer):
    whole, run = start(small, tmp_path / "whole", by, optimizer)
    expected = method(run, by)
    ranking = STEPS[by]
    places = {1, ranking, ranking + 1, ranking + 6, 2 * ranking + 6, 2 * ranking + 7} - {0}
    for kill in sorted(places):
        path = tmp_path / f"{kill}"
        net, run = start(small, path, by, optimizer, kill=kill)
        with pytest.raises(Interrupted):
            method(run, by)
        net, run = start(small, path, by, optimizer)
        run.resume()
        found = method(run, by)
        assert same(net.state_dict(), whole.state_dict()), f"stopped in step {kill}"
        assert net.orders == whole.orders
        for one, other in zip(found, expected, strict=True):
            assert same(one, other)


class Extra(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(2))
        self.register_buffer("count", torch.zeros(()))


def test_extra_parameters_are_trained_without_decay(small):
    _, run = start(small, None, "l1", sgd)
    extra = Extra()

    def objective(own):
        extra.count += 1
        yield (
            own.pooled(own.space.full).train(),
            lambda out, y: F.cross_entropy(out, y) + extra.gain[0],
        )

    run.train_stage(objective, extra=extra, epochs=1)
    assert extra.count == 3
    assert extra.gain[0] < 0.95
    assert extra.gain[1] == 1  # no gradient, no decay


def test_an_extra_that_is_not_finite_is_divergence(small):
    _, run = start(small, None, "l1", sgd)
    extra = Extra()

    def objective(own):
        extra.gain.data[1] = float("nan")
        yield own.pooled(own.space.full).train(), F.cross_entropy

    with pytest.raises(Exception, match="diverged"):
        run.train_stage(objective, extra=extra)


def test_group_of_an_optimizer_without_decay():
    optimizer = torch.optim.Rprop([nn.Parameter(torch.ones(2))], lr=0.3)
    add_group(optimizer, nn.Linear(2, 2))
    assert len(optimizer.param_groups) == 2
    assert optimizer.param_groups[1]["lr"] == 0.3
    add_group(optimizer, nn.ReLU())
    assert len(optimizer.param_groups) == 2
    decaying = sgd([nn.Parameter(torch.ones(2))])
    add_group(decaying, nn.Linear(2, 2))
    assert [group["weight_decay"] for group in decaying.param_groups] == [0.1, 0.0]


def test_once_makes_once_and_keeps_copies(small):
    _, run = start(small, None, "l1", sgd)
    own = torch.ones(2)
    found = run.once(lambda: {"axis": own})
    own.zero_()
    assert found["axis"].tolist() == [1, 1]
    assert run.once(lambda: {"axis": own})["axis"].tolist() == [0, 0]


@pytest.mark.parametrize("orders", [{"conv1": [0]}, {"conv1": ["a"]}, {"nothing": [0]}, 3])
def test_a_checkpoint_of_wrong_orders_is_refused(small, tmp_path, orders):
    path = tmp_path / "state"
    _, run = start(small, path, "l1", sgd)
    method(run, "l1")
    header, tensors = container.read(path)
    header["run"]["orders"] = orders
    container.write(path, header, tensors)
    _, again = start(small, path, "l1", sgd)
    with pytest.raises(FileError):
        again.resume()


# -- what methods with a search need --------------------------------------------------------------


def test_a_refill_is_a_change_that_a_resume_passes_over(small, same, tmp_path):
    """Rank, put in order, go back to the first weights, train: stopped anywhere."""

    def told(path, kill=None, resume=False):
        net, run = start(small, path, "l1", sgd, kill=kill)
        if resume:
            run.resume()
        given = run.once(lambda: tensors_of(net.model))
        run.train_stage(lambda own: full(own, run.loss))
        orders = rankers.orders(net.space, rankers.scores(run, "l1"))
        given = rearranged(net.space, given, orders)
        run.reorder(orders)
        run.refill(given)
        run.train_stage(lambda own: full(own, run.loss))
        return net

    whole = told(tmp_path / "whole")
    assert any(order != tuple(range(len(order))) for order in whole.orders.values())
    for kill in (2, 6, 7, 8, 12):
        path = tmp_path / f"{kill}"
        with pytest.raises(Interrupted):
            told(path, kill)
        net = told(path, resume=True)
        assert same(net.state_dict(), whole.state_dict()), f"stopped in step {kill}"
        assert net.orders == whole.orders
        assert path.read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_refill_gives_the_net_these_weights_in_place(small, same):
    net, run = start(small, None, "l1", sgd)
    subnet, given = net.subnet(net.space.spec(width=0.5)), tensors_of(small.ConvNet())
    leaf = subnet.conv1.weight
    run.refill(given)
    assert same(tensors_of(net.model), given)
    assert torch.equal(leaf, given["conv1.weight"][:4])
    assert not any(value is tensors_of(net.model)[name] for name, value in given.items())


@pytest.mark.parametrize("kill", [2, 4, 7])
def test_a_stage_with_data_of_its_own(small, same, tmp_path, kill):
    """More batches than the run has; only that stage sees them, also when it is resumed."""

    def train(path, kill=None, resume=False):
        net, run = start(small, path, "l1", adamw, kill=kill)
        if resume:
            run.resume()
        run.train_stage(lambda own: full(own, run.loss), data=small.loader(64), epochs=2)
        assert run.done == 7 / 8  # before the last step
        run.train_stage(lambda own: full(own, run.loss), epochs=1)
        assert run.done == 2 / 3
        return net

    whole = train(tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(tmp_path / "state", kill)
    torch.manual_seed(kill)
    net = train(tmp_path / "state", resume=True)
    assert same(net.state_dict(), whole.state_dict())
    assert (tmp_path / "state").read_bytes() == (tmp_path / "whole").read_bytes()


def test_data_of_a_stage_is_checked(small):
    _, run = start(small, None, "l1", sgd)
    with pytest.raises(DataError, match=r"data= .*no len"):
        run.train_stage(lambda own: full(own, run.loss), data=iter(small.batches()))


def test_processor_time_is_counted_by_stage(small, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.process_time", lambda: now[0])
    _, run = start(small, None, "l1", sgd)

    def objective(own):
        now[0] += 1.0
        return full(own, run.loss)

    now[0] += 5.0
    run.train_stage(objective, name="one")
    now[0] += 0.5
    run.train_stage(objective, name="two", epochs=1)
    run.train_stage(objective, name="one", epochs=1)
    assert run.seconds == {"other": 5.5, "one": 9.0, "two": 3.0}
    now[0] += 2.0
    run.spent("search")
    assert run.seconds["search"] == 2.0


def test_time_of_a_stage_that_fails_is_counted(small):
    _, run = start(small, None, "l1", sgd)

    def objective(own):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        run.train_stage(objective, name="broken")
    assert "broken" in run.seconds


def test_whether_a_run_is_resumed(small, tmp_path):
    _, run = start(small, tmp_path / "state", "l1", sgd)
    assert not run.resumed
    run.resume()  # there is no checkpoint yet, but there may be the log of a search
    assert run.resumed
    run.train_stage(lambda own: full(own, run.loss))
    assert len(run.log) == EPOCHS


# -- what a resumed run must share ----------------------------------------------------------------


@pytest.mark.parametrize("kill", [2, 5], ids=["in that stage", "in the next"])
@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"data": 64}, r"batches=3 \(now 4\), steps=3 \(now 4\) in its stage 1"),
        ({"epochs": 2}, r"made with steps=3 \(now 6\) in its stage 1"),
    ],
)
def test_other_data_or_epochs_of_a_stage_are_refused(small, same, tmp_path, kill, other, named):
    """Its learning rates, and where it stands, would be others."""
    path = tmp_path / "state"

    def train(net, run, data=48, epochs=1):
        run.train_stage(lambda own: full(own, run.loss), data=small.loader(data), epochs=epochs)
        run.train_stage(lambda own: full(own, run.loss))

    with pytest.raises(Interrupted):
        train(*start(small, path, "l1", sgd, kill))
    kept = path.read_bytes()
    net, run = start(small, path, "l1", sgd)
    run.resume()
    weights = cloned(tensors_of(net.model))
    with pytest.raises(FileError, match=named):
        train(net, run, **other)
    assert same(tensors_of(net.model), weights)
    assert path.read_bytes() == kept
    net, run = start(small, path, "l1", sgd)
    run.resume()
    train(net, run)
    assert len(run.log) == 3


def test_a_stage_alone_before_one_of_the_net_leaves_the_same_bytes(small, same, tmp_path):
    """The net's own weights are in the checkpoint while another module trains, then no more."""

    def train(path, kill=None, resume=False):
        net, run = start(small, path, "l1", sgd, kill)
        module = small.seeded(small.ConvNet)
        if resume:
            run.resume()

        def alone(own):
            yield module.train(), run.loss

        run.train_stage(alone, alone=module)
        run.train_stage(lambda own: full(own, run.loss))
        return net, module

    whole = train(tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(tmp_path / "state", kill=4)
    found = train(tmp_path / "state", resume=True)
    for one, other in zip(found, whole, strict=True):
        assert same(one.state_dict(), other.state_dict())
    assert (tmp_path / "state").read_bytes() == (tmp_path / "whole").read_bytes()


# -- on a GPU, where a look at a number waits -----------------------------------------------------


class Looks(TorchDispatchMode):
    """Counts how often Python looks at the number in a tensor."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.fixture
def behind(monkeypatch):
    monkeypatch.setattr(finiteness, "runs_behind", lambda device: True)


def looks(small, run, data):
    def two(own):
        for width in (1.0, 0.5):
            yield own.pooled(own.space.spec(width=width)).train(), F.cross_entropy

    with Looks() as looked:
        run.train_stage(two, data=data, epochs=1, summed=False)
    return looked.count


def test_the_number_of_looks_does_not_grow_with_the_steps(small, same, behind, monkeypatch):
    def grown():
        nets, counts = [], []
        for times in (1, 4):
            net, run = start(small, None, "l1", sgd)
            run.settle(*small.batches()[0])
            counts.append(looks(small, run, small.batches() * times))
            nets.append(net)
        return counts[1] - counts[0], nets[1]

    more, net = grown()
    assert more == 0
    monkeypatch.setattr(finiteness, "EVERY", 2)
    assert grown()[0] == 0  # a look at all flags together is a copy
    monkeypatch.undo()
    more, other = grown()
    assert more == 9 * 3  # the inputs and the two losses of nine more steps
    assert same(net.state_dict(), other.state_dict())


@pytest.mark.parametrize(("every", "steps"), [(2, 4), (100, 6)])
def test_bad_inputs_are_seen_later_and_before_anything_is_saved(
    small, behind, tmp_path, monkeypatch, every, steps
):
    monkeypatch.setattr(finiteness, "EVERY", every)
    _, run = start(small, tmp_path / "state", "l1", sgd)
    data = small.batches() * 2
    images, labels = data[2]
    data[2] = (images.clone().fill_(float("nan")), labels)
    made = []

    def objective(own):
        made.append(None)
        return full(own, lambda outputs, targets: outputs.mean())

    with pytest.raises(DataError, match=r"batch of shape \(16, 1, 8, 8\) holds NaN .* spoilt"):
        run.train_stage(objective, data=data)
    assert len(made) == steps
    assert not (tmp_path / "state").exists()


def test_a_loss_that_is_not_finite_is_seen_before_a_stop_is_saved(small, behind, tmp_path):
    path = tmp_path / "state"
    _, run = start(small, path, "l1", sgd)
    calls = []

    def loss(outputs, targets):
        calls.append(None)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return F.cross_entropy(outputs, targets) * (float("inf") if len(calls) == 4 else 1)

    with pytest.raises(ModelError, match=r"the loss is inf in epoch 2.*last good state.*every"):
        run.train_stage(lambda own: full(own, loss))
    found = Checkpoint.load(path)
    assert (found.header["epoch"], found.header["batch"]) == (1, 0)
    assert all_finite(found.weights.values())


def test_losses_of_an_interrupted_epoch_come_back_exactly(small, tmp_path):
    """Those of float64 too: the mean of the epoch is that of an unbroken run."""

    def train(path, kill=None, resume=False):
        _, run = start(small, path, "l1", sgd)
        calls = []

        def loss(outputs, targets):
            calls.append(None)
            if len(calls) == kill:
                os.kill(os.getpid(), signal.SIGTERM)
            return F.cross_entropy(outputs.double(), targets)

        if resume:
            run.resume()
        run.train_stage(lambda own: full(own, loss), epochs=1)

    train(tmp_path / "whole")
    for kill, resume in ((1, False), (1, True)):
        with pytest.raises(Interrupted):
            train(tmp_path / "state", kill, resume)
    train(tmp_path / "state", resume=True)
    assert (tmp_path / "state").read_bytes() == (tmp_path / "whole").read_bytes()
