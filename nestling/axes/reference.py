"""The reference: the full model with its cut units masked to zero.

Weights are set to zero where they belong to cut units. Ops whose value depends on how many units
there are (norms, means, softmax) are evaluated over the kept units only, as their rules say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map

from nestling import extent as extents
from nestling.axes import expression as algebra
from nestling.axes.expression import Atom, Expression
from nestling.axes.lineage import Step
from nestling.axes.location import line_of_run
from nestling.axes.scales import Follows, numbers_of
from nestling.axes.structure import tensors_in
from nestling.axes.tracer import Trace, run
from nestling.extent import Counts
from nestling.spec import Space
from nestling.weights import substituted, tensors_of


class OtherPath(Exception):
    """The model ran other ops than when it was traced."""


def run_masked(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    space: Space,
    counts: Counts,
    mode: TorchDispatchMode,
) -> Any:
    """Run the full model with the units that a spec cuts set to zero."""
    masked = {}
    for name, parameter in model.named_parameters():
        zeroed = _masked(parameter.detach(), space.layouts[name].extents, counts)
        if zeroed is not None:
            # Which ops torch picks depends on whether a weight requires gradients.
            masked[name] = zeroed.requires_grad_(parameter.requires_grad)
    return run(_Substituted(model, masked), args, kwargs, mode)


def run_permuted(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    space: Space,
    orders: Mapping[str, Sequence[int]],
) -> Any:
    """Run the full model with its units in another order."""
    moved: dict[str, Tensor] = {}
    for name, tensor in tensors_of(model).items():
        for dim, extent in enumerate(space.layouts[name].extents):
            if not orders.keys().isdisjoint(extents.axes_of(extent)):
                index = torch.tensor(extents.permuted(extent, orders), device=tensor.device)
                moved[name] = moved.get(name, tensor.detach()).index_select(dim, index)
    return run(_Substituted(model, moved), args, kwargs, None)


class Replayer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs the traced ops again; those that depend on the number of units over the kept ones.

    Args:
        trace: of this very model.
        counts: kept units of the trace's atoms.
        follows: ops that scale by a number which follows a kept size.
        dropped: ops of residual blocks that are passed by, by their number.
    """

    def __init__(
        self,
        trace: Trace,
        counts: Mapping[Atom, int],
        dropped: Mapping[int, Step] = MappingProxyType({}),
        follows: Follows = MappingProxyType({}),
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = trace
        self.counts = counts
        self.dropped = dropped
        self.numbers = numbers_of(follows, counts)
        self.op = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an op as it is, or over the kept units with zeros for the cut ones."""
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if self.op >= len(self.trace.names) or self.trace.names[self.op] != name:
            line = line_of_run()
            raise OtherPath(f"{name} at {line}" if line else name)
        replay = self.trace.replays.get(self.op)
        if self.op in self.numbers:
            args = (args[0], self.numbers[self.op], *args[2:])
        self.op += 1
        if self.op - 1 in self.dropped:
            return _without(self.dropped[self.op - 1], func, args, kwargs)
        if replay is None:
            return func(*args, **kwargs)
        if not any(is_cut(e, self.counts) for each in replay.inputs for e in each):
            return func(*args, **kwargs)
        tensors = iter(replay.inputs)

        def shrink(leaf: Any) -> Any:
            return cut(leaf, next(tensors), self.counts) if isinstance(leaf, Tensor) else leaf

        less, options = tree_map(shrink, (list(args), kwargs))
        if replay.rule.resize is not None:
            replay.rule.resize(less, options)
        evaluate = replay.rule.evaluate
        found = func(*less, **options) if evaluate is None else evaluate(func, less, options)
        results = iter(replay.outputs)

        def spread_out(leaf: Any, like: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            # The strides must be the op's own: the code after it may run other ops for others.
            return torch.zeros_like(like).copy_(spread(leaf, next(results), self.counts))

        return tree_map(spread_out, found, func(*args, **kwargs))


def _without(step: Step, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a sum with one summand set to zero, or pass over a norm."""
    if not step.zero:
        given = args[step.place].clone()  # the op may write to it
        out = func(*args, **kwargs)
        result = out[0] if isinstance(out, tuple) else out
        if func.overloadpacket.__name__.endswith("_"):
            return result.copy_(given)
        same = torch.zeros_like(result).copy_(given)
        return (same, *out[1:]) if isinstance(out, tuple) else same
    if step.place == 0 and func.overloadpacket.__name__.endswith("_"):
        args[0].zero_()  # what the op writes to
        return func(*args, **kwargs)
    less = list(args)
    less[step.place] = torch.zeros_like(less[step.place])
    return func(*less, **kwargs)


class _Substituted(nn.Module):
    """The full model with some of its tensors replaced for one run."""

    def __init__(self, model: nn.Module, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.__dict__["model"], self.__dict__["tensors"] = model, tensors

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the changed model."""
        with substituted(self.__dict__["model"], self.__dict__["tensors"]):
            return self.__dict__["model"](*args, **kwargs)


@contextmanager
def returned(model: nn.Module, note: Callable[[str, list[Tensor]], None]) -> Iterator[None]:
    """Call `note` with path and returned tensors at the end of every module call."""

    def look(path: str, given: Any) -> None:
        with _disable_current_modes():
            note(path, [leaf.detach().clone() for leaf in tensors_in(given)])

    handles = [
        module.register_forward_hook(lambda *given, path=path: look(path, given[-1]))
        for path, module in model.named_modules()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def is_cut(expression: Expression, counts: Mapping[Atom, int]) -> bool:
    """Return whether some units of a traced dimension are cut."""
    return algebra.count(expression, counts) < expression.size


def cut(tensor: Tensor, expressions: Sequence[Expression], counts: Mapping[Atom, int]) -> Tensor:
    """Return the kept entries of a traced tensor."""
    for dim, expression in enumerate(expressions):
        if is_cut(expression, counts):
            index = torch.tensor(algebra.kept(expression, counts), device=tensor.device)
            tensor = tensor.index_select(dim, index)
    return tensor


def spread(tensor: Tensor, expressions: Sequence[Expression], counts: Mapping[Atom, int]) -> Tensor:
    """Return a tensor of the full size with zeros for the cut entries: undoes `cut`."""
    for dim, expression in enumerate(expressions):
        if is_cut(expression, counts):
            shape = [*tensor.shape]
            shape[dim] = expression.size
            index = torch.tensor(algebra.kept(expression, counts), device=tensor.device)
            tensor = tensor.new_zeros(shape).index_copy(dim, index, tensor)
    return tensor


def _masked(tensor: Tensor, dims: Sequence[extents.Extent], counts: Counts) -> Tensor | None:
    """Return the tensor with its cut entries set to zero; None if nothing is cut."""
    result = None
    for dim, extent in enumerate(dims):
        if extents.count(extent, counts) < extent.size:
            dead = torch.ones(extent.size, dtype=torch.bool)
            dead[extents.kept(extent, counts)] = False
            result = tensor.clone() if result is None else result
            result.index_fill_(dim, dead.nonzero().flatten().to(tensor.device), 0.0)
    return result
