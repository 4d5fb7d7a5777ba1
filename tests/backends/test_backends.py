"""Every backend computes what the subnet computes, for every number of examples."""

import os
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import nestling
from nestling import ModelError, backends
from nestling.backends import Subject, aotinductor, compiled, onnxruntime


@pytest.fixture
def net(small):
    return small.supernet()


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch):
    """Compiled passes are traced and run by torch: making machine code takes seconds."""
    monkeypatch.setattr(compiled, "INDUCTOR", "aot_eager")
    monkeypatch.setattr(aotinductor, "INDUCTOR", "aot_eager")
    monkeypatch.setattr(aotinductor, "library", lambda program: program.module())
    yield
    torch._dynamo.reset()


def ready(name, net, module, batch=2):
    subject = Subject("half", module, net, batch=batch, threads=1)
    backend = backends.find(name)
    backend.convert(subject)
    with torch.no_grad():
        return backend.prepare(subject)


@pytest.mark.parametrize("name", backends.names())
def test_the_same_as_the_subnet_and_a_copy_stays_as_it_is(small, net, name):
    subnet = net.subnet(net.space.spec(width=0.5)).eval()
    net.recalibrate(subnet, [images for images, _ in small.batches()])
    run = ready(name, net, subnet)
    with torch.no_grad():
        for batch in (2,) if backends.find(name).bound == "batch" else (1, 2, 5):
            images = torch.randn(batch, 1, 8, 8)
            first, second = run(images), run(images + 1)
            torch.testing.assert_close(first, subnet(images), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(second, subnet(images + 1), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(run(x=images), first)  # it kept its own memory
        images = torch.randn(2, 1, 8, 8)
        before = run(images)
        net.model.head.bias.add_(1)
        assert torch.equal(run(images), before) == backends.find(name).copies
        torch.testing.assert_close(subnet(images), before + 1, atol=1e-5, rtol=1e-5)
    for bad in (torch.randn(2, 2, 8, 8), torch.randn(8), "text"):
        with pytest.raises(Exception, match=r"\w"):
            run(bad)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, left, *, shift):
        hidden = self.left(left).relu()
        return {"logits": self.right(hidden) + shift, "sums": [hidden.sum(1), None]}


@pytest.mark.parametrize("name", ["aotinductor", "onnxruntime", "openvino"])
def test_structures_come_back(name):
    inputs = {"left": torch.randn(2, 4), "shift": torch.randn(2, 3)}
    net = nestling.Supernet(Nested(), kwargs=inputs, step=2)
    subnet = net.subnet(net.space.uniform[0]).eval()
    wanted, found = subnet(**inputs), ready(name, net, subnet)(**inputs)
    assert found["sums"][1] is None
    torch.testing.assert_close(found["logits"], wanted["logits"])
    torch.testing.assert_close(found["sums"][0], wanted["sums"][0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what the compiler imports
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_machine_code_with_frozen_weights(monkeypatch):
    monkeypatch.setattr(compiled, "INDUCTOR", "inductor")
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    net = nestling.Supernet(model, torch.randn(2, 8))
    subnet = net.subnet(net.space.spec(width=0.5)).eval()
    run = ready("compiled", net, subnet)
    inputs = torch.randn(2, 8)
    with torch.no_grad():
        torch.testing.assert_close(run(inputs), subnet(inputs))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(
    shutil.which("g++") is None or not os.environ.get("NESTLING_SLOW_TESTS"),
    reason="takes 10 to 60 seconds and a C++ compiler: set NESTLING_SLOW_TESTS=1",
)
def test_machine_code_made_ahead_of_time_for_any_number_of_examples(monkeypatch):
    monkeypatch.undo()
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 3))
    net = nestling.Supernet(model, torch.randn(2, 3, 8, 8))
    subnet = net.subnet(net.space.spec(width=0.5)).eval()
    run = ready("aotinductor", net, subnet)
    for batch in (1, 2, 7):
        inputs = torch.randn(batch, 3, 8, 8)
        wanted = subnet(inputs).detach()
        torch.testing.assert_close(run(inputs), wanted)
        laid = inputs.to(memory_format=torch.channels_last)
        torch.testing.assert_close(run(laid), wanted)


def test_what_is_made_ahead_of_time_and_fails_says_so(monkeypatch, net):
    def failing(program):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(aotinductor, "library", failing)
    with pytest.raises(ModelError, match=r"cannot compile 'half': .*no compiler; install a C\+\+"):
        ready("aotinductor", net, net.subnet(net.space.full).eval())


def test_code_made_ahead_of_time_reads_contiguous_memory(monkeypatch, net):
    """Its inputs have the layout that was traced; it does not look at strides."""

    def library(program):
        def code(x):
            assert x.is_contiguous()
            return program.module()(x)

        return code

    monkeypatch.setattr(aotinductor, "library", library)
    subnet = net.subnet(net.space.full).eval()
    images = torch.randn(2, 1, 8, 8).mT
    with torch.no_grad():
        torch.testing.assert_close(ready("aotinductor", net, subnet)(images), subnet(images))


def test_what_cannot_be_compiled_says_so(monkeypatch, net):
    class Wordy(nn.Module):
        def forward(self, x):
            torch._dynamo.graph_break()
            return x

    monkeypatch.setattr(Subject, "packed", lambda subject: Wordy())
    with pytest.raises(ModelError, match=r"cannot compile 'half'.*use another backend"):
        ready("compiled", net, net.subnet(net.space.full))


def test_names_and_what_is_missing(monkeypatch):
    assert set(backends.installed()) <= set(backends.names())
    with pytest.raises(
        ModelError, match=r"unknown backend 'opnvino'; did you mean 'openvino'.*auto"
    ):
        backends.check("opnvino")
    assert backends.check("auto") == "auto"
    monkeypatch.setattr(backends, "absent", lambda packages: list(packages)[:1])
    needing = {name for name in backends.names() if backends.find(name).packages}
    assert needing >= {"onnxruntime", "openvino"}
    assert set(backends.installed()) == set(backends.names()) - needing
    with pytest.raises(
        ModelError, match=r"needs onnxruntime; run `pip install 'nestling\[onnx\]'`"
    ):
        backends.check("onnxruntime")


def test_threads_of_onnx_runtime_wait_in_the_quicker_way_and_sleep_after_a_call(net, monkeypatch):
    runtime = pytest.importorskip("onnxruntime")
    made = []

    class Session(runtime.InferenceSession):
        def __init__(self, path, options, **rest):
            entries = ("session.intra_op.allow_spinning", "session.force_spinning_stop")
            self.told = [options.get_session_config_entry(each) for each in entries]
            super().__init__(path, options, **rest)

        def run(self, *args):
            made.append(self.told)
            return super().run(*args)

    monkeypatch.setattr(runtime, "InferenceSession", Session)
    subject = Subject("full", net.subnet(net.space.full).eval(), net, threads=2)
    for ratio in (1.05, 0.95):
        found = SimpleNamespace(median=ratio)
        monkeypatch.setattr(onnxruntime, "paired_ratio", lambda *calls, seconds, f=found: f)
        onnxruntime.prepare(subject)(torch.randn(1, 1, 8, 8))
    assert made == [["1", "1"], ["0", "1"]]


def test_an_engine_that_is_not_there_is_named(monkeypatch, net):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match=r"pip install 'nestling\[onnx\]'"):
        ready("onnxruntime", net, net.subnet(net.space.full).eval())


@pytest.mark.parametrize("name", ["aotinductor", "onnxruntime", "openvino"])
def test_engines_compute_on_the_processor(name, small):
    net = small.supernet()
    net.to("meta")
    with pytest.raises(ModelError, match="computes on the processor, but the model is on meta"):
        backends.find(name).convert(Subject("full", nn.Module(), net))
