"""The tracer: run the model once and give every tensor dimension an expression.

A `TorchDispatchMode` sees each ATen op as the model really runs it, whatever the Python code does,
and applies the op's rule. An op without a rule freezes the axes it touches, with the reason.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from nestling.axes import expression as algebra
from nestling.axes.expression import Expression, Reason, constant, live
from nestling.axes.lineage import Call, Lineage
from nestling.axes.rules import RULES, Rule, lookup, lookup_module
from nestling.axes.scales import Scale
from nestling.axes.structure import batch_of, renewed, tensors_in, with_batch
from nestling.surroundings import undisturbed
from nestling.weights import duplicate, tensors_of

PLAIN_REASON = Reason(algebra.PLAIN)


@dataclass(frozen=True)
class SizeArgument:
    """A size that the code passed to an op: where a hard-coded number may hide."""

    module: str
    value: int
    expression: Expression
    op: int


@dataclass(frozen=True)
class Replay:
    """An op that the proof evaluates over the kept units only."""

    op: str
    rule: Rule
    inputs: tuple[tuple[Expression, ...], ...]
    outputs: tuple[tuple[Expression, ...], ...]


@dataclass
class Trace:
    """What one run of the model tells: expressions of all tensors, and what was noted on the way.

    Attributes:
        sizes: sizes that the code passed to ops.
        produced: (expression, module, kind) of every op that makes new units.
        producers: (parameter, dimension) of the weights that make units along that dimension.
        works: (module, expressions) of every contraction: its multiply-accumulates.
        replays: op number to replay, for ops whose value depends on the number of units.
        calls: (module, expressions of the tensors it returned), in the order of the calls' ends.
        ends: how many ops had run at the end of each call.
        names: names of all ops, in the order in which they ran.
        shapes: expressions of what each op returned.
        scales: products and quotients with a number, in order.
        lineage: which tensor comes from which, for residual blocks.
        precision: the coarsest floating type that values passed through on their way.
        module: path of the module that is running.
        op: name of the op that is being traced.
        present: set by a rule whose op must see the kept units only, this time (see `replay`).
    """

    weights: dict[int, str] = field(default_factory=dict)
    touched: set[int] = field(default_factory=set)
    sizes: list[SizeArgument] = field(default_factory=list)
    produced: list[tuple[Expression, str, str]] = field(default_factory=list)
    producers: dict[tuple[str, int], None] = field(default_factory=dict)
    works: list[tuple[str, tuple[Expression, ...]]] = field(default_factory=list)
    replays: dict[int, Replay] = field(default_factory=dict)
    calls: list[tuple[str, list[list[Expression]]]] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    shapes: list[tuple[tuple[Expression, ...], ...]] = field(default_factory=list)
    scales: list[Scale] = field(default_factory=list)
    lineage: Lineage = field(default_factory=Lineage)
    precision: torch.dtype = torch.float64
    module: str = ""
    op: str = ""
    present: bool = False

    def __post_init__(self) -> None:
        self._held: dict[int, list[tuple[str, Tensor]]] = {}  # the parameters in each storage
        # Weak: a strong reference to an activation changes use counts and with them the ops run.
        self._expressions: Any = WeakTensorKeyDictionary()
        self._doubts: Any = WeakTensorKeyDictionary()

    def of(self, tensor: Tensor) -> list[Expression]:
        """Return the expressions of a tensor's dimensions; an unknown tensor is constant."""
        if tensor not in self._expressions:
            text = "meets a tensor that is no input, parameter or buffer (register it as one)"
            self.put(tensor, [constant(n, text) for n in tensor.shape])
        return list(self._expressions[tensor])

    def knows(self, tensor: Tensor) -> bool:
        """Return whether the tensor has been given expressions."""
        return tensor in self._expressions

    def put(self, tensor: Tensor, expressions: Sequence[Expression]) -> None:
        """Give a tensor's dimensions their expressions."""
        found = [algebra.find(expression) for expression in expressions]
        if [expression.size for expression in found] != list(tensor.shape):
            raise ValueError(f"{found} for the shape {tuple(tensor.shape)}")
        for expression in found:
            if isinstance(expression, algebra.Atom) and expression.frozen == PLAIN_REASON:
                expression.frozen = self.reason(algebra.PLAIN)
        self._expressions[tensor] = found

    def reason(self, text: str) -> Reason:
        """Return a reason that names the op and the module that are running."""
        return Reason(text, self.op, self.module)

    def unify(self, one: Expression, other: Expression) -> None:
        """Make two expressions the same."""
        algebra.unify(one, other, self.reason("incompatible"))

    def freeze(self, expression: Expression, text: str) -> None:
        """Freeze an expression for a reason in words."""
        algebra.freeze(expression, self.reason(text))

    def doubt(self, tensor: Tensor, expression: Expression, text: str) -> None:
        """Freeze an expression for a reason in words as soon as a tensor's values are used."""
        self._doubts[tensor] = expression, self.reason(text)

    def use(self, tensors: Sequence[Tensor]) -> None:
        """Note that the values of tensors are used."""
        for tensor in tensors:
            if tensor in self._doubts:
                algebra.freeze(*self._doubts[tensor])

    def size(self, value: int, expression: Expression) -> None:
        """Note a size that the code passed to the op."""
        self.sizes.append(SizeArgument(self.module, int(value), expression, len(self.names)))

    def produce(self, expression: Expression, kind: str) -> None:
        """Note that the running module makes the units of an expression."""
        self.produced.append((expression, self.module, kind))

    def make(self, weight: Tensor, *dims: int) -> None:
        """Note that the op makes its units along dimensions of a weight, or of a view of one.

        A view's dimension is that dimension of the parameter over whose entries it steps.
        """
        for name, parameter in self._held.get(_storage(weight), ()):
            inside = weight.storage_offset() - parameter.storage_offset()
            if not 0 <= inside < parameter.numel():
                continue  # weights of one layer may share their storage
            pairs = list(enumerate(zip(parameter.shape, parameter.stride(), strict=True)))
            for dim in dims:
                size, step = weight.shape[dim], weight.stride(dim)
                for own, (length, stride) in pairs:
                    if size > 1 and length > 1 and stride < step * size and step < stride * length:
                        self.producers[name, own] = None

    def hold(self, name: str, parameter: Tensor) -> None:
        """Note a parameter of the model, so that views of it are known."""
        self.weights[_storage(parameter)] = name
        self._held.setdefault(_storage(parameter), []).append((name, parameter))

    def work(self, expressions: Sequence[Expression]) -> None:
        """Note multiply-accumulates: the product of the expressions' sizes."""
        self.works.append((self.module, tuple(expressions)))

    def replay(self) -> None:
        """Let the proof evaluate this op over the kept units only, as for `Rule.replayed`."""
        self.present = True

    def is_weight(self, tensor: Tensor) -> bool:
        """Return whether a tensor is a view of a parameter."""
        return _storage(tensor) in self.weights

    def dims(self, dim: Any, tensor: Tensor) -> list[int]:
        """Return dimension numbers from an op's argument: None or an empty list means all."""
        if dim is None or (isinstance(dim, (list, tuple)) and not dim):
            return list(range(tensor.dim()))
        numbers = [dim] if isinstance(dim, int) else dim
        return sorted(number % max(tensor.dim(), 1) for number in numbers)

    def pointwise(self, out: Any, *args: Any, **kwargs: Any) -> None:
        """Apply the pointwise rule, for ops that are pointwise for some arguments."""
        RULES["pointwise"].couple(self, out, *args, **kwargs)


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Applies the rule of every op that runs inside it to a `Trace`."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = trace

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the op, then couple the dimensions of its inputs and outputs."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        trace = self.trace
        name = func.overloadpacket.__name__
        trace.op = name if name.endswith("__") else name.rstrip("_")
        trace.present = False
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        trace.use(inputs)
        before = tuple(tuple(trace.of(tensor)) for tensor in inputs)
        trace.touched.update(_storage(tensor) for tensor in inputs)
        rule = lookup(func)
        if rule is None:
            text = f"no rule for the op {trace.op!r}"
            _give_up(trace, before, [t for t in outputs if not trace.knows(t)], text)
        else:
            try:
                rule.couple(trace, out, *args, **kwargs)
            except Exception as error:  # noqa: BLE001  (a rule that does not fit freezes)
                text = f"the rule for {trace.op!r} does not fit: {error}"
                _give_up(trace, before, outputs, text)
        if rule is not None and (rule.replayed or trace.present):
            after = tuple(tuple(trace.of(tensor)) for tensor in outputs)
            trace.replays[len(trace.names)] = Replay(name, rule, before, after)
        trace.lineage.note(len(trace.names), func, args, kwargs, out)
        trace.names.append(name)
        trace.shapes.append(tuple(tuple(trace.of(tensor)) for tensor in outputs))
        trace.precision = _coarser(trace.precision, inputs, outputs)
        return out


