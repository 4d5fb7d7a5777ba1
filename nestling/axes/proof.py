"""The proof: a cut subnet computes exactly what the full model with masked units computes.

For each axis, and for random joint cuts, the subnet is made by the very code that makes the user's
subnets, in float64, on fresh inputs, and its outputs are compared with those of the full model whose
cut units are set to zero. Norms and reductions over a cut dimension are evaluated over the kept
units. Where they differ, the proof looks for the size attribute that the code reads, then for axes
that the code cuts together; otherwise the axis is frozen, with the reason.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from nestling import extent as extents
from nestling.axes.discovery import Discovery
from nestling.axes.expression import Atom, Expression, kept
from nestling.axes.tracer import run
from nestling.errors import SpecError
from nestling.extent import Counts
from nestling.spec import Attribute, Frozen, Space
from nestling.subnet import SharedGradient, build

EXACT = 1e-9  # largest difference, relative to the largest output, that float64 rounding explains
MOVED = 1e-7  # smallest relative change of the output by which a cut counts as noticed
JOINT = 3  # random joint cuts
TRIES = 40  # attempts to repair one cut


@dataclass(frozen=True)
class Verdict:
    """What one comparison said: whether it held, how far off it was, and where it went wrong."""

    holds: bool
    difference: float
    reason: str = ""
    module: str = ""


@dataclass(frozen=True)
class Call:
    """One module call of a reference run: its path and what it returned, cut to the kept units."""

    path: str
    tensors: tuple[Tensor, ...]


class Prover:
    """Proves the axes of a discovery on a float64 copy of the model.

    Args:
        model: a copy in float64 and evaluation mode, which the prover may change.
        args: positional inputs in float64.
        kwargs: keyword inputs in float64.
        discovery: made from this very model.
        outputs: picks what the user needs from what the model returns.
        seed: of the random weights, inputs and cuts.
    """

    def __init__(
        self,
        model: nn.Module,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        discovery: Discovery,
        outputs: Callable[[Any], Any],
        seed: int = 0,
    ) -> None:
        self.random = random.Random(seed)
        generator = torch.Generator().manual_seed(seed)
        self.model = model
        _randomise_constant_weights(model, generator)
        freshen = _Freshen(generator)
        self.args = tree_map(freshen, tuple(args))
        self.kwargs = tree_map(freshen, kwargs)
        self.discovery = discovery
        self.outputs = outputs
        self.owners = {atom: name for name, atom in discovery.atoms.items()}
        self.gradients = {name: SharedGradient(p) for name, p in model.named_parameters()}
        with _lively_norms(model):
            run(model, self.args, self.kwargs, None)
        self.whole = self._tensors(run(model, self.args, self.kwargs, None))

    # -- one comparison -----------------------------------------------------------------------

    def check(self, space: Space, counts: Counts) -> Verdict:
        """Compare the subnet for some counts with the masked full model."""
        reference = self._tensors(self._reference(space, counts))
        if not _moved(reference, self.whole):
            return Verdict(False, 0.0, "cutting it does not change the output: nothing is proven")
        try:
            found = self._tensors(run(self._subnet(space, counts), self.args, self.kwargs, None))
        except Exception as error:  # noqa: BLE001  (the user's code runs here)
            return Verdict(False, float("inf"), f"the code needs the full size: {_short(error)}")
        return _compare(found, reference)

    def _subnet(self, space: Space, counts: Counts) -> nn.Module:
        return build(
            self.model, space, counts, private=frozenset(), gradients=self.gradients
        ).eval()

    def _reference(self, space: Space, counts: Counts) -> Any:
        masked = {}
        for name, parameter in self.model.named_parameters():
            zeroed = _masked(parameter.detach(), space.layouts[name].extents, counts)
            if zeroed is not None:
                masked[name] = zeroed
        mode = _Replayer(self.discovery, self._by_atom(counts))
        with torch.no_grad():
            return run(_Masked(self.model, masked), self.args, self.kwargs, mode)

    def _by_atom(self, counts: Counts) -> dict[Atom, int]:
        named = {atom: counts.get(name) for atom, name in self.owners.items()}
        return {atom: count for atom, count in named.items() if count is not None}

    def _tensors(self, returned: Any) -> list[Tensor]:
        leaves = tree_leaves(self.outputs(returned))
        return [leaf.clone() for leaf in leaves if isinstance(leaf, Tensor)]

    # -- the whole proof ----------------------------------------------------------------------

    def prove(self, space: Space) -> Space:
        """Return the space with what was proven: repaired, tied, or frozen where it must be."""
        for name in list(space.axes):
            if name in space.axes:
                space = self._settle(space, name)
        for _ in range(JOINT):
            space = self._settle_joint(space)
        return space

    def _settle(self, space: Space, name: str) -> Space:
        counts = {name: self.random.randrange(1, space.axes[name].size)}
        verdict = self.check(space, counts)
        if verdict.holds:
            return space
        for attempt in (self._repaired, self._tied):
            better = attempt(space, name, counts)
            if better is not None:
                return better
        return self._frozen(space, name, verdict, counts)

    def _settle_joint(self, space: Space) -> Space:
        while space.axes:
            names = self.random.sample(list(space.axes), len(space.axes))
            counts = {name: self.random.randint(1, space.axes[name].size) for name in names}
            if counts == {name: space.axes[name].size for name in names}:
                continue
            verdict = self.check(space, counts)
            if verdict.holds:
                return space
            better = self._repaired(space, names[0], counts)
            space = better if better is not None else self._blame(space, names, counts)
        return space

    def _blame(self, space: Space, names: Sequence[str], counts: Counts) -> Space:
        """Freeze the axis whose cut, added to the cuts before it, first breaks the equality."""
        low, high = 0, len(names)
        while high - low > 1:
            middle = (low + high) // 2
            part = {name: counts[name] for name in names[:middle]}
            if self.check(space, part).holds:
                low = middle
            else:
                high = middle
        part = {name: counts[name] for name in names[:high]}
        return self._frozen(space, names[high - 1], self.check(space, part), part)

    def _frozen(self, space: Space, name: str, verdict: Verdict, counts: Counts) -> Space:
        module = self._first_wrong(space, counts)[1] if verdict.difference else ""
        self.let_go(name)
        return space.without(name, Frozen("", 0, 0, "", module, verdict.reason))

    def let_go(self, name: str) -> None:
        """Forget an axis that is frozen now."""
        self.owners = {atom: owner for atom, owner in self.owners.items() if owner != name}

    def tie(self, space: Space, group: Sequence[str]) -> Space:
        """Return the space with the axes of a group made one."""
        tied = space.tied(group)
        for atom, owner in self.owners.items():
            if owner in group:
                self.owners[atom] = group[0]
        return tied

    # -- repair -------------------------------------------------------------------------------

    def _repaired(self, space: Space, name: str, counts: Counts) -> Space | None:
        """Find the size attributes that the code reads, at the first module that goes wrong."""
        tries = TRIES
        far, where = self._first_wrong(space, counts)
        while not self.check(space, counts).holds:
            better = None
            for path in _upwards(where):
                for attribute in self._candidates(space, path, counts):
                    tries -= 1
                    if tries < 0:
                        return None
                    trial = replace(space, attributes=(*space.attributes, attribute))
                    reached = self._first_wrong(trial, counts)
                    if reached[0] > far:
                        better, (far, where) = trial, reached
                        break
                if better is not None:
                    break
            if better is None:
                return None
            space = better
        return space

    def _candidates(self, space: Space, path: str, counts: Counts) -> Iterator[Attribute]:
        """Yield the integers of a module that equal a size its code passed along a cut axis."""
        module = self.model.get_submodule(path)
        taken = {(a.module, a.name, a.index) for a in space.attributes}
        sizes: dict[int, list[extents.Extent]] = {}
        for argument, extent in self.discovery.sizes:
            extent = self._current(extent)
            inside = argument.module == path or argument.module.startswith(f"{path}.") or not path
            if inside and extents.count(extent, counts) != argument.value:
                same = sizes.setdefault(argument.value, [])
                if extent not in same:
                    same.append(extent)
        for key, index, value in _integers(module):
            for extent in sizes.get(value, []):
                if (path, key, index) not in taken:
                    yield Attribute(path, key, index, extent)

    def _current(self, extent: extents.Extent) -> extents.Extent:
        names = {atom: name for name, atom in self.discovery.atoms.items()}
        current = {name: self.owners.get(atom) for atom, name in names.items()}

        def rename(at: extents.Along) -> extents.Extent:
            owner = current.get(at.axis)
            return extents.Along(owner, at.size) if owner else extents.Fixed(at.size)

        return extents.substitute(extent, rename)

    def _first_wrong(self, space: Space, counts: Counts) -> tuple[float, str]:
        """Return how many module calls agree with the reference, and the first that does not."""
        expected = self._reference_calls(space, counts)
        try:
            subnet = self._subnet(space, counts)
        except Exception:  # noqa: BLE001  (an attribute that does not fit)
            return -1, ""
        progress = _Progress(expected)
        with progress.watch(subnet):
            try:
                run(subnet, self.args, self.kwargs, None)
            except Exception:  # noqa: BLE001  (the user's code runs here)
                progress.stop()
        return (float("inf"), "") if progress.wrong is None else (progress.agreed, progress.wrong)

    def _reference_calls(self, space: Space, counts: Counts) -> list[Call]:
        found: list[tuple[str, list[Tensor]]] = []
        with _returned(self.model, lambda path, tensors: found.append((path, tensors))):
            self._reference(space, counts)
        by_atom = self._by_atom(counts)
        calls = []
        for (path, expressions), (_, tensors) in zip(
            self.discovery.trace.calls, found, strict=True
        ):
            pairs = zip(tensors, expressions, strict=True)
            calls.append(Call(path, tuple(_cut(t, e, by_atom) for t, e in pairs)))
        return calls

    # -- ties ---------------------------------------------------------------------------------

    def _tied(self, space: Space, name: str, counts: Counts) -> Space | None:
        """Cut together what the code cuts together: axes of one size that meet in a dimension."""
        near = list(dict.fromkeys(self._neighbours(space, name)))
        for others in [[other] for other in near] + ([near] if len(near) > 1 else []):
            group = [axis for axis in space.axes if axis in (name, *others)]
            before = dict(self.owners)
            trial = self.tie(space, group)
            several = [{group[0]: count} for count in {counts[name], 1, space.axes[name].size - 1}]
            if all(self.check(trial, each).holds for each in several):
                note = f"tied, because the code cuts them together: {', '.join(group)}"
                return replace(trial, notes=(*trial.notes, note))
            self.owners = before
        return None

    def _neighbours(self, space: Space, name: str) -> Iterator[str]:
        size = space.axes[name].size
        for layout in space.layouts.values():
            for extent in layout.extents:
                axes = list(extents.axes_of(extent))
                if name in axes:
                    yield from (a for a in axes if a != name and space.axes[a].size == size)


class _Masked(nn.Module):
    """The full model with some parameters replaced by masked copies, for one run."""

    def __init__(self, model: nn.Module, masked: dict[str, Tensor]) -> None:
        super().__init__()
        self.__dict__["call"] = lambda args, kwargs: functional_call(model, masked, args, kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the masked model."""
        return self.__dict__["call"](args, kwargs)


