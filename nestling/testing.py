"""Contract checks: what holds for every supernet, to run on a model or an axis kind of your own.

Each check is a plain function that raises an `AssertionError` saying what does not hold. None
changes the net that it is given.
"""

from __future__ import annotations

import functools
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from nestling import extent as extents
from nestling.axes.comparison import difference
from nestling.axes.discovery import discover
from nestling.axes.expression import Atom
from nestling.axes.preparation import double
from nestling.axes.reference import Replayer, cut, run_masked
from nestling.axes.residual import dropped
from nestling.axes.scales import Follows, Numbers, can_follow, followed
from nestling.axes.structure import tensors_in
from nestling.axes.ties import expression_of
from nestling.axes.tracer import run
from nestling.binding import binding
from nestling.bit_checks import check_bits, in_floating_point
from nestling.construction import picker
from nestling.errors import UncalibratedWarning
from nestling.extent import Along, Concat, Counts, Extent, Product
from nestling.spec import Space, Spec
from nestling.supernet import Supernet
from nestling.training_checks import check_method, check_ranker, check_search, twin
from nestling.units import loose_axes

__all__ = [
    "check_full",
    "check_isolation",
    "check_masked",
    "check_method",
    "check_order",
    "check_ranker",
    "check_search",
    "check_supernet",
    "some_specs",
]

Pick: TypeAlias = Callable[[Any], Any]
EVERYTHING: Pick = picker(None)  # that a model returns is needed

EXACT = 1e-9  # relative to the largest entry, in float64
STEP = 2e-9  # of the finite differences; small, so that few units cross the kink of a ReLU
SLOPE = 1e-3  # relative error that finite differences may have


def check_supernet(
    net: Supernet, *inputs: Any, seed: int = 0, outputs: Any = None, **kwargs: Any
) -> None:
    """Check the invariants that hold for every supernet, whatever its model and axes.

    Args:
        net: the supernet; it is not changed.
        *inputs: as the model takes them.
        seed: of the random specs and orders.
        outputs: which of the returned values are needed, as the supernet was given it.
        **kwargs: keyword inputs.

    Raises:
        AssertionError: what does not hold.

    Example:
        >>> check_supernet(nestling.Supernet(MyNet(), x), x)
    """
    check_full(net, *inputs, **kwargs)
    check_order(net, *inputs, seed=seed, outputs=outputs, **kwargs)
    check_masked(net, *inputs, seed=seed, outputs=outputs, **kwargs)
    check_isolation(net, *inputs, seed=seed, **kwargs)
    check_bits(net, *inputs, seed=seed, **kwargs)


def check_full(net: Supernet, *inputs: Any, **kwargs: Any) -> None:
    """Check that the full spec computes what the net itself computes, bit for bit."""
    own = twin(net)
    expected = _outputs(own.model.eval(), inputs, kwargs)
    found = _outputs(own.subnet(own.space.full).eval(), inputs, kwargs)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other), "the full spec computes something else than the model"


def check_order(
    net: Supernet, *inputs: Any, seed: int = 0, outputs: Any = None, **kwargs: Any
) -> None:
    """Check that no needed output changes when the units of all axes are put in another order."""
    own, inputs, kwargs = _wide(net, inputs, kwargs)
    pick = picker(outputs)
    before = _outputs(own.model, inputs, kwargs, pick)
    draw = random.Random(seed)
    orders = {a.name: draw.sample(range(a.size), a.size) for a in loose_axes(own.space)}
    own.reorder(orders)
    after = _outputs(own.model, inputs, kwargs, pick)
    _assert_close(after, before, f"reordering the axes {list(orders)} changes the output")


def check_masked(
    net: Supernet, *inputs: Any, seed: int = 0, outputs: Any = None, **kwargs: Any
) -> None:
    """Check that subnets compute what the masked full model computes, forward and gradients.

    Masked means that the cut units are set to zero, and that norms, means and softmax over units
    are taken over the kept ones. The gradients are compared with finite differences of the masked
    model along a random direction, in float64.
    """
    own, inputs, kwargs = _wide(net, inputs, kwargs)
    pick = picker(outputs)
    masked = _Masked(own, inputs, kwargs, pick)
    for spec in dict.fromkeys(in_floating_point(own.space, s) for s in some_specs(own.space, seed)):
        subnet = own.subnet(spec).eval()
        found = tensors_in(pick(_quiet(functools.partial(subnet, *inputs, **kwargs))))
        _assert_close(found, masked.outputs(spec), f"{spec} differs from the masked model")
        generator = torch.Generator().manual_seed(seed)
        weights = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in found]
        subnet.zero_grad()
        for parameter in own.parameters():
            parameter.grad = None
        _weighted(found, weights).backward()
        _assert_slope(own, masked, spec, weights, generator)


