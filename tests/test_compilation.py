"""Compiled steps: the same training as eager ones, each spec compiled once, and what runs eagerly.

Most tests use backends that need no C++ compiler: "counted" notes the shapes that a graph is for
and runs it as it is, "aot_eager" also makes graphs of the backward passes.
"""

import os
import shutil
import signal
from functools import partial

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from functorch.compile import make_boxed_compiler
from torch import nn
from torch._dynamo.backends.common import aot_autograd

import nestling
from nestling import FileError, ModelError, SpecError, Supernet, compilation, experiment, pack
from nestling.binding import is_calibrated
from nestling.compilation import Compilation, backend_of, check_compiler
from nestling.experiment import Settings
from nestling.interruption import Interrupted
from nestling.methods.individual import individual
from nestling.ownership import own_norms
from nestling.runfolder import RunFolder
from nestling.training import Run

GRAPHS = []


@torch._dynamo.register_backend(name="counted")
def counted(graph, inputs):
    GRAPHS.append(sorted(tuple(given.shape) for given in inputs))
    return graph.forward


@torch._dynamo.register_backend(name="broken")
def broken(graph, inputs):
    raise RuntimeError("no compiler here")


NOW = [0.0]  # seconds of processor time, where a test says so


def aot_autograd_backend(compiler):
    """Return a backend that lets a function make each graph, those of backward passes too."""
    return aot_autograd(fw_compiler=make_boxed_compiler(compiler))


@pytest.fixture(autouse=True)
def graphs():
    torch._dynamo.reset()
    GRAPHS.clear()
    yield GRAPHS
    torch._dynamo.reset()


class Concatenating(nn.Module):
    """A weight and a norm behind a concatenation are gathered."""

    def __init__(self):
        super().__init__()
        self.left = nn.Conv2d(1, 4, 3, padding=1)
        self.right = nn.Conv2d(1, 4, 1)
        self.norm = nn.BatchNorm2d(8)
        self.mix = nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = torch.cat([self.left(x), self.right(x)], 1)
        return self.head(self.mix(self.norm(x).relu()).relu().mean((2, 3)))


