"""Models that misbehave: each works, exactly, or is refused in words that say what to do.

Every subnet is compared with the model whose cut units are zeroed by hand, forward and backward,
and the user's own model must come out as it went in.
"""

from __future__ import annotations

import copy
import importlib.util
import random
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.nn.parameter import UninitializedTensorMixin

import nestling
from nestling.axes.structure import map_tensors, tensors_in
from nestling.errors import NestlingError
from nestling.extent import Along, Fixed
from nestling.weights import duplicate


def _load(name: str) -> types.ModuleType:
    """Import a file of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


CASES = _load("bad_models").CASES
_load("bad_parts")
_load("bad_code")
WORKING = [name for name, case in CASES.items() if case.axes]
REFUSED = [name for name, case in CASES.items() if not case.axes]
TRAINED = [name for name in WORKING if CASES[name].trains]


@pytest.fixture(autouse=True)
def _contained():
    """Models of the table change global settings when the test itself runs them."""
    dtype = torch.get_default_dtype()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_default_dtype(dtype)


def built(name: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    torch.manual_seed(0)
    args, kwargs = CASES[name].inputs()
    return CASES[name].build(), args, kwargs


def supernet(name: str) -> tuple[nestling.Supernet, tuple[Any, ...], dict[str, Any]]:
    model, args, kwargs = built(name)
    net = nestling.Supernet(model, *args, kwargs=kwargs, **CASES[name].options)
    args, kwargs = map_tensors((args, kwargs), _finite)
    return net, args, kwargs


def _finite(tensor: Tensor) -> Tensor:
    return tensor.nan_to_num(0.5, 2.0, -2.0) if tensor.is_floating_point() else tensor


class Snapshot:
    """All of a model, its inputs and its surroundings that making a supernet must leave alone."""

    def __init__(self, model: Any, inputs: Any) -> None:
        self.model, self.inputs = model, inputs
        self.tensors = [*tensors_in(inputs)]
        try:
            self.modules = list(model.modules())
        except TypeError:  # no module, or one that cannot be hashed
            self.modules = []
        if not isinstance(model, torch.jit.ScriptModule):
            for module in self.modules:
                self.tensors += [p for p in module._parameters.values() if p is not None]
                self.tensors += [b for b in module._buffers.values() if b is not None]
        self.values = [self._value(tensor) for tensor in self.tensors]
        self.state = self._state()
        self.surroundings = self._surroundings()

    def _value(self, tensor: Tensor) -> Tensor | None:
        lazy = isinstance(tensor, UninitializedTensorMixin) or tensor.is_meta
        return None if lazy else tensor.detach().clone()

    def _state(self) -> list[Any]:
        state: list[Any] = [
            (id(t), t._version, id(t.grad), t.requires_grad, t.is_leaf, t.dtype, t.device)
            for t in self.tensors
        ]
        for module in self.modules:
            if isinstance(module, torch.jit.ScriptModule):
                continue
            for key, value in vars(module).items():
                parts = len(value) if isinstance(value, (dict, list, set)) else None
                state.append((type(module), key, id(value), parts))
        return state

    def _surroundings(self) -> list[Any]:
        return [
            torch.get_rng_state().tolist(),
            random.getstate(),
            [np.asarray(part).tolist() for part in np.random.get_state()],
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.backends.mha.get_fastpath_enabled(),
            len(global_hooks._global_forward_hooks),
            len(global_hooks._global_forward_pre_hooks),
        ]

    def check(self) -> None:
        """Assert that nothing has changed."""
        assert self._state() == self.state
        assert self._surroundings() == self.surroundings
        for tensor, value in zip(self.tensors, self.values, strict=True):
            if value is not None:
                own, value = (t.to_dense() if t.is_sparse else t for t in (tensor, value))
                assert bool(((own == value) | (own != own)).all())


@pytest.mark.parametrize("name", CASES)
def test_users_model_inputs_and_surroundings_are_left_alone(name):
    model, args, kwargs = built(name)
    before = Snapshot(model, (args, kwargs))
    try:
        net = nestling.Supernet(model, *args, kwargs=kwargs, **CASES[name].options)
    except NestlingError:
        assert not CASES[name].axes
    else:
        mine, own = dict(model.named_parameters()), dict(net.model.named_parameters())
        assert not {id(p) for p in mine.values()} & {id(p) for p in own.values()}
    before.check()


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_words(name):
    model, args, kwargs = built(name)
    with pytest.raises(NestlingError) as caught:
        nestling.Supernet(model, *args, kwargs=kwargs, **CASES[name].options)
    message = str(caught.value)
    assert all(word in message for word in CASES[name].says), message
    # The rule and the value, then the cure.
    assert len(message) > 60
    assert ";" in message or ":" in message


@pytest.mark.parametrize("name", WORKING)
def test_every_subnet_is_the_masked_model(name):
    net, args, kwargs = supernet(name)
    report = str(net.space)
    assert tuple(net.space.axes) == CASES[name].axes, report
    assert all(word in report for word in CASES[name].says), report
    draw = random.Random(1)
    for _ in range(3):
        counts = {n: draw.choice(a.counts) for n, a in net.space.axes.items()}
        subnet = net.subnet(counts).eval()
        found = numbers(subnet, args, kwargs)
        assert sum(p.numel() for p in subnet.parameters()) == net.space.params(counts)
        packed = numbers(nestling.pack(subnet), args, kwargs)
        assert apart(packed, found) <= CASES[name].tolerance
        if CASES[name].masked:
            masked = duplicate(net.model).eval()
            with torch.no_grad():
                for key, parameter in masked.named_parameters():
                    parameter.copy_(parameter.to(torch.complex128) * mask(net, key, counts))
            assert apart(found, numbers(masked, args, kwargs)) <= CASES[name].tolerance
    full = numbers(net.subnet(net.space.full).eval(), args, kwargs)
    assert apart(full, numbers(duplicate(net.model).eval(), args, kwargs)) == 0


@pytest.mark.parametrize("name", TRAINED)
def test_training_a_subnet_reaches_the_shared_weights(name):
    """Gradients are the masked model's, a step changes the outputs, and copies can be packed."""
    net, args, kwargs = supernet(name)
    counts = {n: a.counts[0] for n, a in net.space.axes.items()}
    subnet = net.subnet(counts).eval()
    for _ in range(2):
        loss(subnet, args, kwargs).backward()
    assert any(p.grad is not None and bool((p.grad != 0).any()) for p in net.parameters())
    if CASES[name].masked:
        compare_gradients(name, net, counts, args, kwargs)
    before = numbers(subnet, args, kwargs)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.grad is not None:
                step = parameter.grad.to(torch.complex128)
                scale = 1e-9 + float(step.abs().sum()) / max(step.numel(), 1)
                parameter.copy_(parameter.to(torch.complex128) - 0.1 * step / scale)
    after = numbers(subnet, args, kwargs)
    assert apart(after, before) > 0
    again = numbers(net.subnet(counts).eval(), args, kwargs)
    assert apart(after, again) <= CASES[name].tolerance
    assert apart(numbers(nestling.pack(subnet), args, kwargs), after) <= CASES[name].tolerance
    assert apart(numbers(copy.deepcopy(subnet), args, kwargs), after) <= CASES[name].tolerance


