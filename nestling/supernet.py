"""The supernet: one set of weights in which smaller networks are nested."""

from __future__ import annotations

import copy
import fnmatch
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nestling import extent as extents
from nestling.axes.discovery import discover
from nestling.axes.proof import Prover, double
from nestling.axes.tracer import run
from nestling.batch import forward, inputs_of
from nestling.errors import ModelError, SpecError, did_you_mean
from nestling.signature import Signature
from nestling.spec import Frozen, Space, Spec
from nestling.subnet import SharedGradient, binding, build, rebind, refuse

POOL = 64  # live subnets that a supernet keeps for training, the least recently used dropped first


class Supernet:
    """One set of shared weights, made from a user's own model; makes subnets of it.

    The model is copied once and not changed. It is run on the example inputs to find its axes, and
    every axis is proven on it (`space` tells what is elastic, what is frozen and why).

    Args:
        model: any `nn.Module`.
        *args: example inputs, as the model takes them; the first dimension of the first tensor is
            the batch.
        kwargs: example keyword inputs.
        outputs: which of the returned values are needed, when the model returns more: a key, an
            index, a list of them, or a function of the returned value. What is not needed does not
            keep its size.
        freeze: axes that shall not be cut: names or patterns of axes, parameters or modules.
        tie: groups of axis names that shall be cut together.
        step: what the counts go in, for all axes or by axis name; the default is hardware-friendly.

    Raises:
        ModelError: the model fails on the inputs, cannot be copied, or has nothing elastic.
        SpecError: `freeze`, `tie` or `step` name nothing that exists.

    Example:
        >>> net = nestling.Supernet(MyNet(), torch.randn(1, 3, 224, 224))
        >>> small = net.subnet(net.space.spec(fraction=0.25))
    """

    def __init__(
        self,
        model: nn.Module,
        *args: Any,
        kwargs: dict[str, Any] | None = None,
        outputs: Any = None,
        freeze: Iterable[str] = (),
        tie: Iterable[Sequence[str]] = (),
        step: int | Mapping[str, int] | None = None,
    ) -> None:
        _check_model(model)
        _check_step(step)
        own = _copied(model)
        pick = _picker(outputs)
        options = dict(kwargs or {})
        before = {name: m.training for name, m in own.named_modules()}
        own.eval()
        _first_run(own, args, options)
        space = _proven_space(own, args, options, pick, freeze, tie, step)
        private = _private_buffers(own, args, options)
        for name, module in own.named_modules():
            module.training = before[name]
        orders = {name: tuple(range(axis.size)) for name, axis in space.axes.items()}
        self._setup(own, space, orders, private, Signature.of(args, options))

    @classmethod
    def restore(
        cls,
        model: nn.Module,
        space: Space,
        orders: Mapping[str, Sequence[int]],
        private: Iterable[str],
        signature: Signature,
    ) -> Supernet:
        """Return a supernet from a model whose space is known and proven (as a file says)."""
        net = cls.__new__(cls)
        net._setup(model, space, orders, frozenset(private), signature)
        return net

    def _setup(
        self,
        model: nn.Module,
        space: Space,
        orders: Mapping[str, Sequence[int]],
        private: frozenset[str],
        signature: Signature,
    ) -> None:
        self._model = model
        self._signature = signature
        self._space = space
        self._private = private
        self._orders = {name: tuple(order) for name, order in orders.items()}
        self._order = 0
        self._gradients = {name: SharedGradient(p) for name, p in model.named_parameters()}
        self._live: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._pool: OrderedDict[Spec, nn.Module] = OrderedDict()

    # -- what it holds ------------------------------------------------------------------------

    @property
    def space(self) -> Space:
        """All elastic axes, and what is frozen and why."""
        return self._space

    @property
    def model(self) -> nn.Module:
        """The full net that owns the shared weights (not a subnet: treat it as read-only)."""
        return self._model

    @property
    def orders(self) -> Mapping[str, tuple[int, ...]]:
        """Per axis, the unit of the user's model that stands at each place now, best first."""
        return dict(self._orders)

    @property
    def order(self) -> int:
        """Identity of the present order; subnets made under another one refuse to run."""
        return self._order

    @property
    def private(self) -> frozenset[str]:
        """Names of the buffers that every subnet has of its own: norm statistics."""
        return self._private

    @property
    def signature(self) -> Signature:
        """Shapes and dtypes of the example inputs."""
        return self._signature

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the shared weights; give these, and only these, to an optimiser."""
        return self._model.parameters()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the shared weights under the model's own names and shapes."""
        return self._model.named_parameters()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the shared weights and buffers under the model's own names."""
        return self._model.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load weights in place (live subnets see them); they must be in the present order."""
        self._model.load_state_dict(state)

    # -- subnets ------------------------------------------------------------------------------

    def subnet(self, spec: Mapping[str, int]) -> nn.Module:
        """Return a new plain module for a spec, whose parameters are slices of the shared ones.

        It is of the user's class and in the mode (training or evaluation) of the model that was
        given. Its norm statistics start as slices of the full net's: call `recalibrate` before
        evaluating it, unless it was trained. The full spec has the net's own statistics.

        Args:
            spec: a `Spec`, or counts by axis name (missing axes keep all units).

        Raises:
            SpecError: an unknown axis or a count that is not allowed.
        """
        spec = self._checked(spec)
        with torch.inference_mode(False):
            subnet = build(
                self._model,
                self._space,
                spec,
                private=self._private,
                gradients=self._gradients,
                order=self._order,
            )
        self._live.add(subnet)
        return subnet

    def pooled(self, spec: Mapping[str, int]) -> nn.Module:
        """Return the same training subnet for the same spec, made when it is first asked for.

        Training draws the same specs again and again; making a module each time would cost more
        than a small net's step. The pool holds the 64 that were used last.
        """
        spec = self._checked(spec)
        subnet = self._pool.get(spec)
        if subnet is None:
            subnet = self._pool[spec] = self.subnet(spec)
            if len(self._pool) > POOL:
                self._pool.popitem(last=False)
        self._pool.move_to_end(spec)
        return subnet

    def recalibrate(self, subnet: nn.Module, batches: Iterable[Any]) -> nn.Module:
        """Measure a subnet's norm statistics afresh over batches of training data.

        Only the norm layers work as in training; dropout and the like stay off. The shared weights
        do not change.

        Args:
            subnet: of this supernet, or a packed copy.
            batches: `(inputs, targets)` pairs or bare inputs; 20 to 200 of them are usual.

        Returns:
            The same subnet, in the mode that it was in.

        Raises:
            ModelError: there is no batch.
        """
        modes = {module: module.training for module in subnet.modules()}
        norms = [module for module in subnet.modules() if _keeps_statistics(module)]
        momenta = [norm.momentum for norm in norms]
        subnet.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over all batches
            norm.train()
        try:
            with torch.no_grad():
                seen = [forward(subnet, inputs_of(batch)) is not None for batch in batches]
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
            for module, training in modes.items():
                module.training = training
        if norms and not seen:
            raise ModelError("recalibration needs at least one batch, but none was given")
        return subnet

    def absorb(self, spec: Mapping[str, int], packed: nn.Module) -> nn.Module:
        """Write a packed (and perhaps tuned) copy back into the shared weights.

        Returns:
            A live subnet for the spec with the packed copy's norm statistics.

        Raises:
            SpecError: the copy's parameters are not those of the spec.
        """
        subnet = self.subnet(spec)
        tie = binding(subnet)
        assert tie is not None
        given = dict(packed.named_parameters())
        shared = dict(self._model.named_parameters())
        for name, (leaf, _) in tie.parameters.items():
            if name not in given or given[name].shape != leaf.shape:
                got = tuple(given[name].shape) if name in given else "missing"
                raise SpecError(
                    f"the module is no packed copy of this spec: {name!r} must have the shape "
                    f"{tuple(leaf.shape)}, but is {got}; absorb it under the spec it was packed from"
                )
        with torch.no_grad():
            for name, (_, cut) in tie.parameters.items():
                cut.put(shared[name], given[name].to(shared[name]))
            for gather in tie.gathers.values():
                gather.refresh()
            buffers = dict(packed.named_buffers())
            for name, (buffer, _) in tie.statistics.items():
                if name in buffers:
                    buffer.copy_(buffers[name])
        return subnet

    # -- changes of all -----------------------------------------------------------------------

    def reorder(
        self,
        orders: Mapping[str, Sequence[int]],
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """Permute units, best first; the full net's function does not change.

        Optimiser state of the same shape as its parameter is permuted too. Subnets and menus that
        were made before refuse to run: they would be other networks now.

        Args:
            orders: axis name to the present unit for each new place; other axes stay as they are.
            optimizer: an optimiser over `parameters()` whose state shall follow.

        Raises:
            SpecError: an unknown axis, or an order that is not a permutation of its units.
        """
        for name, order in orders.items():
            _check_order(self._space, name, order)
        with torch.no_grad():
            tensors = [*self._model.named_parameters(), *self._model.named_buffers()]
            for name, tensor in tensors:
                for dim, extent in enumerate(self._space.layouts[name].extents):
                    if not orders.keys().isdisjoint(extents.axes_of(extent)):
                        moved = extents.permuted(extent, orders)
                        index = torch.tensor(moved, device=tensor.device)
                        for each in _companions(tensor, optimizer):
                            each.copy_(each.index_select(dim, index))
        for name, order in orders.items():
            self._orders[name] = tuple(self._orders[name][unit] for unit in order)
        self._order += 1
        for subnet in self._live:
            refuse(
                subnet,
                "this subnet was made before the supernet's units were reordered and would now "
                "be another network; make it again with net.subnet(spec)",
            )
        self._live.clear()
        self._pool.clear()

    def to(self, *args: Any, **kwargs: Any) -> Supernet:
        """Move or convert the shared weights, as `nn.Module.to` does; live subnets follow."""
        self._model.to(*args, **kwargs)
        self._gradients = {name: SharedGradient(p) for name, p in self._model.named_parameters()}
        self._pool.clear()
        for subnet in self._live:
            rebind(subnet, self._model, self._gradients)
            _follow(subnet, self._model)
        return self

    def __repr__(self) -> str:
        full = self._space.full
        return (
            f"Supernet of {type(self._model).__name__}: {len(self._space.axes)} axes, "
            f"{self._space.params(full):,} parameters, {self._space.macs(full):,} MACs"
        )

    def _checked(self, spec: Mapping[str, int]) -> Spec:
        if isinstance(spec, Spec) and spec.keys() == self._space.axes.keys():
            return spec
        return Spec(self._space, spec)


def _proven_space(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    pick: Callable[[Any], Any],
    freeze: Iterable[str],
    tie: Iterable[Sequence[str]],
    step: int | Mapping[str, int] | None,
) -> Space:
    """Discover the axes, apply the user's wishes, and prove what remains."""
    wide, (wide_args, wide_kwargs) = double(model, (tuple(args), kwargs))
    found = discover(wide, wide_args, wide_kwargs, outputs=pick, step=step)
    space = found.space
    _check_named_steps(space, step)
    prover = Prover(wide, wide_args, wide_kwargs, found, pick)
    for pattern in [freeze] if isinstance(freeze, str) else freeze:
        for name in _matching(space, pattern):
            prover.let_go(name)
            space = space.without(name, Frozen("", 0, 0, "", "", f"freeze={pattern!r}"))
    for group in tie:
        space = prover.tie(space, list(group))
    space = prover.prove(space)
    if not space.axes:
        reasons = "; ".join(dict.fromkeys(row.reason for row in space.frozen)) or "no parameters"
        raise ModelError(
            f"nothing in {type(model).__name__} is elastic: {reasons}. A net needs at least one "
            "hidden dimension that ops with rules produce and consume; see outputs= and freeze="
        )
    return _with_itemsizes(space, model)


