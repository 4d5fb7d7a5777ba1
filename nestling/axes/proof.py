"""The proof: a cut subnet computes exactly what the full model with masked units computes.

For each axis, for the narrowest spec and for random joint cuts, the subnet is made by the very code
that makes the user's subnets, on fresh inputs, and its outputs are compared with those of the full
model whose cut units are set to zero. Norms and reductions over a cut dimension are evaluated over
the kept units. Where they differ, the proof looks for the size attribute that the code reads, then
for axes that the code cuts together; otherwise the axis is frozen, with the reason. At the end, the
narrowest subnet must run in training mode too, where the full model does, and the units of all axes
are shuffled: no output may change.
"""

from __future__ import annotations

import functools
import itertools
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from nestling import extent as extents
from nestling.axes.comparison import Verdict
from nestling.axes.discovery import Discovery
from nestling.axes.preparation import double
from nestling.axes.repair import first_wrong, repaired
from nestling.axes.ties import Tie, members, proposals
from nestling.axes.rewriting import rewritten
from nestling.axes.trials import Trials
from nestling.extent import Counts
from nestling.spec import Frozen, Space

__all__ = ["JOINT", "Prover", "double"]

TIES = 12  # ties that are tried for one axis
JOINT = 3  # joint cuts: the narrowest spec, and random ones


