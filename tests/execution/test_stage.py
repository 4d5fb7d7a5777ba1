"""The stage: resumed exactly, small activations only, bad input."""

import io
import os
import signal
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

import nestling
from nestling import FileError, ModelError, SpecError
from nestling.checkpoint import seed_all
from nestling.execution.settings import Settings
from nestling.execution.stage import Executor, execute
from nestling.progress import Reporter
from nestling.spec import Axis
from nestling.training import Interrupted, Run


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.01, amsgrad=True)


def trained(small, settings, *, kill=None, epochs=4, optimizer=sgd, **options):
    """Execute in part; in the `kill`-th step, send SIGTERM to itself."""
    net = small.supernet()
    calls = []

    def loss(outputs, targets):
        calls.append(None)
        if len(calls) == kill:
            os.kill(os.getpid(), signal.SIGTERM)
        return F.cross_entropy(outputs, targets)

    batches = options.pop("batches", None) or small.data_batches(48, 8)
    resume = options.pop("resume", False)
    run = Run(net, batches, epochs, loss=loss, optimizer=optimizer, **options)
    if resume:
        run.resume()
    return net, execute(run, settings), run


CASES = {
    "sgd": (Settings(), sgd, {}),
    "adamw": (Settings(discount=0.9, exploration=2.0), adamw, {}),
    "random": (Settings(saliency="random"), sgd, {}),
    "schedule": (Settings(0.25, start=1.0, every=3), sgd, {}),
    "net": (Settings(scope="net", tune=0.3), sgd, {}),
    "plain": (Settings(saliency="taylor"), adamw, {"precision": "float32"}),
}


@pytest.mark.parametrize(
    ("case", "kill"), [*((case, 13) for case in CASES), ("sgd", 6), ("net", 22)]
)
def test_a_resumed_run_ends_with_the_same_bits(small, tmp_path, same, case, kill):
    settings, optimizer, options = CASES[case]
    net, done, _ = trained(small, settings, optimizer=optimizer, **options)
    path = tmp_path / "state"
    with pytest.raises(Interrupted):
        trained(small, settings, optimizer=optimizer, kill=kill, checkpoint=path, **options)
    again, resumed, _ = trained(
        small, settings, optimizer=optimizer, checkpoint=path, resume=True, **options
    )
    assert same(net.state_dict(), again.state_dict())
    assert same(done.bandit.state_dict(), resumed.bandit.state_dict())
    assert done.spec == resumed.spec


def test_resuming_with_another_share_is_refused(small, tmp_path):
    path = tmp_path / "state"
    fit = {"method": "channel-execution", "epochs": 2, "checkpoint": path, "progress": False}
    nestling.fit(small.supernet(), small.batches(), keep=0.5, **fit)
    kept = path.read_bytes()
    with pytest.raises(FileError, match=r"was made with options=\{'keep': 0\.5\} \(now .*0\.25"):
        nestling.fit(small.supernet(), small.batches(), keep=0.25, resume=True, **fit)
    assert path.read_bytes() == kept


def test_the_full_net_is_never_run(small):
    """Neither in a step nor to find the precision: its layers are guarded."""
    net = small.supernet()
    widths = []

    def guard(module, inputs):
        raise AssertionError("the full net ran")

    for module in net.model.modules():
        module.register_forward_pre_hook(guard)
    pack = nestling.execution.gathered.pack

    def spy(subnet):
        packed = pack(subnet)
        for module in packed.modules():
            module._forward_pre_hooks.clear()
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda m, i, outputs: widths.append(outputs.shape[1]))
        return packed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nestling.execution.gathered.pack", spy)
        execute(Run(net, small.batches(), 3), Settings(0.25))
    assert set(widths) == {2}
    assert all(parameter.grad is None for parameter in net.parameters())


def test_gathering_changes_nothing_when_all_is_executed(small, same):
    """With keep=1 this is the ordinary training, bit for bit."""
    net, _, run = trained(small, Settings(1.0), precision="float32")
    plain = small.supernet()
    seed_all(0)
    again = Run(plain, small.data_batches(48, 8), 4, optimizer=sgd, precision="float32")
    again.train_stage(lambda n: iter([(n.pooled(n.space.full).train(), F.cross_entropy)]))
    assert run.length == again.length
    assert same(net.state_dict(), plain.state_dict())


def test_the_final_choice_is_that_of_the_means(small):
    _, done, _ = trained(small, Settings(tune=0.5), epochs=6)
    last = int(done.bandit.steps.nonzero()[-1])
    plays = done.bandit.history[last].split(done.bandit.sizes)
    for (name, means), times in zip(done.scores.items(), plays, strict=True):
        best = set(torch.argsort(means, descending=True, stable=True)[: done.spec[name]].tolist())
        assert set(times.nonzero().view(-1).tolist()) == best
    assert int(done.bandit.steps.sum()) == 36
    assert int(done.bandit.rounds) == 18
    assert int(done.bandit.history.sum()) == 36 * sum(done.spec.values())


def test_the_share_falls_from_start_to_keep(small):
    run = Run(small.supernet(), small.batches(), 1)
    executor = Executor(run, Settings(0.25, start=1.0, tune=0.2), 10)
    seen = []
    for step in range(100):
        run.done = step / 100
        seen.append(sum(executor.counts_now().values()))
    assert seen[0] == 16
    assert seen == sorted(seen, reverse=True)
    assert set(seen[40:]) == {4}
    assert len(set(seen)) == 4