def compare_gradients(name, net, counts, args, kwargs):
    masked = duplicate(net.model).eval()
    masks = {key: mask(net, key, counts) for key, _ in net.named_parameters()}
    with torch.no_grad():
        for key, parameter in masked.named_parameters():
            parameter.copy_(parameter.to(torch.complex128) * masks[key])
            parameter.grad = None
    for _ in range(2):
        loss(masked, args, kwargs).backward()
    for key, parameter in masked.named_parameters():
        own = dict(net.named_parameters())[key].grad
        if parameter.grad is None or own is None:
            assert parameter.grad is None or not bool(parameter.grad.to_dense().any())
            continue
        wanted = parameter.grad.to_dense().to(torch.complex128) * masks[key]
        assert apart([own], [wanted]) <= 10 * CASES[name].tolerance, key


def mask(net: nestling.Supernet, name: str, counts: dict[str, int]) -> Tensor:
    """Ones where a spec keeps a parameter's entries: one product over its dimensions."""
    shape = dict(net.named_parameters())[name].shape
    result = torch.ones(shape, dtype=torch.complex128)
    for dim, extent in enumerate(net.space.layouts[name].extents):
        line = torch.zeros(shape[dim], dtype=torch.complex128)
        if isinstance(extent, Fixed):
            line += 1
        else:
            assert isinstance(extent, Along)  # these small nets have no products
            line[: counts.get(extent.axis, extent.size)] = 1
        result = result * line.view([-1 if i == dim else 1 for i in range(len(shape))])
    return result


def called(model: nn.Module, args: Any, kwargs: Any) -> list[Tensor]:
    args, kwargs = copy.deepcopy((args, kwargs))
    found = tensors_in(model(*args, **kwargs))
    return [tensor.to_dense() if tensor.is_sparse else tensor for tensor in found]


def numbers(model: nn.Module, args: Any, kwargs: Any) -> list[Tensor]:
    with torch.no_grad():
        return [tensor.clone() for tensor in called(model, args, kwargs)]


def loss(model: nn.Module, args: Any, kwargs: Any) -> Tensor:
    parts = [t.abs().square().sum() for t in called(model, args, kwargs) if t.requires_grad]
    return sum(part.float() for part in parts)