class Prover:
    """Proves the axes of a discovery on a copy of the model.

    Args:
        model: a copy in float64 (see `double`) and evaluation mode, which the prover may change.
        args: positional inputs.
        kwargs: keyword inputs.
        discovery: made from this very model.
        outputs: picks what the user needs from what the model returns.
        seed: of the random weights, inputs and cuts.

    Raises:
        ModelError: the model does not do the same at every call.

    Example:
        >>> wide, (args, kwargs) = double(model, ((x,), {}))
        >>> found = discover(wide, args, kwargs)
        >>> space = Prover(wide, args, kwargs, found, lambda out: out).prove(found.space)
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
        self.trials = Trials(model, args, kwargs, discovery, outputs, seed)

    def prove(self, space: Space) -> Space:
        """Return the space with what was proven: repaired, tied, or frozen where it must be."""
        space = replace(space, notes=(*space.notes, *self.trials.notes))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the model says about masked units is no news
            for name in list(space.axes):
                if name in space.axes:
                    space = self._settle(space, name)
                if name in space.axes:
                    space = self._settle_one_unit(space, name)
            for number in range(JOINT):
                space = self._settle_joint(space, narrowest=number == 0)
            return self._settle_order(self._settle_training(space))

    def check(self, space: Space, counts: Counts) -> Verdict:
        """Compare the subnet for some counts with the masked full model."""
        return self.trials.check(space, counts)

    def let_go(self, name: str) -> None:
        """Forget an axis that is frozen now."""
        self.trials.let_go(name)

    def tie(self, space: Space, group: Sequence[str]) -> Space:
        """Return the space with the axes of a group made one."""
        tied = space.tied(group)
        self.trials.merge(group)
        return tied

    # -- one axis -----------------------------------------------------------------------------

    def _settle(self, space: Space, name: str) -> Space:
        axis = space.axes[name]
        verdict = Verdict(True, 0.0, noticed=False)
        least = min(axis.counts[0], axis.size - 1)
        for count in dict.fromkeys((self._some(max(least, 2), axis.size), least, 1)):
            counts = {name: count}
            verdict = self.check(space, counts)
            if verdict.noticed or not verdict.holds:
                break
        if verdict.holds and not verdict.noticed:
            reason = "cutting it does not change the output, so nothing can be proven"
            return self._frozen(space, name, Verdict(False, 0.0, reason), counts)
        if verdict.holds:
            return space
        better = self._repaired(space, counts) or self._tied(space, name, counts)
        return better if better is not None else self._frozen(space, name, verdict, counts)

    def _settle_one_unit(self, space: Space, name: str) -> Space:
        """Forbid a single unit where it does not work: it is squeezed away, or has no variance."""
        axis = space.axes[name]
        if axis.counts[0] != 1 or len(axis.counts) < 3 or self.check(space, {name: 1}).holds:
            return space
        note = f"{name}: a single unit does not work, so at least {axis.counts[1]} are kept"
        axes = {**space.axes, name: replace(axis, counts=axis.counts[1:])}
        return replace(space, axes=axes, notes=(*space.notes, note))

    def _some(self, least: int, size: int) -> int:
        """Return a random count that cuts something; on the grid of allowed counts or off it."""
        return self.random.randrange(min(least, size - 1), size)

    def _repaired(self, space: Space, counts: Counts) -> Space | None:
        """Find the attributes that the code reads, or else the numbers that it holds."""
        for way in (repaired, rewritten):
            try:
                better = way(self.trials, space, counts)
            except Exception:  # noqa: BLE001  (the masked model may fail in the user's code)
                continue
            if better is not None:
                return better
        return None

    def _tied(self, space: Space, name: str, counts: Counts) -> Space | None:
        """Cut together what the code cuts together (see `nestling.axes.ties`)."""
        for tie in itertools.islice(proposals(space, name), TIES):
            undo = self.trials.bind(tie)
            trial: Space | None = space.become(tie)
            for cut in self._cuts_of_tie(space, tie, counts):
                if trial is not None and not self.check(trial, cut).holds:
                    trial = self._repaired(trial, cut)
            if trial is not None:
                note = f"tied, because the code cuts them together: {', '.join(members(tie))}"
                return replace(trial, notes=(*trial.notes, note))
            undo()
        return None

    def _cuts_of_tie(self, space: Space, tie: Tie, counts: Counts) -> list[Counts]:
        """Return cuts of the axes that a tie leaves: as given, the least, and one unit less."""
        left = dict.fromkeys(a for extent in tie.values() for a in extents.axes_of(extent))
        cuts: list[dict[str, int]] = [{}, {}, {}]
        for axis in left:
            size, least = space.axes[axis].size, space.axes[axis].counts[0]
            given = counts.get(axis, next(iter(counts.values())))
            for cut, count in zip(cuts, (min(given, size - 1), least, size - 1), strict=True):
                cut[axis] = max(1, min(count, size - 1))
        return list({tuple(cut.items()): cut for cut in cuts}.values())

    def _frozen(self, space: Space, name: str, verdict: Verdict, counts: Counts) -> Space:
        module = self._guilty_module(space, counts) if verdict.difference else ""
        reason = verdict.reason
        if verdict.difference == float("inf"):
            owner = type(self.trials.model.get_submodule(module)).__name__
            reason = f"in {module or 'the model'} ({owner}), {reason}"
        self.let_go(name)
        return space.without(name, Frozen("", 0, 0, "", module, reason))

    def _guilty_module(self, space: Space, counts: Counts) -> str:
        try:
            expected = self.trials.calls(space, counts)
        except Exception:  # noqa: BLE001  (the masked model may fail in the user's code)
            return ""
        return first_wrong(self.trials, space, counts, expected)[1]

    # -- all axes together --------------------------------------------------------------------

    def _settle_joint(self, space: Space, narrowest: bool) -> Space:
        while space.axes:
            names = self.random.sample(list(space.axes), len(space.axes))
            least = {name: space.axes[name].counts[0] for name in names}
            some = {
                name: self.random.randint(min(least[name], space.axes[name].size - 1), size)
                for name, size in ((name, space.axes[name].size) for name in names)
            }
            counts = least if narrowest else some
            if self.check(space, counts).holds:
                return space
            better = self._repaired(space, counts)
            space = better if better is not None else self._blame(space, names, counts)
        return space

    def _blame(self, space: Space, names: Sequence[str], counts: Counts) -> Space:
        """Freeze the axis whose cut, added to the cuts before it, first breaks the equality."""

        def holds(number: int) -> bool:
            return self.check(space, {name: counts[name] for name in names[:number]}).holds

        last = _first_failing(len(names), holds)
        part = {name: counts[name] for name in names[:last]}
        return self._frozen(space, names[last - 1], self.check(space, part), part)

    def _settle_training(self, space: Space) -> Space:
        """Freeze the axes that code needs whole which runs in training only (auxiliary heads)."""
        while space.axes:
            names = list(space.axes)
            narrowest = functools.partial(self._narrowest, space, names)
            if not self.trials.training_error(space, narrowest(len(names))):
                return space
            if not self.trials.trains:
                return space  # the model itself does not run so, on these inputs

            def trains(number: int, space: Space = space, cut: Any = narrowest) -> bool:
                return not self.trials.training_error(space, cut(number))

            last = _first_failing(len(names), trains)
            error = self.trials.training_error(space, narrowest(last))
            self.let_go(names[last - 1])
            why = Frozen("", 0, 0, "", "", f"the training run needs its full size: {error}")
            space = space.without(names[last - 1], why)
        return space

    def _narrowest(self, space: Space, names: Sequence[str], number: int) -> Counts:
        """Return the least counts of the first axes that are named."""
        return {name: space.axes[name].counts[0] for name in names[:number]}

    def _settle_order(self, space: Space) -> Space:
        """Freeze the axes whose units cannot be put into another order."""
        while space.axes:
            names = [name for name, axis in space.axes.items() if not axis.ordered]
            if not names:
                return space
            sizes = [space.axes[name].size for name in names]
            shuffled = [self.random.sample(range(size), size) for size in sizes]
            orders = dict(zip(names, shuffled, strict=True))
            keeps = functools.partial(self._keeps_under, space, orders)
            if keeps(len(names)):
                return space
            name = names[_first_failing(len(names), keeps) - 1]
            self.let_go(name)
            why = Frozen("", 0, 0, "", "", "the order of its units matters to the code")
            space = space.without(name, why)
        return space

    def _keeps_under(self, space: Space, orders: Mapping[str, Sequence[int]], number: int) -> bool:
        some = dict(itertools.islice(orders.items(), number))
        return self.trials.keeps_under(space, some)


def _first_failing(number: int, holds: Callable[[int], bool]) -> int:
    """Return the least n for which `holds(n)` is false; it holds at 0 and not at `number`."""
    low, high = 0, number
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return high