def _with_itemsizes(space: Space, model: nn.Module) -> Space:
    """Return the space with the bytes of the user's dtypes (the proof ran in float64)."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    layouts = {
        name: replace(layout, itemsize=tensors[name].element_size())
        for name, layout in space.layouts.items()
    }
    return replace(space, layouts=layouts)


def _matching(space: Space, pattern: str) -> list[str]:
    """Return the axes that a name or pattern of axes, modules or parameters means."""
    found = [
        name
        for name in space.axes
        if fnmatch.fnmatchcase(name, pattern)
        or any(
            fnmatch.fnmatchcase(tensor, pattern) or tensor.startswith(f"{pattern}.")
            for tensor, dim in space.touches(name)
            if dim == 0
        )
    ]
    if not found:
        near = did_you_mean(pattern, [*space.axes, *space.layouts])
        raise SpecError(
            f"freeze={pattern!r} matches no axis, module or parameter{near}; "
            f"the axes are {', '.join(list(space.axes)[:8])}"
        )
    return found


def _check_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"a supernet is made from an nn.Module, but got {type(model).__name__}; "
            "pass the model itself, not its class or its state dict"
        )


def _check_step(step: object) -> None:
    values = step.values() if isinstance(step, Mapping) else [] if step is None else [step]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SpecError(f"step= is a whole number of at least 1, but it is {value!r}")


def _check_named_steps(space: Space, step: object) -> None:
    if isinstance(step, Mapping):
        for name in step:
            if name not in space.axes:
                raise SpecError(
                    f"step= names the unknown axis {name!r}{did_you_mean(name, space.axes)}"
                )


def _check_order(space: Space, name: str, order: Sequence[int]) -> None:
    if name not in space.axes:
        raise SpecError(f"cannot reorder the unknown axis {name!r}{did_you_mean(name, space.axes)}")
    size = space.axes[name].size
    if sorted(order) != list(range(size)):
        raise SpecError(
            f"an order of axis {name!r} is a permutation of 0 to {size - 1}, but got "
            f"{len(order)} entries, {len(set(order))} of them distinct"
        )


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be copied: {error}; a model must survive "
            "copy.deepcopy (keep non-leaf tensors out of its attributes)"
        ) from error


def _first_run(model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Run once, so that lazy modules are built and the user's own errors are told apart."""
    try:
        returned = run(model, args, kwargs, None)
    except Exception as error:
        shapes = [tuple(a.shape) for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        raise ModelError(
            f"{type(model).__name__} fails in its own forward on the example inputs "
            f"(shapes {shapes}): {type(error).__name__}: {error}; give Supernet inputs that the "
            "model accepts"
        ) from error
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(_plain(returned))):
        raise ModelError(
            f"{type(model).__name__} returns no tensor (it returns {type(returned).__name__}), so "
            "nothing can be proven; return tensors, or pick them with outputs="
        )