def run(
    model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], mode: TorchDispatchMode | None
) -> Any:
    """Run a model without gradients, in evaluation mode as it is, under a dispatch mode.

    The inputs are copied, since the model may write to them.
    """
    args, kwargs = renewed((args, kwargs))
    return _run(model, args, kwargs, mode)


def _run(
    model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], mode: TorchDispatchMode | None
) -> Any:
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # it would hide views and in-place ops
        stack.enter_context(torch.no_grad())
        stack.enter_context(_no_attention_fast_path())
        if mode is not None:
            stack.enter_context(mode)
        return model(*args, **kwargs)


def trace(
    model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[Trace, dict[str, list[Expression]], Any]:
    """Run a model once and return the trace, its weights' expressions and its outputs.

    Every dimension of a floating-point or complex parameter or buffer starts as a fresh atom.
    """
    record = Trace()
    given = args, kwargs
    args, kwargs = renewed(given)
    for tensor in tensors_in((args, kwargs)):
        record.put(tensor, [constant(n, "size of an input") for n in tensor.shape])
    held = tensors_of(model)
    for name, tensor in held.items():
        loose = _is_real(tensor)
        record.put(
            tensor,
            [algebra.Atom(n) if loose and n > 1 else constant(n) for n in tensor.shape],
        )
        if loose and torch.finfo(tensor.dtype).eps > torch.finfo(record.precision).eps:
            record.precision = tensor.dtype.to_real()
        if isinstance(tensor, nn.Parameter):
            record.hold(name, tensor)
    with module_paths(model, record):
        outputs = _run(model, args, kwargs, Tracer(record))
    if any(_storage(tensor) not in record.touched for tensor in model.parameters()):
        _trace_training(model, given, record, held)
    _freeze_untouched(record, held)
    return record, {name: record.of(tensor) for name, tensor in held.items()}, outputs


@contextmanager
def module_paths(model: nn.Module, record: Trace) -> Iterator[None]:
    """Keep `record.module` at the path of the running module while the model runs."""
    stack: list[Call] = [Call("", [])]
    handles = []

    def enter(path: str, args: Any, kwargs: Any) -> None:
        stack.append(record.lineage.enter(path, args, kwargs))
        record.module = path

    def leave(module: nn.Module, returned: Any) -> None:
        rule = lookup_module(module)
        if rule is not None:
            rule(record, module)
        expressions = [record.of(tensor) for tensor in tensors_in(returned)]
        call = stack.pop()
        record.lineage.leave(call, returned)
        record.calls.append((call.path, expressions))
        record.ends.append(len(record.names))
        record.module = stack[-1].path

    for path, module in model.named_modules():
        handles.append(
            module.register_forward_pre_hook(
                lambda _, args, kwargs, path=path: enter(path, args, kwargs),
                prepend=True,
                with_kwargs=True,
            )
        )
        handles.append(
            module.register_forward_hook(
                lambda *given: leave(given[0], given[-1]), always_call=True
            )
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _no_attention_fast_path() -> Iterator[None]:
    """The fused inference path of transformer layers hides their ops; restore it afterwards."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _give_up(
    record: Trace, before: Sequence[Sequence[Expression]], outputs: Sequence[Tensor], text: str
) -> None:
    """Freeze what an op touches, and make its outputs constant."""
    for expressions in before:
        for expression in expressions:
            if live(expression):
                record.freeze(expression, text)
    for tensor in outputs:
        record.put(tensor, [constant(n, text, record.op, record.module) for n in tensor.shape])


def _coarser(
    known: torch.dtype, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
) -> torch.dtype:
    """Return the coarsest floating type by which values were rounded so far."""
    wide = [torch.finfo(t.dtype).eps for t in inputs if _is_real(t) and t.dim()]
    for tensor in outputs:
        if _is_real(tensor) and wide:
            eps = torch.finfo(tensor.dtype).eps
            if eps > min(wide) and eps > torch.finfo(known).eps:
                known = tensor.dtype.to_real()
    return known


def _is_real(tensor: Tensor) -> bool:
    """Return whether a tensor holds rounded numbers: real ones, or complex ones."""
    return tensor.is_floating_point() or tensor.is_complex()


def _trace_training(model: nn.Module, given: Any, record: Trace, held: dict[str, Tensor]) -> None:
    """Let a training run couple the weights that are used in training only, such as mask tokens.

    It runs on a copy whose tensors have the expressions of the model's; what it touches counts as
    touched. A model that does not run so is left as it is.
    """
    twin, extra = duplicate(model).train(), Trace()
    args, kwargs = renewed(given)
    for tensor in tensors_in((args, kwargs)):
        extra.put(tensor, [constant(n, "size of an input") for n in tensor.shape])
    own = tensors_of(twin)
    for name, tensor in own.items():
        extra.put(tensor, record.of(held[name]))
        if isinstance(tensor, nn.Parameter):
            extra.hold(name, tensor)
    before = {name: _storage(tensor) for name, tensor in own.items()}
    try:
        with undisturbed(twin), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _run(twin, args, kwargs, Tracer(extra))
    except Exception:  # noqa: BLE001  (the user's code runs here)
        if batch_of(given) == 1:  # batch norm wants more of them
            _trace_training(model, with_batch(given, 2), record, held)
        return
    used = (name for name, storage in before.items() if storage in extra.touched)
    record.touched.update(_storage(held[name]) for name in used)


def _freeze_untouched(record: Trace, held: dict[str, Tensor]) -> None:
    for tensor in held.values():
        if _storage(tensor) not in record.touched:
            for expression in record.of(tensor):
                algebra.freeze(expression, Reason("not used in the forward run"))


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0
