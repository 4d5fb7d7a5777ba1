"""Rewritten forwards: for code that holds sizes as literal numbers.

Where a module's own code says `x.view(-1, 400)`, no attribute can be set. In a subnet such a module
keeps its class, its weights, its parts and its hooks; only its `forward` is another one: the code
that `torch.fx` traces from the module, its parts being called as they are, in which the literals
follow the axes. It is traced anew from the user's code wherever a subnet is made, so a file holds
no code, only which numbers follow which axes.
"""

from __future__ import annotations

import copy
import importlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import fx, nn

from nestling import extent as extents
from nestling.errors import ModelError
from nestling.extent import Counts, Extent

FACTORIES = (
    *(torch.zeros, torch.ones, torch.full, torch.empty, torch.arange),
    *(torch.rand, torch.randn, torch.tensor),
)


@dataclass(frozen=True, slots=True)
class Edit:
    """A literal number that follows axes.

    Attributes:
        node: name of the node of the traced graph.
        path: the way to the literal: position or keyword, then inside of tuples and slices.
        extent: what the number is.
    """

    node: str
    path: tuple[int | str, ...]
    extent: Extent


@dataclass(frozen=True)
class Rewrite:
    """The literals of one module's forward.

    Attributes:
        module: its path.
        fixed: inputs by name that are None, true, false or a text, and stay so.
        edits: which numbers follow which axes.
    """

    module: str
    fixed: tuple[tuple[str, bool | str | None], ...]
    edits: tuple[Edit, ...]


@dataclass(frozen=True, slots=True)
class Code:
    """Python code of a forward, and what its global names stand for; modules by their name."""

    source: str
    names: Mapping[str, Any]
    modules: Mapping[str, str]

    @classmethod
    def of(cls, graph: fx.Graph) -> Code:
        """Return the code of a graph."""
        code = graph.python_code("self")
        modules = {k: v.__name__ for k, v in code.globals.items() if isinstance(v, ModuleType)}
        names = {k: v for k, v in code.globals.items() if k not in modules}
        return cls(code.src, names, modules)


class Rewritten:
    """The forward of a module whose literals follow a spec; it can be copied and pickled.

    Args:
        module: in whose place it runs.
        evaluation: the code for evaluation mode.
        training: the code for training mode.
    """

    def __init__(self, module: nn.Module, evaluation: Code, training: Code) -> None:
        self.module = module
        self.codes = evaluation, training
        self.runs = tuple(map(_compiled, self.codes))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the code on the module."""
        return self.runs[self.module.training](self.module, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Rewritten:
        return Rewritten(copy.deepcopy(self.module, memo), *self.codes)

    def __getstate__(self) -> Any:
        return self.module, self.codes

    def __setstate__(self, state: Any) -> None:
        self.module, self.codes = state
        self.runs = tuple(map(_compiled, self.codes))


def rewrite(twin: nn.Module, module: nn.Module, given: Rewrite, counts: Counts) -> None:
    """Give a subnet's module a forward whose literals follow a spec.

    Args:
        twin: the module of the subnet.
        module: the same module of the net.
        given: which literals follow which axes.
        counts: kept units by axis name.

    Raises:
        ModelError: the module's code is another one than when the supernet was made.
    """
    codes = []
    for training in (False, True):
        graph = copy.deepcopy(traced(module, training, dict(given.fixed)))
        nodes = {node.name: node for node in graph.nodes}
        for edit in given.edits:
            if edit.node not in nodes or edit.path not in dict(literals(nodes[edit.node])):
                raise ModelError(
                    f"the forward code of {given.module or 'the model'} is not the one that the "
                    "supernet was made from: a number that follows an axis is missing; use the "
                    "same code, or make the supernet again"
                )
            _replace(nodes[edit.node], edit.path, extents.count(edit.extent, counts))
        codes.append(Code.of(graph))
    twin.__dict__["forward"] = Rewritten(twin, *codes)


def traced(module: nn.Module, training: bool, fixed: Mapping[str, bool | str | None]) -> fx.Graph:
    """Return the graph of a module's own forward code, with its parts called as they are.

    Args:
        module: it is not changed.
        training: the mode whose code is traced.
        fixed: inputs by name that are None, true, false or a text.

    Raises:
        TypeError: traced code would not do all that the forward does.
        Exception: whatever `torch.fx` says of code that it cannot trace, such as code that
            branches on the values of its inputs.
    """
    # A twin of its own: the user's module keeps its mode, and no forward of ours is in its way.
    twin = copy.copy(module)
    twin.__dict__.pop("forward", None)
    twin.training = training
    tracer = _Outermost()
    twin.__class__ = _with_noted_factories(type(module), tracer)
    held, chance = dict(twin.__dict__), random.getstate()
    graph = tracer.trace(twin, dict(fixed))
    if random.getstate() != chance:
        random.setstate(chance)
        raise TypeError("the forward draws random numbers, which would be drawn once and for all")
    if any(held.get(key, held) is not value for key, value in twin.__dict__.items()):
        raise TypeError("the forward writes to its module, which would happen once and for all")
    for node in graph.nodes:
        if node.op == "placeholder" and node.target.removesuffix("_1") in fixed:
            node.target = node.target.removesuffix("_1")  # inputs keep their names
    return graph


def literals(node: fx.Node) -> Iterator[tuple[tuple[int | str, ...], int]]:
    """Yield the whole numbers among a node's arguments, with the way to each."""
    for index, value in enumerate(node.args):
        yield from _inside(value, (index,))
    for key, value in node.kwargs.items():
        yield from _inside(value, (key,))