def _plain(returned: Any) -> Any:
    return (
        vars(returned)
        if hasattr(returned, "__dict__")
        and not isinstance(returned, Tensor)
        and not isinstance(returned, Mapping)
        else returned
    )


def _picker(outputs: Any) -> Callable[[Any], Any]:
    if outputs is None:
        return _plain
    if callable(outputs):
        return lambda returned: outputs(returned)
    keys = outputs if isinstance(outputs, (list, tuple)) else [outputs]

    def pick(returned: Any) -> Any:
        try:
            return [
                returned[key]
                if not isinstance(key, str) or isinstance(returned, Mapping)
                else getattr(returned, key)
                for key in keys
            ]
        except (KeyError, IndexError, AttributeError, TypeError) as error:
            raise ModelError(
                f"outputs={outputs!r} does not fit what the model returns "
                f"({type(returned).__name__}): {error}"
            ) from error

    return pick


def _keeps_statistics(module: nn.Module) -> bool:
    norm = nn.modules.batchnorm._NormBase
    return isinstance(module, norm) and module.track_running_stats


def _private_buffers(
    model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]
) -> frozenset[str]:
    """Return the buffers that training changes: norm statistics, and what else a run writes."""
    names = {
        f"{path}.{key}" if path else key
        for path, module in model.named_modules()
        if _keeps_statistics(module)
        for key, buffer in module._buffers.items()
        if buffer is not None
    }
    trial = copy.deepcopy(model).train()
    before = {name: (buffer, buffer._version) for name, buffer in trial.named_buffers()}
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        try:
            run(trial, args, kwargs, None)
        except Exception:  # noqa: BLE001  (one example may be too few to train on)
            return frozenset(names & before.keys())
    for name, buffer in trial.named_buffers():
        known = before.get(name)
        if known is not None and (known[0] is not buffer or known[1] != buffer._version):
            names.add(name)
    return frozenset(names & before.keys())


def _companions(tensor: Tensor, optimizer: torch.optim.Optimizer | None) -> list[Tensor]:
    """Return the tensor, its gradient and its optimiser state: all that is permuted with it."""
    found = [tensor]
    if tensor.grad is not None:
        found.append(tensor.grad)
    if optimizer is not None:
        state = optimizer.state.get(tensor, {})
        found += [
            value
            for value in state.values()
            if isinstance(value, Tensor) and value.shape == tensor.shape
        ]
    return found


def _follow(subnet: nn.Module, model: nn.Module) -> None:
    """Move a live subnet's own buffers to where the model's are."""
    there = dict(model.named_buffers())
    for path, module in subnet.named_modules():
        for key, buffer in module._buffers.items():
            name = f"{path}.{key}" if path else key
            if buffer is not None and name in there:
                module._buffers[key] = buffer.to(there[name].device, there[name].dtype)
