"""Small models that misbehave, each in one way, with what must come of it."""

from __future__ import annotations

import random
import types
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

INPUT = (4, 6)


@dataclass(frozen=True)
class Case:
    """A model, and what must come of it.

    Attributes:
        build: makes the model.
        axes: names of the axes that are proven; empty if the model is refused.
        says: words of the error, of the report or of its notes.
        inputs: makes the arguments: `(args, kwargs)`.
        options: further arguments of `Supernet`.
        masked: whether zeroed weights alone make the masked model.
        trains: whether a backward run through a subnet reaches the shared weights.
        tolerance: largest relative difference that the model's own precision explains.
    """

    build: Callable[[], nn.Module]
    axes: tuple[str, ...] = ()
    says: tuple[str, ...] = ()
    inputs: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]] = lambda: ((example(),), {})
    options: dict[str, Any] = field(default_factory=dict)
    masked: bool = True
    trains: bool = True
    tolerance: float = 1e-5


CASES: dict[str, Case] = {}


def case(*axes: str, says: str | tuple[str, ...] = (), **more: Any) -> Callable[[Any], Any]:
    """Enter a model (a class or a function that makes one) in the table."""

    def enter(build: Any) -> Any:
        words = (says,) if isinstance(says, str) else says
        assert build.__name__ not in CASES
        CASES[build.__name__] = Case(build, axes, words, **more)
        return build

    return enter


def example(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape or INPUT, generator=torch.Generator().manual_seed(5)).to(dtype)


class Net(nn.Module):
    """Two layers; a case changes what happens between or around them."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, width), nn.Linear(width, 3)

    def between(self, y: Tensor) -> Tensor:
        return F.relu(y)

    def forward(self, x: Tensor) -> Any:
        return self.two(self.between(self.one(x)))


class Deep(nn.Module):
    """Three layers: one hidden axis may freeze while the other one stays."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(6, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def between(self, y: Tensor) -> Tensor:
        return F.relu(y)

    def forward(self, x: Tensor) -> Any:
        return self.three(F.relu(self.two(self.between(self.one(x)))))


# -- it changes between calls, or keeps state ------------------------------------------------------


@case(says="something else when it is called again")
class Counter(Net):
    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(x) * self.calls


@case("one")
class HarmlessCounter(Net):
    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(x)