class _Replayer(TorchDispatchMode):
    """Evaluates ops whose value depends on the number of units over the kept units only."""

    def __init__(self, discovery: Discovery, counts: Mapping[Atom, int]) -> None:
        super().__init__()
        self.replays = discovery.trace.replays
        self.counts = counts
        self.op = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an op as it is, or over the kept units with zeros for the cut ones."""
        kwargs = kwargs or {}
        self.op += 1
        replay = self.replays.get(self.op)
        if replay is None:
            return func(*args, **kwargs)
        if replay.op != func.overloadpacket.__name__:
            raise SpecError(
                "the model must run the same ops at every call, but it ran "
                f"{func.overloadpacket.__name__!r} where it ran {replay.op!r} before; "
                "freeze the part that varies"
            )
        tensors = iter(replay.inputs)
        if not any(_is_cut(e, self.counts) for each in replay.inputs for e in each):
            return func(*args, **kwargs)

        def shrink(leaf: Any) -> Any:
            return _cut(leaf, next(tensors), self.counts) if isinstance(leaf, Tensor) else leaf

        less, options = tree_map(shrink, (list(args), kwargs))
        if replay.rule.resize is not None:
            replay.rule.resize(less, options)
        results = iter(replay.outputs)

        def spread(leaf: Any) -> Any:
            return _spread(leaf, next(results), self.counts) if isinstance(leaf, Tensor) else leaf

        return tree_map(spread, func(*less, **options))


class _Progress:
    """Watches a subnet's module calls and stops counting at the first that goes wrong."""

    def __init__(self, expected: Sequence[Call]) -> None:
        self.expected = expected
        self.agreed = 0
        self.wrong: str | None = None
        self.running: list[str] = []

    @contextmanager
    def watch(self, subnet: nn.Module) -> Iterator[None]:
        """Compare every call of the subnet while the block runs."""
        handles = [
            module.register_forward_pre_hook(
                lambda *_, path=path: self.running.append(path), prepend=True
            )
            for path, module in subnet.named_modules()
        ]
        with _returned(subnet, self._look):
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()

    def stop(self) -> None:
        """Note that the running module raised an error."""
        if self.wrong is None:
            self.wrong = self.running[-1] if self.running else ""

    def _look(self, path: str, tensors: Sequence[Tensor]) -> None:
        self.running.pop()
        if self.wrong is not None:
            return
        call = self.expected[self.agreed] if self.agreed < len(self.expected) else None
        if call is not None and call.path == path and _same(tensors, call.tensors):
            self.agreed += 1
        else:
            self.wrong = path