def test_counts_of_the_whole_net_cost_the_same(small):
    """An axis whose units all matter keeps more than one with a single unit that does."""
    net = small.supernet(step=1)
    run = Run(net, small.batches(), 1)
    executor = Executor(run, Settings(scope="net"), 10)
    first, second = (axis.name for axis in executor.axes)
    executor.bandit.plays.fill_(1)
    executor.bandit.means.copy_(torch.tensor([1.0] * 8 + [7.9] + [0.01] * 7).double())
    counts = executor.final_counts()
    even = net.space.macs({first: 4, second: 4})
    assert counts[first] > counts[second]
    assert 0.7 * even < net.space.macs(counts) <= even


def test_one_axis_by_name(small):
    _, done, _ = trained(small, Settings({"conv1": 0.25}))
    assert (done.spec["conv1"], done.spec["conv2"]) == (2, 8)
    assert done.bandit.plays.split(done.bandit.sizes)[1].min() == done.bandit.rounds
    assert set(done.scores) == {"conv1", "conv2"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"keep": 0}, ModelError, "above 0 and at most 1, but it is 0"),
        ({"keep": 1.5}, ModelError, "above 0 and at most 1, but it is 1.5"),
        ({"keep": True}, ModelError, "above 0 and at most 1, but it is True"),
        ({"keep": {}}, ModelError, "names at least one axis"),
        ({"keep": {"cov1": 0.5}}, SpecError, "names no axis with 'cov1'; did you mean 'conv1'"),
        ({"keep": 0.1}, SpecError, r"0.8 of the 8 channels of axis 'conv1'.* steps of 2"),
        ({"saliency": "fischer"}, ModelError, "not 'fischer'; did you mean 'fisher'"),
        ({"scope": "nets"}, ModelError, "scope= is one of axis, net, not 'nets'"),
        ({"exploration": -1}, ModelError, "exploration="),
        ({"discount": 0}, ModelError, "discount= is above 0"),
        ({"tune": 1}, ModelError, "tune= is a share of the steps"),
        ({"start": 0.2}, ModelError, r"from keep= \(0.5\) to 1, but it is 0.2"),
        ({"every": 0}, ModelError, "every= is a whole number"),
        ({"fractions": 0.5}, SpecError, "fractions= lists shares"),
        ({"fractions": (2,)}, SpecError, "fractions= lists shares"),
        ({"fractions": (0.001,)}, nestling.BudgetError, "the narrowest counts cost"),
    ],
)
def test_options_are_checked(small, options, error, message):
    net = small.supernet()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(error, match=message):
        nestling.fit(
            net, small.batches(), method="channel-execution", epochs=2, progress=False, **options
        )
    if "fractions" not in options or options["fractions"] != (0.001,):
        assert all(torch.equal(before[name], t) for name, t in net.state_dict().items())


def test_nothing_to_select(small):
    depth = Axis("blocks.depth", 3, "depth", (1, 2, 3))
    space = replace(small.supernet().space, axes={depth.name: depth})
    with pytest.raises(ModelError, match="needs an axis of which any part can be executed"):
        Settings().axes(space)


def test_too_few_steps_to_play_every_unit(small):
    with pytest.raises(ModelError, match="takes 4 steps, but the training has 3"):
        execute(Run(small.supernet(), small.batches(), 1), Settings(0.25, tune=0.0))


def test_other_optimizers_are_refused(small):
    with pytest.raises(ModelError, match="SGD and AdamW, but optimizer= makes RMSprop"):
        trained(small, Settings(), optimizer=torch.optim.RMSprop)


class Deaf(nn.Module):
    """What the first layer says is never heard."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(6, 8)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(torch.cat([F.relu(self.one(x)) * self.weight(x), F.relu(self.two(x))], 1))

    def weight(self, x):
        return x.sign().clamp(min=0)[:, :1] * 0 if self.training else 1


@pytest.mark.parametrize("saliency", ["fisher", "taylor"])
def test_an_axis_that_the_data_never_excites(saliency):
    torch.manual_seed(0)
    net = nestling.Supernet(Deaf().eval(), torch.randn(2, 6), step=1)
    data = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(4)]
    with pytest.raises(ModelError, match=r"no unit of 'one' did anything in 4 steps.*freeze="):
        execute(Run(net, data, 3), Settings(saliency=saliency))


class Bomb(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


def test_gradients_that_overflow_lose_nothing(small, tmp_path):
    net, calls, path = small.supernet(), [], tmp_path / "state"
    kept = {}

    def loss(outputs, targets):
        calls.append(None)
        if len(calls) == 8:
            kept.update({n: t.clone() for n, t in net.state_dict().items()})
            outputs = Bomb.apply(outputs)
        return F.cross_entropy(outputs, targets)

    run = Run(net, small.batches(), 4, loss=loss, checkpoint=path)
    with pytest.raises(ModelError, match="gradients of a step must be finite, but that of"):
        execute(run, Settings())
    assert all(torch.isfinite(t).all() for t in net.state_dict().values())
    again = small.supernet()
    run = Run(again, small.batches(), 4, loss=F.cross_entropy, checkpoint=path)
    run.resume()
    execute(run, Settings())
    whole = small.supernet()
    execute(Run(whole, small.batches(), 4, loss=F.cross_entropy), Settings())
    assert all(torch.equal(t, whole.state_dict()[n]) for n, t in again.state_dict().items())


def test_the_shares_of_a_step_are_told(small):
    out = io.StringIO()
    reporter = Reporter(console=Console(file=out, width=200))
    _, done, _ = trained(small, Settings(), reporter=reporter)
    assert set(done.shares) == {"selection", "gathering", "saliency"}
    assert all(0 < share < 1 for share in done.shares.values())
    assert "of the time of a step, selection" in out.getvalue()