@case(says="called again")
class Memory(Net):
    """Mixes in what it saw at the last call, kept in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("state", torch.zeros(16))

    def between(self, y):
        self.state.copy_(0.5 * self.state + y.mean(0))
        return F.relu(y + self.state)


@case("one")
class KeepsActivation(Net):
    """Holds its last hidden values as an attribute, and was called before."""

    def __init__(self):
        super().__init__()
        self(example())

    def between(self, y):
        self.last = F.relu(y)
        return self.last


@case("one")
class CachedPositions(Net):
    """A table made at the first call and kept as a plain attribute; it touches no hidden unit."""

    table = None

    def forward(self, x):
        if self.table is None or len(self.table) != len(x):
            self.table = torch.linspace(0, 1, x.shape[1], dtype=x.dtype)
        return super().forward(x + self.table)


@case("two", says="register it as one")
class CachedTable(Deep):
    """The kept table spans the hidden units."""

    table = None

    def between(self, y):
        if self.table is None:
            self.table = torch.linspace(0, 1, 16)
        return F.relu(y + self.table)


@case("one")
class MadeAtFirstCall(Net):
    """Makes a layer when it is called first, as old code does."""

    def __init__(self):
        super().__init__()
        self.two = None

    def forward(self, x):
        y = F.relu(self.one(x))
        if self.two is None:
            self.two = nn.Linear(y.shape[1], 3)
        return self.two(y)


@case(says="called again")
class MadeAtEveryCall(Net):
    def forward(self, x):
        self.two = nn.Linear(16, 3, dtype=x.dtype)
        return super().forward(x)


@case(says="called again")
class DropoutInEvaluation(Net):
    def between(self, y):
        return F.dropout(F.relu(y), 0.5)


@case(says="called again")
class Sampling(Net):
    def forward(self, x):
        return super().forward(x) + torch.bernoulli(torch.full((3,), 0.5)).to(x.dtype)


@case(says="called again")
class NumpyNoise(Net):
    def forward(self, x):
        return super().forward(x) * float(np.random.rand())


@case(says="called again")
class PythonNoise(Net):
    def forward(self, x):
        return super().forward(x) * random.random()


@case("one")
class Seeded(Net):
    """Random, but the same at every call: it sets the global seed."""

    def forward(self, x):
        torch.manual_seed(3)
        return super().forward(x + torch.randn(6, dtype=x.dtype))


@case("one")
class GlobalState(Net):
    """Changes global settings and leaves them so."""

    def forward(self, x):
        torch.set_default_dtype(torch.float64)
        np.random.seed(1)
        random.seed(1)
        return super().forward(x)


# -- it uses values --------------------------------------------------------------------------------


@case("one")
class BranchOnInput(Net):
    def between(self, y):
        return F.relu(y)

    def forward(self, x):
        return super().forward(x.sin() if float(x.sum()) > 0 else x)


@case("one")
class LoopOnInput(Net):
    def forward(self, x):
        steps = 0
        while x.abs().max() > 0.5 and steps < 20:
            x, steps = x / 2, steps + 1
        return super().forward(x)


@case("two", says="another path when units are cut")
class BranchOnHidden(Deep):
    """Goes one way or the other by the sum of all hidden units."""

    def __init__(self):
        super().__init__()
        nn.init.constant_(self.one.bias, 10.0)

    def between(self, y):
        return F.relu(y) if float(y.mean(0).sum()) > 140 else y.sin()


@case("one", "two", masked=False)
class CountsHidden(Deep):
    """Divides by the number of its hidden units, which Python read from a shape."""

    def between(self, y):
        return F.relu(y) / y.shape[1]


@case("one", "two", trains=False)
class ItemFactor(Deep):
    """Divides by a number that it read from the hidden units."""

    def between(self, y):
        return F.relu(y) / (1 + y.relu().max().item())


@case("one")
class WritesToItsInput(Net):
    def forward(self, x):
        return super().forward(x.clamp_(-1, 1).mul_(0.5))


class Diary:
    """Remembers what it is told, like a cache of keys and values."""

    def __init__(self) -> None:
        self.pages: list[list[Tensor]] = [[]]


class Remembering(Net):
    def forward(self, x, diary):
        diary.pages[0].append(x)
        return super().forward(torch.stack(diary.pages[0]).sum(0))


CASES["growing input"] = Case(Remembering, ("one",), inputs=lambda: ((example(), Diary()), {}))


@case("two")
class NumpyRoundTrip(Deep):
    def between(self, y):
        return torch.from_numpy(np.maximum(y.detach().numpy(), 0))


@case("one", trains=False)
class NumpyOfInput(Net):
    def forward(self, x):
        return super().forward(torch.from_numpy(np.tanh(x.detach().numpy())))


@case("two")
class ListRoundTrip(Deep):
    def between(self, y):
        return torch.tensor(y.tolist(), dtype=y.dtype).relu()


@case("one")
class BooleanIndexed(Net):
    def forward(self, x):
        return super().forward(x[x[:, 0] > -10])


class ByUnique(Net):
    def forward(self, x, kind):
        return super().forward(x) * torch.unique(kind).numel()


CASES["ByUnique"] = Case(
    ByUnique, ("one",), inputs=lambda: ((example(), torch.tensor([1, 2, 2, 5])), {})
)


@case("experts.0.0", says="not used in the forward run")
class UnvisitedExperts(nn.Module):
    """Only the first expert ever runs: the other one cannot be proven."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)) for _ in range(2)
        )

    def forward(self, x):
        return self.experts[int(bool((x.abs() > 1e6).any()))](x)


class RoutedExperts(nn.Module):
    """Each example goes through one of two experts, chosen by a gate that sees the input."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(6, 2)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)) for _ in range(2)
        )

    def forward(self, x):
        choice = self.gate(x).softmax(1)
        chosen = choice.argmax(1)
        out = x.new_zeros(len(x), 3)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero().flatten()
            if len(rows):
                out = out.index_add(0, rows, expert(x[rows]) * choice[rows, number, None])
        return out


CASES["RoutedExperts"] = Case(
    RoutedExperts, ("experts.0.0", "experts.1.0"), inputs=lambda: ((example(64, 6),), {})
)


@case(says="cutting it does not change the output")
class IgnoresHidden(Net):
    def forward(self, x):
        return super().forward(x) * 0 + x[:, :3]


@case("one")
class ZeroInitialised(Net):
    """The last layer starts at zero: nothing would be seen without other weights."""

    def __init__(self):
        super().__init__()
        nn.init.zeros_(self.two.weight)

    def forward(self, x):
        return x[:, :3] + super().forward(x)


@case("one", says="branches on their values")
class BranchOnWeight(Net):
    """Leaves a layer out as long as its gate is zero."""

    def __init__(self):
        super().__init__()
        self.gate, self.aside = nn.Parameter(torch.zeros(1)), nn.Linear(6, 3)

    def forward(self, x):
        y = super().forward(x)
        return y + self.gate * self.aside(x) if float(self.gate) != 0 else y


# -- what it returns -------------------------------------------------------------------------------

Pair = namedtuple("Pair", "left right")


@dataclass
class Output:
    logits: Tensor
    name: str = "out"
    more: Any = None


class Bag:
    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


class Celsius(Tensor):
    """A tensor class that takes part in torch's functions."""


