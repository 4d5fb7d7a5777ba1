"""Trials: one model, one set of inputs, and any number of comparisons of subnet and reference."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from nestling import extent as extents
from nestling.axes.comparison import TOLERANCES, Verdict, compare, finite, moved
from nestling.axes.discovery import Discovery
from nestling.axes.expression import Atom
from nestling.axes.preparation import (
    Freshen,
    batch_of,
    lively_norms,
    randomise_constant_weights,
    with_batch,
)
from nestling.axes.reference import OtherPath, Replayer, cut, returned, run_masked, run_permuted
from nestling.axes.residual import dropped
from nestling.axes.scales import Follows, Numbers, can_follow, followed
from nestling.axes.structure import tensors_in
from nestling.axes.ties import Tie, expression_of
from nestling.axes.tracer import run
from nestling.errors import ModelError
from nestling.extent import Along, Counts, Extent, Fixed
from nestling.spec import Space
from nestling.subnet import SharedGradient, build, pack


@dataclass(frozen=True)
class Call:
    """One module call of a reference run: its path and what it returned, cut to the kept units."""

    path: str
    tensors: tuple[Tensor, ...]


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
        self.tolerance = TOLERANCES.get(discovery.trace.precision, TOLERANCES[torch.float32])
        self.gradients = {name: SharedGradient(p) for name, p in model.named_parameters()}
        generator = torch.Generator().manual_seed(seed)
        randomise_constant_weights(model, generator)
        self.notes = _precision_note(discovery.trace.precision)
        self.args, self.kwargs = tuple(args), dict(kwargs)
        given = self.args, self.kwargs
        self.args, self.kwargs = tree_map(Freshen(generator), given)
        if not self._settle_on_inputs():
            self.args, self.kwargs = given
            self.notes += (
                "proven on the example inputs, because random ones do not suit the model",
            )
            self._settle_on_example()
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
        try:
            run(self.subnet(space, counts), self.args, self.kwargs, numbers)
        except Exception:  # noqa: BLE001  (the user's code runs here)
            pass  # what was noted before it still tells
        more = {**self.follows, **followed(scales, numbers.found, by_atom)}
        new = more != self.follows
        self.follows = more
        return new

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
        return not self._training_error(copy.deepcopy(self.model))

    def _training_error(self, module: nn.Module) -> str:
        given = self.args, self.kwargs
        args, kwargs = with_batch(given, 2) if batch_of(given) == 1 else given
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
        for (path, expressions), (_, tensors) in zip(
            self.discovery.trace.calls, found, strict=True
        ):
            if absent(path) and path not in passed:
                continue  # it does not run in the subnet
            pairs = zip(tensors, expressions, strict=True)
            calls.append(Call(path, tuple(cut(t, e, by_atom) for t, e in pairs)))
        return calls

    def tensors(self, value: Any) -> list[Tensor]:
        """Return copies of the tensors that the user needs of what the model returned."""
        return [leaf.detach().clone() for leaf in tensors_in(self.outputs(value))]

    # -- which atom is which axis now -----------------------------------------------------------

    def let_go(self, name: str) -> None:
        """Forget an axis that is frozen now."""
        self.owners = {atom: owner for atom, owner in self.owners.items() if owner != name}

    def merge(self, group: Sequence[str]) -> None:
        """Let the first axis of a group own the units of all of them."""
        for atom, owner in self.owners.items():
            if owner in group:
                self.owners[atom] = group[0]

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

    def _by_atom(self, counts: Counts) -> dict[Atom, int]:
        return {atom: counts[name] for atom, name in self.owners.items() if name in counts}

    # -- preparation ----------------------------------------------------------------------------

    def _settle_on_inputs(self) -> bool:
        """Return whether the model takes the random inputs along the path that was traced."""
        try:
            with lively_norms(self.model):
                run(self.model, self.args, self.kwargs, None)
            value = run(self.model, self.args, self.kwargs, Replayer(self.discovery.trace, {}))
        except Exception:  # noqa: BLE001  (the user's code runs here)
            return False
        return finite(self.tensors(value))

    def _settle_on_example(self) -> None:
        with lively_norms(self.model):
            run(self.model, self.args, self.kwargs, None)
        try:
            run(self.model, self.args, self.kwargs, Replayer(self.discovery.trace, {}))
        except OtherPath as other:
            raise ModelError(
                "the model must run the same ops at every call with the same inputs, but it ran "
                f"{other.args[0]!r} where it ran another op before; take out what changes between "
                "calls (counters, caches, random choices, branches on the values of weights)"
            ) from other

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
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__