class _Outermost(fx.Tracer):
    """Traces one module's forward; its parts are called as they are."""

    trace_asserts = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


class _Torch:
    """The name `torch` in traced code: functions that make tensors become nodes."""

    def __init__(self, tracer: fx.Tracer) -> None:
        self._tracer = tracer

    def __getattr__(self, name: str) -> Any:
        return _noted(getattr(torch, name), self._tracer)


def _noted(value: Any, tracer: fx.Tracer) -> Any:
    """Return what traced code sees for a global name.

    `torch.zeros(b, 64)` takes no proxy for `b`, and without one it would be run once and for all.
    """
    if value is torch:
        return _Torch(tracer)
    if not any(value is factory for factory in FACTORIES):
        return value
    return lambda *args, **kwargs: tracer.create_proxy("call_function", value, args, kwargs)


def _with_noted_factories(kind: type[nn.Module], tracer: fx.Tracer) -> type[nn.Module]:
    """Return the class with a forward that notes the tensors which it makes."""
    forward: Any = kind.forward
    if not isinstance(forward, FunctionType) or hasattr(forward, "__wrapped__"):
        raise TypeError("a decorated forward does more than its own code says")
    names = {key: _noted(value, tracer) for key, value in forward.__globals__.items()}
    again = FunctionType(
        forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__
    )
    again.__kwdefaults__ = forward.__kwdefaults__
    return type(kind.__name__, (kind,), {"forward": again})


def _inside(value: Any, path: tuple[int | str, ...]) -> Iterator[tuple[tuple[int | str, ...], int]]:
    if isinstance(value, int) and not isinstance(value, bool):
        yield path, value
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from _inside(item, (*path, index))
    elif isinstance(value, slice):
        yield from _inside(value.start, (*path, "start"))
        yield from _inside(value.stop, (*path, "stop"))


def _replace(node: fx.Node, path: tuple[int | str, ...], number: int) -> None:
    first, *rest = path
    if isinstance(first, str):
        node.update_kwarg(first, _put(node.kwargs[first], rest, number))
    else:
        node.update_arg(first, _put(node.args[first], rest, number))


def _put(value: Any, path: Sequence[int | str], number: int) -> Any:
    if not path:
        return number
    key, rest = path[0], path[1:]
    if isinstance(value, slice):
        ends = {"start": value.start, "stop": value.stop}
        ends[str(key)] = number
        return slice(ends["start"], ends["stop"], value.step)
    items = list(value)
    items[int(key)] = _put(items[int(key)], rest, number)
    return tuple(items) if isinstance(value, tuple) else items


def _compiled(code: Code) -> Callable[..., Any]:
    scope = {**code.names, **{k: importlib.import_module(m) for k, m in code.modules.items()}}
    exec(compile(code.source, "<rewritten forward>", "exec"), scope)  # torch.fx wrote it
    return scope["forward"]  # type: ignore[no-any-return]