def apart(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest difference, relative to the largest entry of the same tensor."""
    assert [t.shape for t in found] == [t.shape for t in wanted]
    worst = 0.0
    for one, other in zip(found, wanted, strict=True):
        one, other = one.detach().to(torch.complex128), other.detach().to(torch.complex128)
        if one.numel():
            size = max(float(other.abs().max()), 1e-3)
            worst = max(worst, float((one - other).abs().max()) / size)
    return worst


# -- wrappers around subnets, other numbers --------------------------------------------------------


@pytest.fixture
def process_group(tmp_path):
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("options", [{}, {"gradient_as_bucket_view": True}, {"static_graph": True}])
def test_data_parallel_training_of_packed_copies(process_group, options):
    """A live subnet is refused in words; a packed copy trains, and is taken back as it is."""
    parallel = nn.parallel.DistributedDataParallel
    net, (x,), _ = supernet("HarmlessCounter")
    spec = net.space.spec(width=0.5)
    with pytest.raises(NestlingError, match=r"wrap nestling\.pack\(subnet\)"):
        parallel(net.subnet(spec), **options)
    packed = nestling.pack(net.subnet(spec))
    alone = copy.deepcopy(packed)
    wrapped = parallel(packed, **options)
    for model in (wrapped, alone):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    subnet = net.absorb(spec, wrapped)
    assert apart([subnet(x)], [alone(x)]) <= 1e-6
    with pytest.raises(NestlingError, match=r"model\.module"):
        nestling.Supernet(wrapped, x)


def test_averaging_the_shared_gradients_is_what_the_refusal_says(process_group):
    net, (x,), _ = supernet("HarmlessCounter")
    net.subnet(net.space.spec(width=0.5))(x).square().sum().backward()
    before = [parameter.grad.clone() for parameter in net.parameters()]
    for parameter in net.parameters():
        torch.distributed.all_reduce(parameter.grad)
    assert all(map(torch.equal, before, (parameter.grad for parameter in net.parameters())))


@pytest.mark.parametrize("name", ["HarmlessCounter", "ItemFactor", "OwnFunction"])
def test_autocast_around_a_subnet_is_autocast_around_a_plain_net(name):
    net, args, kwargs = supernet(name)
    subnet = net.subnet(net.space.spec(width=0.5)).eval()
    plain = nestling.pack(subnet)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            found, wanted = (tensors_in(model(*args, **kwargs)) for model in (subnet, plain))
        assert found[0].dtype is torch.bfloat16
        assert apart(found, wanted) == 0
        found[0].float().square().sum().backward()
        wanted[0].float().square().sum().backward()
        with torch.no_grad():  # the casts that autocast keeps must not outlive a step
            for model in (net, plain):
                for parameter in model.parameters():
                    parameter += 1
    own = dict(subnet.named_parameters())
    for key, parameter in plain.named_parameters():
        assert apart([own[key].grad], [parameter.grad]) <= 1e-2
        assert own[key].grad.dtype is torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_net_that_is_converted_takes_its_subnets_along(dtype):
    net, (x,), _ = supernet("HarmlessCounter")
    subnet = net.subnet(net.space.spec(width=0.5))
    wanted = subnet(x)
    full_bytes = net.space.bytes(net.space.full)
    net.to(dtype)
    found = subnet(x.to(dtype))
    assert found.dtype is dtype
    assert apart([found], [wanted]) <= 5e-2
    assert net.space.bytes(net.space.full) == full_bytes * dtype.itemsize // 4
    found.float().square().sum().backward()
    assert all(p.grad.dtype is dtype for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_subnet_of_an_unusual_model(backend):
    net, args, kwargs = supernet("ParameterContainers")
    subnet = net.subnet(net.space.spec(width=0.5)).eval()
    compiled = torch.compile(subnet, backend=backend)
    for _ in range(2):
        assert apart(numbers(compiled, args, kwargs), numbers(subnet, args, kwargs)) <= 1e-6
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(1.1)


# -- what a model does to its surroundings ---------------------------------------------------------


def test_surroundings_are_put_back_when_the_model_fails():
    class Failing(nn.Module):
        def forward(self, x):
            torch.manual_seed(1)
            random.seed(1)
            np.random.seed(1)
            torch.set_default_dtype(torch.float64)
            raise RuntimeError("boom")

    model, x = Failing(), torch.randn(2, 2)
    before = Snapshot(model, x)
    with pytest.raises(NestlingError, match="boom"):
        nestling.Supernet(model, x)
    before.check()


def test_random_states_of_accelerators_are_forked(monkeypatch):
    """No accelerator is at hand: a model that says it lives on one must have its state kept."""
    forked = []

    class Fork:
        def __init__(self, devices, device_type="cuda"):
            forked.append((tuple(devices), device_type))

        def __enter__(self):
            return None

        def __exit__(self, *given):
            return None

    class Elsewhere:
        device = torch.device("cuda", 1)

    monkeypatch.setattr(torch.random, "fork_rng", Fork)
    monkeypatch.setattr(nestling.surroundings, "tensors_of", lambda model: {"w": Elsewhere()})
    with nestling.surroundings.undisturbed(nn.Linear(1, 1)):
        pass
    assert forked == [((), "cuda"), ((1,), "cuda")]
