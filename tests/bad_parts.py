"""Small models of unusual parts: parameters, dtypes, wrappers, hooks, attributes, inputs, code."""

from __future__ import annotations

import functools
import types
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from bad_models import CASES, Case, Celsius, Deep, Net, case, example
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

# -- kinds of parameters ---------------------------------------------------------------------------


@case("two", says="register it as one")
class ListedParameters(Deep):
    """Parameters in a plain list, which no optimiser sees."""

    def __init__(self):
        super().__init__()
        self.scales = [nn.Parameter(torch.rand(16) + 0.5)]

    def between(self, y):
        return F.relu(y * self.scales[0])


@case("one")
class ParameterContainers(Net):
    def __init__(self):
        super().__init__()
        self.scales = nn.ParameterList([nn.Parameter(torch.rand(16)), nn.Parameter(torch.ones(1))])
        self.named = nn.ParameterDict({"odd name-1": nn.Parameter(torch.rand(16))})

    def between(self, y):
        return F.relu(y * self.scales[0] * self.scales[1] + self.named["odd name-1"])


@case("one")
class MissingParameters(Net):
    def __init__(self):
        super().__init__()
        self.one.bias = None
        self.register_parameter("gone", None)
        self.register_buffer("missing", None)
        self.spare = None


@case("one")
class OddSizes(Net):
    """Parameters of no entry, of no dimension, and of whole numbers."""

    def __init__(self):
        super().__init__()
        self.empty = nn.Parameter(torch.zeros(0, 16))
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.shift = nn.Parameter(torch.tensor([3, 4, 5]), requires_grad=False)
        self.switch = nn.Parameter(torch.tensor(True), requires_grad=False)

    def between(self, y):
        return F.relu(torch.cat([y, self.empty])) * self.scale

    def forward(self, x):
        return super().forward(x) + self.shift * self.switch


@case("one")
class FrozenWeights(Net):
    def __init__(self):
        super().__init__()
        self.one.requires_grad_(False)


@case("one", trains=False)
class AllFrozen(Net):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)


@case("one")
class NonPersistentBuffers(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.rand(16) + 0.5, persistent=False)
        self.kept = nn.Buffer(torch.rand(16), persistent=True)

    def between(self, y):
        return F.relu(y * self.scale + self.kept)


class Scaled(nn.Parameter):
    """A parameter class with a method and a value of its own."""

    def twice(self) -> Tensor:
        return self * self.factor


@case("one")
class ParameterSubclass(Net):
    def __init__(self):
        super().__init__()
        self.scale = Scaled(torch.rand(16))
        self.scale.factor = 2.0
        self.one.weight.no_decay = True

    def between(self, y):
        return F.relu(y * self.scale.twice())


@case(says=("'one.weight'", "Celsius", "plain"))
class TensorSubclass(Net):
    def __init__(self):
        super().__init__()
        self.one.weight = nn.Parameter(self.one.weight.detach().as_subclass(Celsius))


@case(says=("'weight'", "sparse", "to_dense()"))
class SparseWeight(Net):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(16).to_sparse())

    def between(self, y):
        return F.relu(torch.sparse.mm(self.weight, y.T).T)


@case("embed", inputs=lambda: ((torch.arange(12).view(3, 4),), {}))
class SparseGradients(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(12, 16, sparse=True), nn.Linear(16, 3)

    def forward(self, tokens):
        return self.out(self.embed(tokens).tanh())


@case("two")
class ComplexWeights(Deep):
    """A filter in the frequency domain, as spectral models have."""

    def __init__(self):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(9, dtype=torch.complex64))

    def between(self, y):
        return F.relu(torch.fft.irfft(torch.fft.rfft(y) * self.filter, n=16))


class ComplexLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(6, 16, dtype=torch.complex64)
        self.two = nn.Linear(16, 3, dtype=torch.complex64)

    def forward(self, x):
        return torch.view_as_real(self.two(self.one(x).tanh()))


CASES["ComplexLayer"] = Case(
    ComplexLayer,
    ("one",),
    inputs=lambda: ((torch.complex(example(), example() + 1),), {}),
)


@case("one")
class LazyLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.LazyLinear(16), nn.LazyLinear(3)

    def forward(self, x):
        return self.two(F.relu(self.one(x)))


# -- numbers ---------------------------------------------------------------------------------------


def _converted(dtype: torch.dtype, tolerance: float) -> Case:
    inputs = lambda: ((example(dtype=dtype),), {})  # noqa: E731
    return Case(lambda: Net().to(dtype), ("one",), inputs=inputs, tolerance=tolerance)


CASES["half"] = _converted(torch.float16, 1e-2)
CASES["bfloat16"] = _converted(torch.bfloat16, 5e-2)
CASES["double"] = _converted(torch.float64, 1e-12)


@case("one", tolerance=5e-2)
class AutocastInside(Net):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


@case("one", tolerance=5e-2, inputs=lambda: ((example(dtype=torch.bfloat16),), {}))
class MixedWidths(Net):
    """The second layer is in float32, as is usual around norms and heads."""

    def __init__(self):
        super().__init__()
        self.one = self.one.to(torch.bfloat16)

    def between(self, y):
        return F.relu(y).to(self.two.weight.dtype)