def check_isolation(net: Supernet, *inputs: Any, seed: int = 0, **kwargs: Any) -> None:
    """Check that training one subnet's statistics changes no other, and that threads do not mix."""
    own = twin(net)
    subnets = [own.subnet(spec).eval() for spec in some_specs(own.space, seed)]
    before = [_outputs(subnet, inputs, kwargs) for subnet in subnets]
    busy = own.subnet(own.space.uniform[0]).train()
    outputs = tensors_in(busy(*inputs, **kwargs))
    loss = _weighted(outputs, [torch.ones_like(t) for t in outputs])
    if loss.requires_grad:
        loss.backward()
    after = [_outputs(subnet, inputs, kwargs) for subnet in subnets]
    for subnet, one, other in zip(subnets, after, before, strict=True):
        same = all(map(torch.equal, one, other))
        assert same, f"training one subnet changed another one, that of {_counts(subnet)}"
    with ThreadPoolExecutor(8) as pool:  # each has been run before, so none warns any more
        runs = pool.map(lambda subnet: _run(subnet, inputs, kwargs), subnets * 4)
        for number, found in enumerate(runs):
            same = all(map(torch.equal, found, before[number % len(subnets)]))
            assert same, "a subnet computes something else when others run in other threads"


def some_specs(space: Space, seed: int = 0, count: int = 3) -> list[Spec]:
    """Return the narrowest spec, the full one and some random ones, all axes cut independently."""
    draw = random.Random(seed)
    some = [{n: draw.choice(a.counts) for n, a in space.axes.items()} for _ in range(count)]
    least = {name: axis.counts[0] for name, axis in space.axes.items()}
    return list(dict.fromkeys(Spec(space, counts) for counts in [least, {}, *some]))


class _Masked:
    """The masked full model of a supernet."""

    def __init__(
        self, net: Supernet, inputs: Sequence[Any], kwargs: dict[str, Any], pick: Pick
    ) -> None:
        self.net, self.inputs, self.kwargs, self.pick = net, inputs, kwargs, pick
        found = discover(net.model, inputs, kwargs, outputs=pick)
        self.trace, self.steps = found.trace, found.steps
        self.owners = dict(_owners(found.space, net.space, found.atoms))
        self._check_owners()
        self.follows = self._follows()
        self.results = [found.trace.of(tensor) for tensor in found.outputs]

    def outputs(self, counts: Counts) -> list[Tensor]:
        """Return what it computes for some counts, cut to the kept units where they come out."""
        kept = {atom: counts[name] for atom, name in self.owners.items()}
        passed = dropped(self.steps, self.net.space, counts)
        mode = Replayer(self.trace, kept, passed, self.follows)
        value = run_masked(self.net.model, self.inputs, self.kwargs, self.net.space, counts, mode)
        pairs = zip(tensors_in(self.pick(value)), self.results, strict=True)
        return [cut(tensor.detach().clone(), dims, kept) for tensor, dims in pairs]

    def _check_owners(self) -> None:
        """Check that every axis can be masked, so that none is compared without being cut."""
        widths = {axis.name for axis in loose_axes(self.net.space)}
        lost = sorted(widths - set(self.owners.values()))
        assert not lost, (
            f"the axis {lost[0]!r} of the supernet is none of its model: check with the inputs and "
            "the outputs= that it was made with"
        )

    def _follows(self) -> Follows:
        """Return which numbers subnets compute from their kept sizes (`nestling.axes.scales`)."""
        least = {axis.name: axis.counts[0] for axis in loose_axes(self.net.space)}
        kept = {atom: least[name] for atom, name in self.owners.items() if name in least}
        if not can_follow(self.trace.scales, kept):
            return {}
        numbers, subnet = Numbers(), self.net.subnet(self.net.space.spec(least)).eval()
        _quiet(lambda: run(subnet, self.inputs, self.kwargs, numbers))
        return followed(self.trace.scales, numbers, kept)