RETURNS: dict[str, Callable[[Tensor], Any]] = {
    "named tuple": lambda y: Pair(y, None),
    "dataclass": lambda y: Output(y, more=[None, {"again": y * 2}]),
    "object": lambda y: Bag(logits=y, steps=3),
    "namespace": lambda y: types.SimpleNamespace(logits=y, inner=types.SimpleNamespace(y=y + 1)),
    "nested": lambda y: {"a": [y, (None, "text", 3)], "b": {"c": y.exp()}},
    "mapping view": lambda y: types.MappingProxyType({"logits": y}),
    "distribution": lambda y: torch.distributions.Normal(y, y.exp() + 0.1),
    "sparse": lambda y: y.to_sparse(),
    "tensor class": lambda y: y.as_subclass(Celsius),
    "several": lambda y: (y, y.argmax(1), y > 0, y.to(torch.complex64)),
    "loop": lambda y: _loop(y),
}


def _loop(y: Tensor) -> Bag:
    bag = Bag(y=y)
    bag.self = bag
    return bag


class Returning(Net):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x):
        return RETURNS[self.kind](super().forward(x))


for _kind in RETURNS:
    CASES[f"returns {_kind}"] = Case(lambda kind=_kind: Returning(kind), ("one",))


@case(says=("returns no tensor", "returns float", "outputs="))
class ReturnsNumber(Net):
    def forward(self, x):
        return float(super().forward(x).sum())


@case(says=("returns no tensor", "generator"))
class ReturnsGenerator(Net):
    def forward(self, x):
        return (y for y in super().forward(x))


@case(says=("returns no tensor", "ndarray"))
class ReturnsArray(Net):
    def forward(self, x):
        return super().forward(x).detach().numpy()


@case(says=("returns a nested tensor", "values()"))
class ReturnsNested(Net):
    def forward(self, x):
        y = super().forward(x)
        return torch.nested.as_nested_tensor([y[0], y[1, :2]], layout=torch.jagged)


@case("one")
class ReturnsItsInput(Net):
    def forward(self, x):
        return super().forward(x), x, x[:, :2]


@case("two", says="size of the model's output")
class ReturnsItsWeight(Deep):
    def forward(self, x):
        return super().forward(x), self.one.weight, self.one.bias[:4]


# -- what it shares --------------------------------------------------------------------------------


@case("embed", inputs=lambda: ((torch.arange(12).view(3, 4),), {}))
class TiedEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(12, 16), nn.Linear(16, 12, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens):
        return self.out(self.embed(tokens).tanh())


@case("block.0")
class SharedModule(nn.Module):
    """One module under two names, called three times."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 6))
        self.again = self.block

    def forward(self, x):
        return self.block(self.again(x)) + self.block[2](self.again[0](x))


@case(says=("share memory", "'two.weight'", "'one.weight'"))
def OverlappingWeights():
    model = nn.Sequential()
    model.one, model.two = nn.Linear(6, 6), nn.Linear(6, 6)
    model.two.weight = nn.Parameter(model.one.weight.detach())
    return model


@case("0", "2")
def FlatWeights():
    """All weights are views of one flat buffer, side by side, as sharded training keeps them."""
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    for parameter in model.parameters():
        size = parameter.numel()
        parameter.data, flat = flat[:size].view(parameter.shape), flat[size:]
    return model


@case(says=("'one.bias'", "expand", "clone()"))
class ExpandedWeight(Net):
    def __init__(self):
        super().__init__()
        self.one.bias = nn.Parameter(torch.ones(1).expand(16))


@case("one")
class StridedWeight(Net):
    """Weights that lie transposed, and every other row of something larger."""

    def __init__(self):
        super().__init__()
        self.one.weight = nn.Parameter(torch.randn(6, 16).t())
        self.two.weight = nn.Parameter(torch.randn(6, 16)[::2])