class Breaking(nn.Module):
    """Python that depends on values: no single graph can hold it."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(64, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.one(x.flatten(1)).relu()
        return self.head(x if x.sum().item() > -1e9 else -x)


def listed(*widths):
    """Return an objective that trains uniform widths on the labels."""

    def objective(net):
        for width in widths:
            yield net.pooled(net.space.spec(width=width)).train(), F.cross_entropy

    return objective


def run_of(small, model=None, backend=False, data=None, epochs=2, **options):
    net = small.supernet(model)
    data = small.batches() if data is None else data
    run = Run(
        net, data, epochs, optimizer=small.sgd, precision="float32", compile=backend, **options
    )
    GRAPHS.clear()  # that of the check
    said = []
    run.reporter.say = said.append
    return run, said


def eagerly(said):
    return [line for line in said if "eagerly" in line]


def assert_close(net, other):
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


# -- the same training ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "backend"),
    [("ConvNet", "counted"), ("ConvNet", "aot_eager"), ("Concatenating", "aot_eager")],
)
def test_steps_equal_eager_ones(small, kind, backend):
    make = Concatenating if kind == "Concatenating" else small.ConvNet
    nets = []
    for wanted in (False, backend):
        run, said = run_of(small, small.seeded(make), wanted)
        run.train_stage(partial(nestling.sandwich, random=0))
        nets.append(run.net)
        assert not eagerly(said)
    assert_close(nets[1], nets[0])


def test_statistics_are_those_of_eager_passes_and_count_as_measured(small):
    nets = [small.supernet(), small.supernet()]
    images, _ = small.pictures()
    subnets = [net.pooled(net.space.spec(width=0.5)).train() for net in nets]
    subnets[0](images)
    Compilation("aot_eager", print)(subnets[1], images)
    assert all(is_calibrated(subnet) for subnet in subnets)
    for one, other in zip(*(dict(s.named_buffers()).values() for s in subnets), strict=True):
        torch.testing.assert_close(one, other)


def test_gathered_weights_follow_the_shared_ones(small):
    net = small.supernet(small.seeded(Concatenating))
    subnet, passes = net.pooled(net.space.spec(width=0.5)).train(), Compilation("counted", print)
    images, _ = small.pictures()
    for _ in range(2):
        torch.testing.assert_close(passes(subnet, images), pack(subnet)(images))
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(0.9)
    assert len(GRAPHS) == 1


def test_norms_of_a_subnets_own_are_trained(small):
    """A subnet with norm weights of its own runs by the code of its spec, on its own weights."""
    net, passes = small.supernet(), Compilation("counted", print)
    spec = net.space.spec(width=0.5)
    images, labels = small.pictures()
    passes(net.pooled(spec).train(), images)
    for _ in range(2):
        subnet = net.subnet(spec).train()
        own = own_norms(subnet)
        assert own
        with torch.no_grad():
            for parameter in own.values():
                parameter.add_(1)
        outputs = passes(subnet, images)
        torch.testing.assert_close(outputs, pack(subnet)(images))
        net.zero_grad()
        F.cross_entropy(outputs, labels).backward()
        assert all(bool(parameter.grad.any()) for parameter in own.values())
    assert net.model.norm1.weight.grad is None
    assert len(GRAPHS) == 1


def test_hooks_of_the_user_run(small):
    net, calls = small.supernet(), []
    subnet = net.pooled(net.space.spec(width=0.5)).train()

    def note(module, inputs, outputs):
        return outputs + 1

    subnet.head.register_forward_hook(note)
    subnet.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    images, _ = small.pictures()
    found = Compilation("counted", calls.append)(subnet, images)
    torch.testing.assert_close(found, subnet(images))
    assert not eagerly(calls)


def test_a_subnet_of_another_order_is_refused(small):
    net, passes = small.supernet(), Compilation("counted", print)
    subnet = net.pooled(net.space.spec(width=0.5)).train()
    images, _ = small.pictures()
    passes(subnet, images)
    net.reorder(small.shuffled(net.space))
    with pytest.raises(SpecError, match="reordered"):
        passes(subnet, images)
    again = net.pooled(net.space.spec(width=0.5)).train()
    torch.testing.assert_close(passes(again, images), pack(again)(images))
    assert len(GRAPHS) == 1


# -- each spec once ---------------------------------------------------------------------------


def test_nothing_is_compiled_after_the_first_epoch(small):
    run, said = run_of(small, backend="counted", epochs=4)
    after = []

    def objective(net):
        after.append(len(GRAPHS))
        return listed(1.0, 0.75, 0.5, 0.25)(net)

    run.train_stage(objective)
    assert after[0] == 0
    assert after[1:] == [4] * 11
    assert len(GRAPHS) == 4
    assert sum("compiling" in line for line in said) == 1


@torch._dynamo.config.patch(recompile_limit=2)
def test_more_specs_than_the_compiler_allows_for_one_code(small):
    """It keeps so many graphs of one code object, by default eight, and then gives up."""
    net = Supernet(small.seeded(small.Mlp), torch.randn(2, 6), step=2)
    specs = [net.space.spec(width=width) for width in (1.0, 0.75, 0.5, 0.25)]
    passes, said = Compilation("counted", print), []
    passes._say = said.append
    inputs = torch.randn(5, 6)
    for _ in range(2):
        for spec in specs:
            torch.testing.assert_close(
                passes(net.pooled(spec), inputs), net.subnet(spec)(inputs), msg=str(spec)
            )
    assert len(GRAPHS) == len(specs)
    assert not eagerly(said)


def test_another_module_of_the_same_spec_runs_the_same_code(small):
    net, passes = small.supernet(), Compilation("counted", print)
    images, _ = small.pictures()
    spec = net.space.spec(width=0.5)
    for _ in range(3):
        subnet = net.subnet(spec).train()
        torch.testing.assert_close(passes(subnet, images), pack(subnet)(images))
    assert len(GRAPHS) == 1


def test_a_net_trained_alone_is_compiled(small):
    run, said = run_of(small, backend="counted")
    individual(run, fractions=(1.0, 0.4))
    assert len(GRAPHS) == 2
    assert not eagerly(said)


@torch._dynamo.register_backend(name="slow")
@aot_autograd_backend
def slow(graph, inputs):
    NOW[0] += 100.0
    return graph.forward


def test_compiling_is_no_time_of_the_stage(small, monkeypatch):
    """Forward and backward passes are compiled when they first run, whichever stage that is in."""
    NOW[0] = 0.0
    monkeypatch.setattr("time.process_time", lambda: NOW[0])
    run, said = run_of(small, backend="slow", epochs=2)
    begun = NOW[0]

    def objective(net):
        for subnet, loss in listed(1.0, 0.5)(net):
            NOW[0] += 1.0
            yield subnet, loss

    run.train_stage(objective, name="joint")
    assert not eagerly(said)
    assert run.seconds["joint"] == 2 * 2 * len(small.batches())
    assert run.seconds["compiling"] == 2 * 2 * 100  # two specs, forward and backward
    assert sum(run.seconds.values()) == NOW[0] - begun


def test_eager_runs_compile_nothing(small):
    run, _ = run_of(small)
    run.train_stage(listed(1.0, 0.5))
    assert "compiling" not in run.seconds


# -- what runs eagerly ------------------------------------------------------------------------


def test_a_last_smaller_batch_runs_eagerly(small):
    data = [(x, y) for x, y in zip(*(t.split(16) for t in small.pictures(40)), strict=True)]
    nets = []
    for backend in (False, "counted"):
        run, said = run_of(small, backend=backend, data=data)
        run.train_stage(listed(1.0, 0.5))
        nets.append(run.net)
    assert_close(nets[1], nets[0])
    assert len(GRAPHS) == 2
    assert eagerly(said) == [
        "a batch of (8, 1, 8, 8) float32 runs eagerly, not compiled: steps are compiled for the "
        "first batch, of (16, 1, 8, 8) float32"
    ]


def test_what_cannot_be_one_graph_trains_eagerly(small):
    nets = []
    for backend in (False, "counted"):
        run, said = run_of(small, small.seeded(Breaking), backend)
        run.train_stage(listed(1.0, 0.5))
        nets.append(run.net)
    assert_close(nets[1], nets[0])
    assert len(eagerly(said)) == 1
    assert eagerly(said)[0].startswith("the training runs eagerly, not compiled: ")


class Counting(nn.Module):
    """Counts its calls in Python: the compiler makes code for every number."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 2)
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        return self.two(self.one(x).relu()) + self.calls