def _owners(found: Space, proven: Space, atoms: Mapping[str, Atom]) -> Iterator[tuple[Atom, str]]:
    """Yield the traced atoms with the proven axis that each belongs to, by where they stand.

    An atom that has become several axes is bound to what these are made of.
    """
    owners: dict[Atom, str] = {}
    became: dict[Atom, Extent] = {}
    for name, layout in found.layouts.items():
        for one, other in zip(layout.extents, proven.layouts[name].extents, strict=True):
            for here, there in _pairs(one, other):
                if isinstance(there, Along):
                    owners[atoms[here.axis]] = there.axis
                elif any(extents.axes_of(there)):
                    became[atoms[here.axis]] = there
    whole = {name: atom for atom, name in owners.items()}
    for atom, extent in became.items():
        atom.bound = expression_of(extent, whole)
    yield from owners.items()


def _pairs(found: Extent, proven: Extent) -> Iterator[tuple[Along, Extent]]:
    """Yield every axis of an extent as it was found, with what stands in its place."""
    match found, proven:
        case Along(), _:
            yield found, proven
        case (Product(parts), Product(inner)) | (Concat(parts), Concat(inner)):
            for one, other in zip(parts, inner, strict=True):
                yield from _pairs(one, other)


def _assert_slope(
    net: Supernet, masked: _Masked, spec: Spec, weights: list[Tensor], generator: torch.Generator
) -> None:
    """Compare the shared gradients with finite differences of the masked model."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    slope, ways = 0.0, []
    for parameter in parameters:
        way = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        ways.append(way)
        slope += 0.0 if parameter.grad is None else float((parameter.grad * way).sum())
    values = []
    for sign in (1.0, -2.0, 1.0):  # there, to the other side, and back
        _shift(parameters, ways, sign * STEP)
        values.append(float(_weighted(masked.outputs(spec), weights)))
    measured = (values[0] - values[1]) / (2 * STEP)
    size = max(1.0, abs(slope), abs(measured))
    assert abs(slope - measured) <= SLOPE * size, (
        f"the gradients of {spec} are not those of the masked model: along a random direction the "
        f"loss rises by {measured:.6g}, but the shared gradients say {slope:.6g}"
    )


def _shift(parameters: list[nn.Parameter], ways: list[Tensor], by: float) -> None:
    with torch.no_grad():
        for parameter, way in zip(parameters, ways, strict=True):
            parameter.add_(way, alpha=by)


def _weighted(tensors: Sequence[Tensor], weights: Sequence[Tensor]) -> Any:
    return sum((t * w).sum() for t, w in zip(tensors, weights, strict=True))


def _assert_close(found: Sequence[Tensor], expected: Sequence[Tensor], message: str) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape, f"{message}: shapes {one.shape} and {other.shape}"
        worst = difference(one, other)
        assert worst <= EXACT, f"{message} by {worst:.2e} of the largest entry"


def _outputs(
    model: nn.Module,
    inputs: Sequence[Any],
    kwargs: Mapping[str, Any],
    pick: Pick = EVERYTHING,
) -> list[Tensor]:
    return _quiet(lambda: _run(model, inputs, kwargs, pick))  # type: ignore[no-any-return]


def _run(
    model: nn.Module,
    inputs: Sequence[Any],
    kwargs: Mapping[str, Any],
    pick: Pick = EVERYTHING,
) -> list[Tensor]:
    with torch.no_grad():
        return [t.clone() for t in tensors_in(pick(model(*inputs, **kwargs)))]


def _counts(subnet: nn.Module) -> dict[str, int]:
    tie = binding(subnet)
    return {} if tie is None else dict(tie.counts)


def _quiet(call: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncalibratedWarning)
        return call()


def _wide(
    net: Supernet, inputs: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Supernet, tuple[Any, ...], dict[str, Any]]:
    """Return a twin in float64 and evaluation mode, and its inputs in float64."""
    model, (inputs, kwargs) = double(net.model, (inputs, kwargs))
    model.zero_grad()
    own = Supernet.restore(model, net.space, net.orders, net.private, net.signature)
    return own, inputs, kwargs
