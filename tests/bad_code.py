"""Small models of unusual code: attributes, copying, inputs, and what runs inside."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from bad_models import CASES, Case, Net, case, example
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# -- attributes and copying ------------------------------------------------------------------------


@case(says=("'lock'", "lock", "__deepcopy__"))
class HoldsLock(Net):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


@case(says=("'body.log'", "TextIOWrapper"))
class HoldsFile(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Net()
        self.body.log = open(__file__)  # noqa: SIM115

    def forward(self, x):
        return self.body(x)


@case(says=("'numbers'", "generator"))
class HoldsGenerator(Net):
    def __init__(self):
        super().__init__()
        self.numbers = (n for n in range(9))


@case("one")
class HoldsLambda(Net):
    def __init__(self):
        super().__init__()
        self.act, self.random = (lambda y: y.relu()), torch.Generator()

    def between(self, y):
        return self.act(y)


@case(says=("'width'", "__slots__"))
class Slots(Net):
    __slots__ = ("width",)

    def __init__(self):
        super().__init__()
        self.width = 16

    def between(self, y):
        return F.relu(y.view(-1, self.width))


@case(says=("shares", "__deepcopy__"))
class CopiesAsItself(Net):
    def __deepcopy__(self, memo):
        return self


@case(says=("other weights", "'one.weight'", "__reduce"))
class CopiesAnew(Net):
    def __reduce_ex__(self, protocol):
        return type(self), ()


@case(says=("copied", "new tensors"))
class CopiesAlike(Net):
    """Its copy has the same weights, but does not let others be put in their place."""

    def __deepcopy__(self, memo):
        twin = type(self)()
        twin.load_state_dict(self.state_dict())
        return twin


class Properties(nn.Module):
    """Finds its parts by `__getattr__`, and its size by a property."""

    def __init__(self):
        super().__init__()
        self.body = Net()

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "body":
                raise
            return getattr(self.body, name)

    @property
    def width(self):
        return self.one.out_features

    def forward(self, x):
        return self.two(F.relu(self.one(x)).view(-1, self.width))


CASES["Properties"] = Case(Properties, ("body.one",))


@case(says=("__call__", "forward"))
class CallsItself(Net):
    def __call__(self, x):
        return self.forward(x)


@case("one")
class SkipsHooks(nn.Module):
    """Runs its parts by their `forward`."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.two.forward(self.one.forward(x).relu())


@case("one")
class RefersToItself(Net):
    """Holds itself in a list, and its parent in a part."""

    def __init__(self):
        super().__init__()
        self.me, self.one.__dict__["parent"] = [self], self

    def between(self, y):
        return self.one.parent.me[0].two.weight.new_tensor(1.0) * F.relu(y)


