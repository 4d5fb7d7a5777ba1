"""Trials: one model, one set of inputs, and any number of comparisons of subnet and reference."""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nestling import extent as extents
from nestling import passage as passages
from nestling.axes import expression as algebra
from nestling.axes.comparison import TOLERANCES, Verdict, compare, finite, moved
from nestling.axes.discovery import Discovery
from nestling.axes.expression import Atom
from nestling.axes.location import line_of
from nestling.axes.preparation import (
    Freshen,
    lively_norms,
    randomise_constant_weights,
    strengthen_weights,
)
from nestling.axes.reference import OtherPath, Replayer, cut, returned, run_masked, run_permuted
from nestling.axes.rehearsal import Rehearsal
from nestling.axes.residual import dropped
from nestling.axes.scales import Follows, Numbers, can_follow, followed
from nestling.axes.sizes import SizesByModule, sizes_by_module
from nestling.axes.structure import batch_of, map_tensors, tensors_in, with_batch
from nestling.axes.ties import Tie, expression_of
from nestling.axes.tracer import run
from nestling.errors import ModelError
from nestling.extent import Along, Counts, Extent, Fixed
from nestling.packing import pack
from nestling.spec import Space
from nestling.subnet import build
from nestling.tether import SharedGradient
from nestling.weights import duplicate


@dataclass(frozen=True)
class Call:
    """One module call of a reference run.

    Attributes:
        path: of the module.
        tensors: what it returned, cut to the kept units.
        ops: how many ops of the trace had run at its end.
    """

    path: str
    tensors: tuple[Tensor, ...]
    ops: int