@case("one", says=("proven to", "float16"), tolerance=2e-2)
class HardHalf(Net):
    """Its code casts to float16 itself, so that the proof cannot run in float64."""

    def __init__(self):
        super().__init__()
        self.half()

    def forward(self, x):
        return super().forward(x.half())


@case("one", trains=False)
class Float8(Net):
    def __init__(self):
        super().__init__()
        self.one.weight = nn.Parameter(self.one.weight.detach().to(torch.float8_e4m3fn))

    def forward(self, x):
        y = F.linear(x, self.one.weight.to(x.dtype), self.one.bias)
        return self.two(F.relu(y))


@case(says=("quantised", "before"))
def Quantised():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(Net(), {nn.Linear})


@case("two", says="its size is fixed here")
class IntegerWeights(Deep):
    """Eight-bit weights with scales, undone at every call, as weight-only quantisation does."""

    def __init__(self):
        super().__init__()
        whole = torch.randint(-127, 128, (16, 6), dtype=torch.int8)
        self.one = nn.Module()
        self.one.register_buffer("whole", whole)
        self.one.register_buffer("scale", torch.rand(16, 1) / 100 + 0.01)

    def forward(self, x):
        y = F.linear(x, self.one.whole.to(x.dtype) * self.one.scale.to(x.dtype))
        return self.three(F.relu(self.two(F.relu(y))))


# -- wrappers --------------------------------------------------------------------------------------


@case(says=("scripted", "plain nn.Module"))
def Scripted():
    return _quietly(lambda: torch.jit.script(Net()))


@case(says=("scripted", "plain nn.Module"))
def Traced():
    return _quietly(lambda: torch.jit.trace(Net(), example()))


@case(says=("scripted", "'0'"))
def ScriptedPart():
    return nn.Sequential(_quietly(lambda: torch.jit.script(Net())), nn.Linear(3, 3))


def _quietly(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


@case(says="model.module")
def Parallel():
    return nn.DataParallel(Net())


@case(says=("'0'", "module"))
def ParallelPart():
    return nn.Sequential(nn.DataParallel(Net()), nn.Linear(3, 3))


@case(says="_orig_mod")
def Compiled():
    return torch.compile(Net(), backend="eager")


@case("one")
def CompiledInPlace():
    model = Net()
    model.compile(backend="eager")
    return model


@case(says=("refers to the model", "forward"))
def CompiledForward():
    model = Net()
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def Averaged():
    return torch.optim.swa_utils.AveragedModel(Net())


CASES["Averaged"] = Case(Averaged, ("module.one",))


@case("one")
def SymbolicallyTraced():
    return torch.fx.symbolic_trace(Net())


@case("one")
def Exported():
    return torch.export.export(Net(), (example(),)).module()


@case("one")
def MethodReplaced():
    model = Net()
    model.forward = types.MethodType(lambda self, x: self.two(self.one(x).sin()), model)
    return model


@case("one")
def PartialReplaced():
    model = Net()
    model.forward = functools.partial(lambda self, x: self.two(self.one(x).sin()), model)
    return model


@case(says=("refers to the model", "closure"))
class ClosureOverSelf(Net):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(16))
        self.act = lambda y: F.relu(y * self.scale)

    def between(self, y):
        return self.act(y)


@case("one")
class FunctionalCall(Net):
    def forward(self, x):
        inner = {"weight": self.two.weight * 2, "bias": self.two.bias}
        return torch.func.functional_call(self.two, inner, (F.relu(self.one(x)),))


# -- hooks and parametrisations --------------------------------------------------------------------


@case("one")
def Hooked():
    """Hooks of all kinds, some of which change what passes."""
    model = Net()
    seen: list[Any] = []
    model.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    model.one.register_forward_hook(lambda module, args, out: out * 2)
    model.register_forward_hook(
        lambda module, args, kwargs, out: seen.append(kwargs), with_kwargs=True
    )
    model.one.register_full_backward_hook(lambda module, inner, outer: seen.append(outer))
    model.two.register_full_backward_pre_hook(lambda module, outer: seen.append(outer))
    model.register_state_dict_pre_hook(lambda module, prefix, keep: None)
    model.one.weight.register_hook(lambda gradient: seen.append(gradient))
    model.one.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p))
    return model


@case("one", "two")
class FeatureHooks(Deep):
    """Takes what a hook caught in place of what the layer returned."""

    def __init__(self):
        super().__init__()
        self.caught = {}
        self.one.register_forward_hook(functools.partial(_catch, self.caught))

    def between(self, y):
        return F.relu(self.caught.pop("one"))


def _catch(caught, module, args, out):
    caught["one"] = out


def _wrapped(wrap, *layers):
    model = Net()
    for name in layers:
        _quietly(lambda name=name: wrap(getattr(model, name)))
    return model


WRAPS = {
    "weight norm": (parametrizations.weight_norm, False),
    "spectral norm": (parametrizations.spectral_norm, True),
    "old weight norm": (nn.utils.weight_norm, False),
    "old spectral norm": (nn.utils.spectral_norm, True),
    "pruned": (lambda layer: prune.l1_unstructured(layer, "weight", 0.3), True),
}
for _name, (_wrap, _plain) in WRAPS.items():
    CASES[_name] = Case(functools.partial(_wrapped, _wrap, "one", "two"), ("one",), masked=_plain)