class OddNames(nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("a b", "[x]", "heads", "ü#1", "forward*", "0"):
            self.add_module(name, nn.Linear(6, 6))

    def forward(self, x):
        for part in self.children():
            x = F.relu(part(x))
        return x


CASES["OddNames"] = Case(OddNames, ("a b", "[x]", "heads", "ü#1", "forward*"))


# -- inputs ----------------------------------------------------------------------------------------


@dataclass
class Batch:
    x: Tensor
    scale: float = 2.0


class TakesBatch(Net):
    def forward(self, batch):
        return super().forward(batch.x) * batch.scale


CASES["dataclass input"] = Case(TakesBatch, ("one",), inputs=lambda: ((Batch(example()),), {}))


class TakesAnything(Net):
    def forward(self, *args, mask=None, scale=1.0, extra=None, **more):
        y = super().forward(args[0])
        y = y if mask is None else y.masked_fill(mask[:, None], 0.0)
        return (y + extra["deep"]["x"]) * scale + sum(more.values())


CASES["keywords and nothing"] = Case(
    TakesAnything,
    ("one",),
    inputs=lambda: (
        (example(), None, "text"),
        {
            "mask": torch.tensor([True, False, False, False]),
            "extra": {"deep": {"x": example(4, 3)}, "no": [None]},
            "scale": 3,
            "more": example(4, 3),
        },
    ),
)


class TakesNothing(Net):
    def forward(self):
        return super().forward(torch.linspace(-1, 1, 6, dtype=self.one.weight.dtype)[None])


CASES["no input"] = Case(TakesNothing, ("one",), inputs=lambda: ((), {}))


class OneHot(Net):
    def forward(self, x):
        return super().forward(F.one_hot(x, 6).to(self.one.weight.dtype))


CASES["integers"] = Case(OneHot, ("one",), inputs=lambda: ((torch.arange(4),), {}))


class Toggles(Net):
    def forward(self, x):
        return super().forward(x.to(self.one.weight.dtype))


CASES["booleans"] = Case(Toggles, ("one",), inputs=lambda: ((example() > 0,), {}))


class Spectrum(Net):
    def forward(self, x):
        return super().forward(torch.view_as_real(x).flatten(1))


CASES["complex input"] = Case(
    Spectrum, ("one",), inputs=lambda: ((torch.complex(example(4, 3), example(4, 3) + 1),), {})
)
CASES["NaN input"] = Case(Net, ("one",), inputs=lambda: ((example() * float("nan"),), {}))
CASES["infinite input"] = Case(Net, ("one",), inputs=lambda: ((example() / 0,), {}))
CASES["empty batch"] = Case(
    Net, says=("empty", "at least one example"), inputs=lambda: ((example(0, 6),), {})
)


class OnlyOne(Net):
    def forward(self, x):
        assert len(x) == 1, "one at a time"
        return super().forward(x)


CASES["batch of one alone"] = Case(OnlyOne, ("one",), inputs=lambda: ((example(1, 6),), {}))


class Normed(Net):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(16)

    def between(self, y):
        return F.relu(self.norm(y))


CASES["norm at a batch of one"] = Case(Normed, ("one",), inputs=lambda: ((example(1, 6),), {}))
CASES["wrong shape"] = Case(
    Net, says=("fails in its own forward", "(4, 5)"), inputs=lambda: ((example(4, 5),), {})
)
CASES["missing input"] = Case(Net, says=("fails in its own forward",), inputs=lambda: ((), {}))
CASES["input on another device"] = Case(
    Net, says=("fails in its own forward", "meta"), inputs=lambda: ((example().to("meta"),), {})
)
CASES["meta"] = Case(lambda: Net().to("meta"), says=("meta device", "to_empty"))


# -- code ------------------------------------------------------------------------------------------


@case("one")
class NoGradInside(Net):
    def between(self, y):
        with torch.no_grad():
            gate = y.sigmoid()
        return y * gate


@case("one", trains=False)
class InferenceInside(Net):
    def forward(self, x):
        with torch.inference_mode():
            return super().forward(x)


@case("one")
class Checkpointed(Net):
    def forward(self, x):
        y = checkpoint(lambda x: F.relu(self.one(x)), x, use_reentrant=False)
        return checkpoint(self.two, y, use_reentrant=True)


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(context, gradient):
        (x,) = context.saved_tensors
        return 3 * x**2 * gradient


@case("one")
class OwnFunction(Net):
    def between(self, y):
        return Cube.apply(y)


@case("one")
class Vmapped(Net):
    def forward(self, x):
        return torch.func.vmap(super().forward)(x)


@case("one", "two")
class GradientInside(Net):
    """Returns the gradient of its energy by its input, as force fields do."""

    def forward(self, x):
        with torch.enable_grad():
            return torch.func.grad(lambda x: super(GradientInside, self).forward(x).sin().sum())(x)


@case("one")
class Warning_(Net):
    def forward(self, x):
        warnings.warn("so it goes", UserWarning, stacklevel=1)
        return super().forward(x)


@case("one")
class ChangesItsMode(Net):
    def forward(self, x):
        self.train(False)
        self.two.requires_grad_(True)
        return super().forward(x)


@case("one")
class Falsy(Net):
    """Has no length and no truth value, as containers may."""

    def __len__(self):
        return 0

    def __bool__(self):
        raise RuntimeError("neither true nor false")


@case(says=("Unhashable", "__hash__"))
class Unhashable(Net):
    def __eq__(self, other):
        return self is other


@case(says=("'two.weight'", "named_parameters"))
class HidesParameters(Net):
    def named_parameters(self, *args, **kwargs):
        for name, parameter in super().named_parameters(*args, **kwargs):
            if not name.startswith("two"):
                yield name, parameter


@case("one", "two")
class ForceField(Net):
    """Differentiates its energy by its input, with a graph, as force fields do."""

    def forward(self, x):
        with torch.enable_grad():
            x = x.requires_grad_()
            energy = super().forward(x).sin().sum()
            (force,) = torch.autograd.grad(energy, x, create_graph=True)
        return force, energy


@case(says="not used in the forward run")
class Threaded(Net):
    """Runs its layers in another thread, where nothing can be watched."""

    def forward(self, x):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(super().forward, x).result()


@case("one")
class HookClosure(Net):
    """Takes what a hook put into a dictionary outside of the model."""

    def __init__(self):
        super().__init__()
        seen = {}
        self.one.register_forward_hook(lambda module, args, out: seen.update(y=out))
        self.read = lambda: seen["y"]

    def between(self, y):
        return F.relu(self.read())


@case("one")
class PackedInput(nn.Module):
    """Takes a packed sequence."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, packed):
        return packed._replace(data=self.two(self.one(packed.data).relu()))


CASES["PackedInput"] = Case(
    PackedInput,
    ("one",),
    inputs=lambda: (
        (nn.utils.rnn.pack_sequence([example(5, 6), example(3, 6)]),),
        {},
    ),
)


CASES["nothing elastic"] = Case(
    lambda: nn.Linear(6, 3), says=("nothing in Linear is elastic", "hidden dimension")
)
CASES["no parameters"] = Case(nn.ReLU, says=("nothing in ReLU is elastic", "no parameters"))


def _chain(depth: int, activation: type[nn.Module]) -> nn.Module:
    """Torch's own first weights: a signal shrinks by half at every layer."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(6, 6), activation()]
    return nn.Sequential(*layers)


CASES["many axes"] = Case(
    lambda: _chain(60, nn.Tanh),
    tuple(str(2 * n) for n in range(59)),
    options={"step": 3},
    tolerance=1e-4,
)


CASES["deep and plain"] = Case(
    lambda: _chain(24, nn.ReLU),
    tuple(str(2 * n) for n in range(23)),
    options={"step": 3},
    tolerance=1e-4,
)


def _nested(depth: int) -> nn.Module:
    model: nn.Module = Net()
    for _ in range(depth):
        model = nn.Sequential(model)
    return model


CASES["deeply nested"] = Case(lambda: _nested(40), (".".join("0" * 40) + ".one",))
CASES["too deeply nested"] = Case(
    lambda: _nested(400), says=("nested too deeply", "setrecursionlimit")
)
CASES["no module"] = Case(lambda: Net, says="pass the model itself")  # type: ignore[arg-type]