class Trials:
    """Compares subnets of a model with its masked self, always on the same inputs.

    Args:
        model: a copy in evaluation mode, whose weights may be changed.
        args: positional inputs.
        kwargs: keyword inputs.
        discovery: made from this very model.
        outputs: picks what the user needs from what the model returns.
        seed: of the random weights and inputs.

    Raises:
        ModelError: the model does not do the same at every call.
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
        self.model = model
        self.discovery = discovery
        self.outputs = outputs
        self.owners = {atom: name for name, atom in discovery.atoms.items()}
        self.became: Tie = {}
        self._sizes: tuple[tuple[object, ...], SizesByModule] | None = None
        self.tolerance = TOLERANCES.get(discovery.trace.precision, TOLERANCES[torch.float32])
        self.gradients = {name: SharedGradient(p) for name, p in model.named_parameters()}
        generator = torch.Generator().manual_seed(seed)
        layouts = discovery.space.layouts
        elastic = {n for n, e in layouts.items() if any(map(any, map(extents.axes_of, e.extents)))}
        self.alike = randomise_constant_weights(model, generator, elastic)
        self.gains = [1.0, 2**0.5]  # that `rouse` has yet to try
        self.notes = _precision_note(discovery.trace.precision)
        self.args, self.kwargs = tuple(args), dict(kwargs)
        self._settle(map_tensors((self.args, self.kwargs), Freshen(generator)))
        self.follows: Follows = {}
        self.whole: list[Tensor] = []
        self._refuse_changing()

    # -- runs ---------------------------------------------------------------------------------

    def check(self, space: Space, counts: Counts) -> Verdict:
        """Compare the subnet for some counts with the masked full model."""
        try:
            reference = self.tensors(self.reference(space, counts))
        except OtherPath as other:
            text = f"the code takes another path when units are cut (it runs {other.args[0]!r})"
            return Verdict(False, float("inf"), text)
        except Exception as error:  # noqa: BLE001  (the user's code runs here)
            return Verdict(False, float("inf"), f"masked units are refused: {_short(error)}")
        if finite(self.whole) and not finite(reference):
            return Verdict(False, float("inf"), "the output is not finite when units are cut")
        noticed = moved(reference, self.whole, self.tolerance)
        try:
            found = self.tensors(run(self.subnet(space, counts), self.args, self.kwargs, None))
        except Exception as error:  # noqa: BLE001  (the user's code runs here)
            return Verdict(False, float("inf"), f"the code needs the full size: {_short(error)}")
        verdict = compare(found, reference, self.tolerance)
        if not verdict.holds and verdict.difference < float("inf"):
            verdict = self._check_following(space, counts, found) or verdict
        return Verdict(verdict.holds, verdict.difference, verdict.reason, noticed)

    def _check_following(
        self, space: Space, counts: Counts, found: Sequence[Tensor]
    ) -> Verdict | None:
        """Compare again with the numbers that the subnet takes from kept sizes, if there are any.

        They stay noted where the comparison holds.
        """
        before = self.follows
        if not self.follow(space, counts):
            return None
        verdict = compare(found, self.tensors(self.reference(space, counts)), self.tolerance)
        if not verdict.holds:
            self.follows = before
        return verdict

    def follow(self, space: Space, counts: Counts) -> bool:
        """Let the masked model's numbers follow the kept sizes where the subnet's code does.

        Returns whether there is anything new.
        """
        scales, by_atom = self.discovery.trace.scales, self._by_atom(counts)
        if not can_follow(scales, by_atom):
            return False
        numbers = Numbers()
        with contextlib.suppress(Exception):  # what was noted before it failed tells
            run(self.subnet(space, counts), self.args, self.kwargs, numbers)
        more = {**self.follows, **followed(scales, numbers, by_atom)}
        if more == self.follows:
            return False
        self.follows = more
        return True

    def keeps_under(self, space: Space, orders: Mapping[str, Sequence[int]]) -> bool:
        """Return whether the full net computes the same with its units in another order."""
        found = self.tensors(run_permuted(self.model, self.args, self.kwargs, space, orders))
        return compare(found, self.whole, self.tolerance).holds

    def subnet(self, space: Space, counts: Counts) -> nn.Module:
        """Return the subnet for some counts, made by the code that makes the user's."""
        return build(
            self.model, space, counts, private=frozenset(), gradients=self.gradients
        ).eval()

    def training_error(self, space: Space, counts: Counts) -> str:
        """Return why the subnet for some counts does not run in training mode; empty if it does."""
        # A copy that shares nothing: statistics of the model stay what they are.
        return self._training_error(pack(self.subnet(space, counts)))

    @functools.cached_property
    def trains(self) -> bool:
        """Whether the full model runs in training mode."""
        return not self._training_error(duplicate(self.model))

    def strange_in_training(self, space: Space, name: str) -> str:
        """Return what blocks of a depth axis do in training that their passages do not say."""
        strange = self._strange & {block.module for block in space.blocks if block.axis == name}
        return f"in training, {min(strange)} returns something else" if strange else ""

    @functools.cached_property
    def _strange(self) -> set[str]:
        """The blocks that return other things in training than a subnet without them would."""
        strange: set[str] = set()
        blocks = self.discovery.space.blocks
        before = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        handles = [
            self.model.get_submodule(block.module).register_forward_hook(
                lambda _, args, kwargs, out, block=block: (
                    None
                    if passages.fits(block.passage, args, kwargs, out)
                    else strange.add(block.module)
                ),
                with_kwargs=True,
            )
            for block in blocks
        ]
        try:
            self._training_error(self.model)
        finally:
            for handle in handles:
                handle.remove()
            self.model.eval()
            with torch.no_grad():
                for buffer, value in before:
                    buffer.copy_(value)
        return strange

    def depth_error(self, space: Space, name: str) -> str:
        """Return why the blocks of a depth axis cannot be passed by in training; "" if they can."""
        if self._rehearsal is None:
            return ""
        counts = {name: space.axes[name].counts[0]}
        try:
            return self._rehearsal.error(space, counts, pack(self.subnet(space, counts)))
        except OtherPath:
            return ""  # the training run changes from call to call
        except Exception as error:  # noqa: BLE001  (the user's code runs here)
            return f"in training, a subnet without its blocks does not run: {_short(error)}"

    @functools.cached_property
    def _rehearsal(self) -> Rehearsal | None:
        """The model's training run; None if it does not run so."""
        with contextlib.suppress(Exception):  # the user's code runs here
            return Rehearsal(self.model, self._training_inputs(), self.tensors, self.tolerance)
        return None

    def _training_inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return at least two examples: norms want that many in training."""
        given = self.args, self.kwargs
        args, kwargs = with_batch(given, 2) if batch_of(given) == 1 else given
        return args, kwargs

    def _training_error(self, module: nn.Module) -> str:
        args, kwargs = self._training_inputs()
        devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
        try:
            with torch.random.fork_rng(devices=list(devices)):
                run(module.train(), args, kwargs, None)
        except Exception as error:  # noqa: BLE001  (the user's code runs here)
            return _short(error)
        return ""

    def reference(self, space: Space, counts: Counts) -> Any:
        """Return what the masked full model returns."""
        passed = dropped(self.discovery.steps, space, counts)
        mode = Replayer(self.discovery.trace, self._by_atom(counts), passed, self.follows)
        return run_masked(self.model, self.args, self.kwargs, space, counts, mode)

    def calls(self, space: Space, counts: Counts) -> list[Call]:
        """Return what every module returns in the masked full model, cut to the kept units."""
        found: list[tuple[str, list[Tensor]]] = []
        with returned(self.model, lambda path, tensors: found.append((path, tensors))):
            self.reference(space, counts)
        by_atom = self._by_atom(counts)
        absent, passed = space.absent(counts), {block.module for block in space.passed(counts)}
        calls = []
        trace = self.discovery.trace
        for (path, expressions), (_, tensors), ops in zip(
            trace.calls, found, trace.ends, strict=True
        ):
            if absent(path) and path not in passed:
                continue  # it does not run in the subnet
            pairs = zip(tensors, expressions, strict=True)
            calls.append(Call(path, tuple(cut(t, e, by_atom) for t, e in pairs), ops))
        return calls

    def shapes_after(self, ops: int, counts: Counts) -> Iterator[tuple[str, list[torch.Size]]]:
        """Yield name and kept shapes of the traced ops from a number on."""
        by_atom, trace = self._by_atom(counts), self.discovery.trace
        for name, outputs in zip(trace.names[ops:], trace.shapes[ops:], strict=True):
            yield name, [torch.Size(algebra.count(e, by_atom) for e in dims) for dims in outputs]

    def tensors(self, value: Any) -> list[Tensor]:
        """Return copies of the tensors that the user needs of what the model returned."""
        return [leaf.detach().clone() for leaf in tensors_in(self.outputs(value))]

    # -- which atom is which axis now -----------------------------------------------------------

    def let_go(self, name: str) -> None:
        """Forget an axis that is frozen now."""
        self.owners = {atom: owner for atom, owner in self.owners.items() if owner != name}

    def merge(self, group: Sequence[str]) -> None:
        """Let the first axis of a group own the units of all of them."""
        owners = self.owners.items()
        self.owners = {atom: group[0] if name in group else name for atom, name in owners}

    def bind(self, tie: Tie) -> Callable[[], None]:
        """Let axes become what a tie says; return a function that undoes it."""
        owners, became, bound = self.owners, self.became, []
        whole = {name: atom for atom, name in owners.items()}
        self.owners, self.became = dict(owners), {**became, **tie}
        for atom, name in owners.items():
            target = tie.get(name)
            if isinstance(target, Along):
                self.owners[atom] = target.axis
            elif target is not None:
                del self.owners[atom]
                atom.bound = expression_of(target, whole)
                bound.append(atom)

        def undo() -> None:
            self.owners, self.became = owners, became
            for atom in bound:
                atom.bound = None

        return undo

    def current(self, extent: Extent) -> Extent:
        """Return an extent of the discovery in terms of the axes as they are now."""

        def rename(at: Along) -> Extent:
            atom = self.discovery.atoms[at.axis]
            owner = self.owners.get(atom)
            if owner is None and atom.bound is not None:
                return self.current(self.became[at.axis])
            return Along(owner, at.size) if owner else Fixed(at.size)

        return extents.substitute(extent, rename)

    def sizes(self, space: Space) -> SizesByModule:
        """Return the sizes that each module's code can have asked for (see `axes.sizes`)."""
        made_for = space.layouts, self.owners, self.became
        if self._sizes is None or any(map(operator.is_not, made_for, self._sizes[0])):
            noted = dict.fromkeys((at.module, e) for at, e in self.discovery.sizes)
            current = ((module, self.current(extent)) for module, extent in noted)
            self._sizes = made_for, sizes_by_module(current, space.layouts)
        return self._sizes[1]

    def _by_atom(self, counts: Counts) -> dict[Atom, int]:
        return {atom: counts[name] for atom, name in self.owners.items() if name in counts}

    # -- preparation ----------------------------------------------------------------------------

    def _settle(self, fresh: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        """Choose inputs and weights with which the model takes the path that was traced."""
        given = self.args, self.kwargs
        while True:
            self.args, self.kwargs = fresh
            if self._settle_on_inputs():
                return
            self.args, self.kwargs = given
            other = self._settle_on_example()
            if other is None:
                self.notes += (
                    "proven on the example inputs, because random ones do not suit the model",
                )
                return
            if not self.alike:
                raise ModelError(
                    "the model must run the same ops at every call with the same inputs, but it "
                    f"ran {other.args[0]!r} where it ran another op before; take out what changes "
                    "between calls (counters, caches, random choices)"
                ) from other
            with torch.no_grad():
                for tensor, value in self.alike:
                    tensor.fill_(value)
            self.alike = []
            self.notes += (
                "proven on the weights as they are, because the code branches on their values",
            )

    def _settle_on_inputs(self) -> bool:
        """Return whether the model takes the random inputs along the path that was traced."""
        paths: list[str] = []  # of two branches with the same ops, the modules tell them apart
        try:
            with lively_norms(self.model):
                run(self.model, self.args, self.kwargs, None)
            with returned(self.model, lambda path, _: paths.append(path)):
                value = run(self.model, self.args, self.kwargs, Replayer(self.discovery.trace, {}))
        except Exception:  # noqa: BLE001  (the user's code runs here)
            return False
        same = paths == [path for path, _ in self.discovery.trace.calls]
        return same and finite(self.tensors(value))

    def rouse(self) -> bool:
        """Let the model's layers pass signals on undiminished, where outputs show too little.

        Returns whether weights were changed; each call tries a stronger gain.
        """
        while self.gains:
            changed = strengthen_weights(self.model, self.gains.pop(0))
            if not changed:
                continue
            suits = self._settle_on_inputs()
            if not suits:  # it takes another path now, or overflows
                with torch.no_grad():
                    for tensor, factor in changed:
                        tensor.div_(factor)
                self._settle_on_inputs()
            self.whole = self.tensors(run(self.model, self.args, self.kwargs, None))
            if suits:
                return True
        return False

    def _settle_on_example(self) -> OtherPath | None:
        """Return how the model leaves the path on the example inputs; None if it does not."""
        try:
            with lively_norms(self.model):
                run(self.model, self.args, self.kwargs, None)
            run(self.model, self.args, self.kwargs, Replayer(self.discovery.trace, {}))
        except OtherPath as other:
            return other
        return None

    def _refuse_changing(self) -> None:
        self.whole = self.tensors(run(self.model, self.args, self.kwargs, None))
        if any(bool(tensor.isnan().any()) for tensor in self.whole):
            raise ModelError(
                f"{type(self.model).__name__} returns NaN on the example inputs, so nothing can be "
                "proven; give inputs and weights on which the outputs are numbers"
            )
        again = self.tensors(run(self.model, self.args, self.kwargs, None))
        if not compare(again, self.whole, self.tolerance).holds:
            raise ModelError(
                f"{type(self.model).__name__} returns something else when it is called again with "
                "the same inputs in evaluation mode, so nothing can be proven; switch its random "
                "or changing parts off in evaluation mode"
            )


def _precision_note(precision: torch.dtype) -> tuple[str, ...]:
    if precision is torch.float64:
        return ()
    exact = TOLERANCES.get(precision, TOLERANCES[torch.float32]).exact
    name = str(precision).removeprefix("torch.")
    return (f"proven to {exact:.0e}, not to 1e-09: the model computes in {name} inside",)


def _short(error: Exception) -> str:
    text = str(error).strip().splitlines()
    told = f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__
    line = line_of(error)
    return f"{told} ({line})" if line else told