@torch._dynamo.config.patch(recompile_limit=2)
def test_what_is_compiled_again_and_again_ends_up_eager():
    net, said = Supernet(Counting(), torch.randn(2, 6)), []
    subnet, passes = net.pooled(net.space.full).train(), Compilation("counted", said.append)
    inputs, first = torch.randn(2, 6), None
    for step in range(5):
        outputs = passes(subnet, inputs)
        first = outputs if first is None else first
        torch.testing.assert_close(outputs, first + step)
    assert len(eagerly(said)) == 1


def test_an_objectives_own_modules_run_eagerly(small):
    class Twice(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return 2 * self.net(x)

    def objective(net):
        yield Twice(net.pooled(net.space.full)).train(), F.cross_entropy

    run, said = run_of(small, backend="counted")
    run.train_stage(objective)
    assert not GRAPHS
    assert len(eagerly(said)) == 1
    assert "only subnets are compiled" in eagerly(said)[0]


def test_a_wrong_batch_is_an_error_of_the_batch(small):
    run, _ = run_of(small, backend="counted", data=[(torch.randn(4, 1, 8), torch.zeros(4).long())])
    with pytest.raises(nestling.DataError, match="accept the inputs"):
        run.train_stage(listed(1.0))


def test_no_more_specs_are_compiled_than_pay(small, monkeypatch):
    monkeypatch.setattr(compilation, "MOST", 2)
    run, said = run_of(small, backend="counted")
    run.train_stage(listed(1.0, 0.75, 0.5, 0.25))
    assert len(GRAPHS) == 2
    assert eagerly(said) == [
        "every further spec runs eagerly, not compiled: 2 are compiled, and the objective draws "
        "more"
    ]


# -- resuming ---------------------------------------------------------------------------------


def test_a_resumed_run_compiles_the_same(small, same, tmp_path, monkeypatch):
    """Stopped before a batch of another shape, and with other specs to come first."""
    monkeypatch.setattr(compilation, "MOST", 2)
    pictures, labels = small.pictures(40)
    data = list(zip(pictures.split(16), labels.split(16), strict=True))

    def start(path, kill=None):
        run, _ = run_of(small, backend="counted", data=data, epochs=3, checkpoint=path)

        def objective(net):
            step = round(run.done * 9)
            if step == kill:
                os.kill(os.getpid(), signal.SIGTERM)
            return listed(*([1.0, 0.5] if step < 4 else [0.25, 0.75, 0.5, 1.0]))(net)

        return run, objective

    whole, objective = start(tmp_path / "whole")
    whole.train_stage(objective)
    compiled = sorted(GRAPHS)
    assert len(compiled) == 2
    stopped, objective = start(tmp_path / "part", kill=4)  # the next batch is the last of its epoch
    with pytest.raises(Interrupted):
        stopped.train_stage(objective)
    again, objective = start(tmp_path / "part")
    again.resume()
    again.train_stage(objective)
    assert same(again.net.state_dict(), whole.net.state_dict())
    assert sorted(GRAPHS) == compiled


def test_a_failure_is_remembered():
    said = []
    first = Compilation("counted", said.append)
    first.restore({"shape": "(2, 3) float32", "specs": [], "failure": "no graph"})
    assert said == ["the training runs eagerly, not compiled: no graph"]
    assert first.state == {"shape": "(2, 3) float32", "specs": [], "failure": "no graph"}
    net = Supernet(nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2)), torch.randn(2, 3))
    first(net.pooled(net.space.full), torch.randn(2, 3))
    assert not GRAPHS


