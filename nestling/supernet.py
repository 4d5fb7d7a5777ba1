"""The supernet: one set of weights in which smaller networks are nested."""

from __future__ import annotations

import json
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nestling import extent as extents
from nestling.binding import Binding, binding, order_of, own_of
from nestling.bits import Bits, coded, measure_scales
from nestling.coding import restored
from nestling.construction import (
    check_model,
    check_skeleton,
    check_step,
    copied,
    first_run,
    picker,
    private_buffers,
    proven_space,
    with_itemsizes,
)
from nestling.errors import ModelError, SpecError, did_you_mean
from nestling.ownership import take
from nestling.recalibration import recalibrate
from nestling.signature import Signature
from nestling.spec import Space, Spec
from nestling.subnet import build, rebind, refuse
from nestling.surroundings import undisturbed
from nestling.tether import SharedGradient
from nestling.weights import duplicate

POOL = 64  # live subnets that a supernet keeps for training, the least recently used dropped first


class Supernet:
    """One set of shared weights, made from a user's own model; makes subnets of it.

    The model is copied once and not changed. It is run on the example inputs to find its axes, and
    every axis is proven on it (`space` tells what is elastic, what is frozen and why).

    Gradients of subnets belong into the shared ones, which a backward run makes where they are
    missing. So does `torch.autograd.grad(loss, subnet.parameters())`: it returns the right
    gradients, but leaves zeros in `net.parameters()`, which an optimiser with weight decay or
    momentum steps on; call `net.zero_grad()` after it, or differentiate `nestling.pack(subnet)`.

    Args:
        model: any `nn.Module`.
        *args: example inputs, as the model takes them; the first dimension of the first tensor is
            the batch.
        kwargs: example keyword inputs.
        outputs: which of the returned values are needed, when the model returns more: a key, an
            index, a list of them, or a function of the returned value. What is not needed does not
            keep its size.
        freeze: axes that shall not be cut: names or patterns of axes, parameters or modules.
        tie: groups of axis names that shall be cut together, or patterns that match all of a group.
        step: what the counts go in, for all axes or by axis name; the default is hardware-friendly.
        bits: numbers of bits, 1 to 8, in which subnets may hold the weights of convolutions and
            linear layers, besides floating point; or `Bits` for more choices. Each layer has an
            axis of kind bits, whose full count, 32, is the floating-point weight.

    Raises:
        ModelError: the model fails on the inputs, cannot be copied, or has nothing elastic; or no
            layer can be quantised, where bits are asked for.
        SpecError: `freeze`, `tie`, `step` or `bits` name nothing that exists.

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
        tie: Iterable[str | Sequence[str]] = (),
        step: int | Mapping[str, int] | None = None,
        bits: Bits | Sequence[int] | None = None,
    ) -> None:
        check_model(model)
        check_step(step)
        pick = picker(outputs)
        options = dict(kwargs or {})
        with undisturbed(model):
            own = copied(model)
            before = {name: m.training for name, m in own.named_modules()}
            own.eval()
            first_run(own, args, options, model)
            check_skeleton(own)
            space = proven_space(own, args, options, pick, freeze, tie, step)
            private = private_buffers(own, args, options)
            if bits is not None:
                space = coded(own, space, bits, args, options)
        for name, module in own.named_modules():
            module.training = before.get(name, model.training)  # the first run may add modules
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
        self._order = _identity(self._orders)
        self._thawed = _thawed(model)
        self._gradients = {name: SharedGradient(p) for name, p in model.named_parameters()}
        self._live: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._ties: weakref.WeakSet[Binding] = weakref.WeakSet()  # they may outlive the subnets
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
        """Identity of the present order, 0 for the model's own; others' subnets refuse to run."""
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
        """Load weights in place (live subnets see them); they must be in the present order.

        Weights without the scales that bits need (those of a model before it was a supernet) get
        the usual ones.
        """
        extras = {name for coding in self._space.codings for name in coding.extras}
        if not extras or not extras.isdisjoint(state):
            self._model.load_state_dict(state)
            return
        own = self._model.state_dict()
        self._model.load_state_dict({**state, **{name: own[name] for name in extras}})
        measure_scales(self._model, self._space)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the shared gradients, as `nn.Module.zero_grad` does."""
        self._model.zero_grad(set_to_none)

    def refresh(self) -> None:
        """Let all live subnets see weights that were written through `.data`.

        PyTorch counts writes in place, and subnets follow them by themselves; writes through
        `.data` (as some moving averages swap weights) are not counted. Views see them anyway, but
        weights that are gathered copies need this call before the next evaluation; a training
        forward run and `pack` make it for themselves.

        Example:
            >>> for shared, average in zip(net.parameters(), averages):
            ...     shared.data.copy_(average)
            >>> net.refresh()
        """
        for subnet in self._live:
            tie = binding(subnet)
            if tie is not None:
                tie.refresh()

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: subnets run, the supernet makes them."""
        raise ModelError(
            "a supernet is not called itself: it makes the modules that are; for the full net use "
            "net.subnet(net.space.full)"
        )

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Refuse: pickles run code when they are read, and miss the ties to live subnets."""
        raise ModelError(
            "a supernet is not pickled: save a menu with menu.save, or net.state_dict()"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Supernet:
        """Return a supernet of its own weights, without live subnets."""
        twin = memo[id(self)] = type(self).__new__(type(self))
        model = memo[id(self._model)] = duplicate(self._model, memo)
        twin._setup(model, self._space, self._orders, self._private, self._signature)
        return twin

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
        subnet = build(
            self._model,
            self._space,
            self._checked(spec),
            private=self._private,
            gradients=self._gradients,
            order=self._order,
        )
        self._live.add(subnet)
        tie = binding(subnet)
        assert tie is not None
        self._ties.add(tie)
        return subnet

    def pooled(self, spec: Mapping[str, int]) -> nn.Module:
        """Return the same training subnet for the same spec, made when it is first asked for.

        Training draws the same specs again and again; making a module each time would cost more
        than a small net's step. The pool holds the 64 that were used last, and is emptied when
        shared weights were frozen or thawed.
        """
        spec = self._checked(spec)
        thawed = _thawed(self._model)
        if thawed != self._thawed:
            self._thawed = thawed
            self._pool.clear()
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
        do not change. When it fails, the subnet is left as it was.

        Args:
            subnet: of this supernet, or a packed copy.
            batches: `(inputs, targets)` pairs or bare inputs; 20 to 200 of them are usual.

        Returns:
            The same subnet, in the mode that it was in.

        Raises:
            ModelError: there is no batch.
        """
        recalibrate(_unwrapped(subnet), batches, self._private)
        return subnet

    def absorb(self, spec: Mapping[str, int], packed: nn.Module) -> nn.Module:
        """Write a packed (and perhaps tuned) copy back into the shared weights.

        Weights in few bits that were tuned are rounded to that many bits again; those that were not
        keep their finer bits.

        Norm weights that were the subnet's own, not slices of the shared ones, are no part of these
        (see `ownership.own_norms`): they are the returned subnet's own again, and the full net
        keeps its norms.

        Args:
            spec: what the copy was packed from.
            packed: made by `nestling.pack`, or a module of the same names and shapes.

        Returns:
            A live subnet for the spec with the packed copy's norm statistics and own norm weights.

        Raises:
            SpecError: the copy's tensors are not those of the spec, or its units are in another
                order. Nothing is written then.
        """
        packed = _unwrapped(packed)
        order = order_of(packed)
        if order is not None and order != self._order:
            raise SpecError(
                "this copy was packed under another order of the supernet's units and its weights "
                "belong elsewhere now; pack net.subnet(spec) again"
            )
        subnet = self.subnet(spec)
        tie = binding(subnet)
        assert tie is not None
        given = restored(subnet, dict(packed.named_parameters()))
        buffers = dict(packed.named_buffers())
        expected = {**dict(subnet.named_parameters()), **tie.private}
        known = expected.keys() | dict(subnet.named_buffers()).keys()
        _check_shapes(expected, {**given, **buffers}, known)
        take(subnet, {name: given[name] for name in own_of(packed)})
        with torch.no_grad():
            for name, link in tie.parameters.items():
                shared = self._gradients[name].parameter
                link.cut.put(shared, given[name].to(shared))
            for name, buffer in tie.private.items():
                buffer.copy_(buffers[name])
            tie.measured = True
        tie.refresh()
        return subnet

    # -- changes of all -----------------------------------------------------------------------

    def reorder(
        self,
        orders: Mapping[str, Sequence[int]],
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """Permute units, best first; the full net's function does not change.

        Gradients and optimiser state are permuted too. Subnets and menus that were made before
        refuse to run: they would be other networks now.

        Args:
            orders: axis name to the present unit for each new place; other axes stay as they are.
            optimizer: an optimiser over `parameters()` whose state shall follow.

        Raises:
            SpecError: an unknown axis, or an order that is not a permutation of its units.
            ModelError: the optimiser holds state that belongs to no dimension of its parameter.
                Nothing is permuted then.
        """
        orders = {name: _checked_order(self._space, name, order) for name, order in orders.items()}
        moving = {n: order for n, order in orders.items() if order != tuple(range(len(order)))}
        if not moving:
            return
        with torch.inference_mode(False), torch.no_grad():
            for tensor, dim, index in list(self._moves(moving, optimizer)):
                tensor.copy_(tensor.index_select(dim, index.to(tensor.device)))
        for name, order in moving.items():
            self._orders[name] = tuple(self._orders[name][unit] for unit in order)
        self._order = _identity(self._orders)
        self._let_go(
            "this subnet was made before the supernet's units were reordered and would now "
            "be another network; make it again with net.subnet(spec)"
        )

    def _moves(
        self, orders: Mapping[str, Sequence[int]], optimizer: torch.optim.Optimizer | None
    ) -> Iterator[tuple[Tensor, int, Tensor]]:
        """Yield every tensor that a reorder changes, with the dimension and the new order."""
        for name, tensor in [*self._model.named_parameters(), *self._model.named_buffers()]:
            followers = None
            for dim, index in _permutations(self._space, name, orders):
                if followers is None:
                    followers = _followers(name, tensor, optimizer)
                for each in followers:
                    if each.shape[dim] == tensor.shape[dim]:
                        yield each, dim, index

    def to(self, *args: Any, **kwargs: Any) -> Supernet:
        """Move or convert the shared weights, as `nn.Module.to` does; live subnets follow."""
        for gradient in self._gradients.values():
            gradient.release()
        with _in_place():
            self._model.to(*args, **kwargs)
        self._space = with_itemsizes(self._space, self._model)
        moved = dict(self._model.named_parameters())
        if any(moved[name] is not each.parameter for name, each in self._gradients.items()):
            self._gradients = {name: SharedGradient(p) for name, p in moved.items()}
            self._let_go(
                "the supernet's weights were replaced when they were moved; make the subnet again "
                "with net.subnet(spec)"
            )
        for subnet in self._live:
            rebind(subnet, self._model, self._space, self._private)
        return self

    def _let_go(self, why: str) -> None:
        """Make all live subnets refuse to run."""
        for subnet in self._live:
            refuse(subnet, why)
        for tie in self._ties:
            tie.refusal = why
        self._live.clear()
        self._ties.clear()
        self._pool.clear()

    def __repr__(self) -> str:
        full = self._space.full
        return (
            f"Supernet of {type(self._model).__name__}: {len(self._space.axes)} axes, "
            f"{self._space.params(full):,} parameters, {self._space.macs(full):,} MACs"
        )

    def _checked(self, spec: Mapping[str, int]) -> Spec:
        return Spec(self._space, spec)  # also a `Spec`: it may be of another space


def rearranged(
    space: Space, tensors: Mapping[str, Tensor], orders: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """Return tensors of a net as they are after `net.reorder(orders)`: copies where they differ.

    Args:
        space: of the net.
        tensors: its parameters and buffers by name, in the order of before.
        orders: axis name to the unit of before for each new place.
    """
    found = {}
    for name, tensor in tensors.items():
        found[name] = tensor
        for dim, index in _permutations(space, name, orders):
            found[name] = found[name].index_select(dim, index.to(tensor.device))
    return found


def _permutations(
    space: Space, name: str, orders: Mapping[str, Sequence[int]]
) -> Iterator[tuple[int, Tensor]]:
    """Yield every dimension of a tensor that orders permute, with the entry for each place."""
    for dim, extent in enumerate(space.layouts[name].extents):
        if not orders.keys().isdisjoint(extents.axes_of(extent)):
            yield dim, torch.tensor(extents.permuted(extent, orders))


def check_supernet(net: object, what: str) -> None:
    """Check that a call was given a supernet, where users tend to give the model.

    Args:
        net: what was given.
        what: the call, such as "fit".

    Raises:
        ModelError: it is none.
    """
    if not isinstance(net, Supernet):
        given = type(net).__name__
        cure = "nestling.Supernet(model, example_input)"
        if isinstance(net, type):
            given, cure = f"the class {net.__name__}", f"nestling.Supernet({net.__name__}(), x)"
        raise ModelError(f"{what} takes a supernet, but got {given}; make one: net = {cure}")


def _unwrapped(module: nn.Module) -> nn.Module:
    """Return what `torch.compile` or a data-parallel wrapper holds; another module as it is."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        key = "module" if isinstance(module, parallel) else "_orig_mod"
        inner = module._modules.get(key)
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def _checked_order(space: Space, name: str, order: Sequence[int]) -> tuple[int, ...]:
    if name not in space.axes:
        raise SpecError(f"cannot reorder the unknown axis {name!r}{did_you_mean(name, space.axes)}")
    axis = space.axes[name]
    if axis.ordered and list(order) != list(range(axis.size)):
        raise SpecError(
            f"axis {name!r} is of kind {axis.kind}, whose units have an order of their own that "
            "nothing changes; leave it out of the orders"
        )
    size = axis.size
    units = tuple(int(unit) for unit in order)
    if sorted(units) != list(range(size)):
        raise SpecError(
            f"an order of axis {name!r} is a permutation of 0 to {size - 1}, but got "
            f"{len(units)} entries, {len(set(units))} of them distinct"
        )
    return units


def _check_shapes(
    expected: Mapping[str, Tensor], given: Mapping[str, Tensor], known: Collection[str]
) -> None:
    """Raise `SpecError` unless a module holds the expected tensors, and none that is unknown.

    One that is unknown would be dropped: the tuned weights of a block that the spec leaves out.
    """
    for name, tensor in expected.items():
        if name not in given or given[name].shape != tensor.shape:
            got = tuple(given[name].shape) if name in given else "missing"
            raise SpecError(
                f"the module is no packed copy of this spec: {name!r} must have the shape "
                f"{tuple(tensor.shape)}, but is {got}; absorb it under the spec it was packed from"
            )
    unknown = [name for name in given if name not in known]
    if unknown:
        raise SpecError(
            f"the module is no packed copy of this spec: it holds {unknown[0]!r} and "
            f"{len(unknown) - 1} more tensors that the subnet has not; absorb it under the spec it "
            "was packed from"
        )


def _identity(orders: Mapping[str, tuple[int, ...]]) -> int:
    """Return a number that tells orders apart, the same in every process; 0 for the model's own."""
    moved = {n: order for n, order in sorted(orders.items()) if order != tuple(range(len(order)))}
    return zlib.crc32(json.dumps(moved).encode()) or 1 if moved else 0


def _thawed(model: nn.Module) -> tuple[bool, ...]:
    return tuple(parameter.requires_grad for parameter in model.parameters())


def _followers(name: str, tensor: Tensor, optimizer: torch.optim.Optimizer | None) -> list[Tensor]:
    """Return the tensor, its gradient and its optimiser state: all that is permuted with it.

    State of one entry (a step count) stays; factored state follows in the dimensions it has.
    """
    found = [tensor]
    if tensor.grad is not None:
        found.append(tensor.grad)
    state = optimizer.state.get(tensor, {}) if optimizer is not None else {}
    for key, value in state.items():
        for leaf in tree_leaves(value):
            if not isinstance(leaf, Tensor) or leaf.numel() == 1:
                continue
            pairs = zip(leaf.shape, tensor.shape, strict=False)
            if leaf.dim() != tensor.dim() or any(a not in (1, b) for a, b in pairs):
                raise ModelError(
                    f"the optimiser's state {key!r} of {name!r} has the shape "
                    f"{tuple(leaf.shape)}, which does not fit the parameter's "
                    f"{tuple(tensor.shape)}, so it cannot follow; reorder before training, or "
                    "make the optimiser anew afterwards"
                )
            found.append(leaf)
    return found


@contextmanager
def _in_place() -> Iterator[None]:
    """Let `nn.Module.to` keep the parameter objects, whatever torch's global switches say."""
    future = torch.__future__
    before = (
        future.get_overwrite_module_params_on_conversion(),
        future.get_swap_module_params_on_conversion(),
    )
    future.set_overwrite_module_params_on_conversion(False)
    future.set_swap_module_params_on_conversion(False)
    try:
        yield
    finally:
        future.set_overwrite_module_params_on_conversion(before[0])
        future.set_swap_module_params_on_conversion(before[1])