@contextmanager
def _returned(model: nn.Module, note: Callable[[str, list[Tensor]], None]) -> Iterator[None]:
    def look(path: str, returned: Any) -> None:
        with _disable_current_modes():
            leaves = [leaf for leaf in tree_leaves(returned) if isinstance(leaf, Tensor)]
            note(path, [leaf.detach().clone() for leaf in leaves])

    handles = [
        module.register_forward_hook(lambda *given, path=path: look(path, given[-1]))
        for path, module in model.named_modules()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Freshen:
    """Maps an example input to a random one of the same shape; integers stay as they are."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def __call__(self, leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            noise = torch.randn(leaf.shape, generator=self.generator, dtype=torch.float64)
            return noise.to(leaf)
        return leaf


def double(model: nn.Module, inputs: Any) -> tuple[nn.Module, Any]:
    """Return a float64 copy of a model in evaluation mode, and its inputs in float64."""

    def widen(leaf: Any) -> Any:
        floating = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return leaf.double() if floating else leaf

    return copy.deepcopy(model).double().eval(), tree_map(widen, inputs)


def _randomise_constant_weights(model: nn.Module, generator: torch.Generator) -> None:
    """Weights that are all alike (zeros, ones) would hide a wrong cut: make them differ."""
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.is_floating_point() and tensor.numel() > 1 and _all_alike(tensor):
                noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.add_((0.2 + 0.5 * noise).to(tensor))


def _all_alike(tensor: Tensor) -> bool:
    return bool((tensor == tensor.flatten()[0]).all())


@contextmanager
def _lively_norms(model: nn.Module) -> Iterator[None]:
    """Give norms the statistics of what they see, so that no signal dies on its way to the output."""

    def measure(norm: nn.Module, args: Any) -> None:
        seen = args[0].detach().transpose(0, 1).flatten(1)
        variance = seen.var(1, unbiased=False)
        spread = torch.where(variance > 1e-6, variance, seen.pow(2).mean(1) + 1e-3)
        norm.running_mean.copy_(seen.mean(1) * (variance > 1e-6))
        norm.running_var.copy_(spread)

    handles = [
        module.register_forward_pre_hook(measure)
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _masked(tensor: Tensor, dims: Sequence[extents.Extent], counts: Counts) -> Tensor | None:
    """Return the tensor with its cut entries set to zero; None if nothing is cut."""
    result = None
    for dim, extent in enumerate(dims):
        entries = extents.kept(extent, counts)
        if len(entries) < extent.size:
            dead = torch.ones(extent.size, dtype=torch.bool)
            dead[entries] = False
            result = tensor.clone() if result is None else result
            result.index_fill_(dim, dead.nonzero().flatten().to(tensor.device), 0.0)
    return result


def _is_cut(expression: Expression, counts: Mapping[Atom, int]) -> bool:
    return len(kept(expression, counts)) < expression.size


def _cut(tensor: Tensor, expressions: Sequence[Expression], counts: Mapping[Atom, int]) -> Tensor:
    for dim, expression in enumerate(expressions):
        if _is_cut(expression, counts):
            index = torch.tensor(kept(expression, counts), device=tensor.device)
            tensor = tensor.index_select(dim, index)
    return tensor


def _spread(
    tensor: Tensor, expressions: Sequence[Expression], counts: Mapping[Atom, int]
) -> Tensor:
    for dim, expression in enumerate(expressions):
        if _is_cut(expression, counts):
            shape = [*tensor.shape]
            shape[dim] = expression.size
            index = torch.tensor(kept(expression, counts), device=tensor.device)
            tensor = tensor.new_zeros(shape).index_copy(dim, index, tensor)
    return tensor


def _compare(found: Sequence[Tensor], reference: Sequence[Tensor]) -> Verdict:
    if [t.shape for t in found] != [t.shape for t in reference]:
        return Verdict(False, float("inf"), "the cut subnet returns another shape")
    worst = 0.0
    for one, other in zip(found, reference, strict=True):
        if one.numel():
            scale = max(1.0, float(other.double().abs().max()))
            worst = max(worst, float((one.double() - other.double()).abs().max()) / scale)
    if worst <= EXACT:
        return Verdict(True, worst)
    return Verdict(False, worst, f"the cut subnet differs from the masked model by {worst:.1e}")


def _same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return len(found) == len(expected) and _compare(found, expected).holds


def _moved(found: Sequence[Tensor], whole: Sequence[Tensor]) -> bool:
    for one, other in zip(found, whole, strict=True):
        if one.shape != other.shape:
            return True
        if one.numel():
            scale = max(float(other.double().abs().max()), 1e-30)
            if float((one.double() - other.double()).abs().max()) > MOVED * scale:
                return True
    return False


def _upwards(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


def _integers(module: nn.Module) -> Iterator[tuple[str, int | None, int]]:
    for key, value in vars(module).items():
        if key.startswith("_") or key == "training":
            continue
        if isinstance(value, int) and not isinstance(value, bool):
            yield key, None, value
        elif isinstance(value, (tuple, list)):
            for index, item in enumerate(value):
                if isinstance(item, int) and not isinstance(item, bool):
                    yield key, index, item


def _short(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__