@pytest.mark.parametrize("state", [{}, {"shape": "", "failure": "", "specs": [3]}])
def test_a_state_that_is_none_is_refused(state):
    with pytest.raises(FileError, match="what is compiled"):
        Compilation("counted", print).restore(state)


def test_a_run_is_resumed_with_its_own_compiler(small, tmp_path):
    run, _ = run_of(small, backend="counted", checkpoint=tmp_path / "state")
    run.train_stage(listed(1.0))
    other, _ = run_of(small, checkpoint=tmp_path / "state")
    with pytest.raises(nestling.FileError, match="compile"):
        other.resume()


# -- asking for it ----------------------------------------------------------------------------


def test_backends():
    assert [backend_of(given) for given in (False, True, "aot_eager")] == [
        "", "inductor", "aot_eager",
    ]  # fmt: skip
    with pytest.raises(ModelError, match=r"not 'inducter'; choose one of .*inductor"):
        backend_of("inducter")
    with pytest.raises(ModelError, match="not 3"):
        backend_of(3)


def test_a_compiler_that_does_not_work_is_an_error_at_once(small):
    with pytest.raises(ModelError, match=r"no compiler here.*install a C\+\+ compiler"):
        check_compiler("broken", torch.device("cpu"))
    with pytest.raises(ModelError, match="no compiler here"):
        nestling.fit(small.supernet(), small.batches(), epochs=1, compile="broken", progress=False)


def test_fit_says_what_compiled_it(small, unmeasured):
    menu = nestling.fit(
        small.supernet(), small.batches(), epochs=1, compile="counted", progress=False,
        method="individual", fractions=(0.4,),
    )  # fmt: skip
    assert menu.facts["compiled by"] == "counted"
    assert len(GRAPHS) == 2  # one of them the check's


def test_settings_reach_fit(monkeypatch, tmp_path):
    given = {}

    def fit(*args, **options):
        given.update(options)
        raise Interrupted("enough")

    monkeypatch.setattr(experiment, "fit", fit)
    quiet = nestling.progress.Reporter(quiet=True)
    folder = RunFolder.create("run", tmp_path / "run", {})
    for wanted in (True, False):
        settings = Settings("mlp", "digits", compile=wanted)
        assert Settings.from_config(settings.config()) == settings
        ready = experiment.prepare(settings, quiet)
        with pytest.raises(Interrupted):
            experiment.train(ready, folder, quiet)
        assert given["compile"] is wanted


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch imports what it has deprecated
def test_code_that_the_compiler_makes(small):
    net = Supernet(small.seeded(small.Mlp), torch.randn(2, 6))
    subnet = net.pooled(net.space.spec(width=0.5)).train()
    twin, inputs = pack(subnet), torch.randn(16, 6)
    said = []
    passes = Compilation("inductor", said.append)
    for _ in range(2):
        outputs = passes(subnet, inputs)
        outputs.square().sum().backward()
        twin(inputs).square().sum().backward()
        torch.testing.assert_close(outputs, twin(inputs))
    assert not eagerly(said)
    for name, parameter in subnet.named_parameters():
        torch.testing.assert_close(parameter.grad, twin.get_parameter(name).grad)
        shared = net.model.get_parameter(name).grad
        assert parameter.grad.untyped_storage().data_ptr() == shared.untyped_storage().data_ptr()
