"""The proof: a cut subnet computes exactly what the full model with masked units computes.

The subnet is made by the very code that makes the user's subnets, on fresh inputs, for each axis
(axes that play one role in layers of one class are cut together, and each must show in the
gradients), for the narrowest spec and for random joint cuts. Its outputs are compared with the full
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
from nestling.axes.influence import influential
from nestling.axes.preparation import double
from nestling.axes.repair import first_wrong, repaired
from nestling.axes.residual import noted
from nestling.axes.rewriting import rewritten
from nestling.axes.ties import Role, Tie, TieRole, members, proposals, roles_of, tie_role
from nestling.axes.trials import Trials
from nestling.extent import Counts
from nestling.spec import Axis, Frozen, Space

__all__ = ["JOINT", "Prover", "double"]

ALIGNED = frozenset(("_grouped_mm", "_scaled_mm", "_scaled_grouped_mm"))
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
        # Axes of which only the allowed counts suit the code: some kernels want aligned rows.
        aligned = not ALIGNED.isdisjoint(discovery.trace.names)
        self.coarse = set(discovery.space.axes) if aligned else set()
        self.roles: dict[str, Role] = {}  # of all axes, as they were found
        self.ties: dict[Role, TieRole | None] = {}  # of proven axes: the tie that they needed
        self.alike: list[str] = []  # axes of such roles
        self.last: Tie = {}

    def prove(self, space: Space) -> Space:
        """Return the space with what was proven: repaired, tied, or frozen where it must be."""
        space = replace(space, notes=(*space.notes, *self.trials.notes))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the model says about masked units is no news
            space = self._settle_alike(self._settle_each(space))
            for number in range(JOINT):
                space = self._settle_joint(space, narrowest=number == 0)
            space = self._settle_order(self._settle_training(space))
        return noted(self.trials.discovery.steps, space)

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

    # -- one axis of each role ----------------------------------------------------------------

    def _settle_each(self, space: Space) -> Space:
        """Settle depth axes, and the first axis of every role; note the axes that are like it."""
        self.roles = roles_of(space, self.trials.model)
        for name in list(space.axes):
            if name not in space.axes:
                continue
            if space.axes[name].kind == "depth":
                space = self._settle_rehearsed(self._settle_depth(space, name), name)
            elif self.roles[name] in self.ties:
                self.alike.append(name)
            else:
                before = space
                space = self._settle_fully(space, name)
                self._learn(before, space, name)
        return space

    def _settle_fully(self, space: Space, name: str) -> Space:
        space = self._settle(space, name)
        return self._settle_one_unit(space, name) if name in space.axes else space

    def _learn(self, before: Space, after: Space, name: str) -> None:
        """Remember the role of an axis that was proven, and of those that are tied to it now."""
        if after.axes.get(name) == before.axes[name]:
            gone = [other for other in before.axes if other not in after.axes]
            self.ties.update((self.roles[other], None) for other in gone)
            self.ties[self.roles[name]] = tie_role(self.last, self.roles) if gone else None

    def _settle_alike(self, space: Space) -> Space:
        """Prove axes that are like proven ones together; one by one where that does not hold."""
        before, undos = space, []
        for name in self.alike:
            needed = self.ties[self.roles[name]]
            if name in space.axes and needed is not None:
                some = itertools.islice(proposals(space, name), TIES)
                tie = next((t for t in some if tie_role(t, self.roles) == needed), None)
                if tie is not None:
                    undos.append(self.trials.bind(tie))
                    note = f"tied, because the code cuts them together: {', '.join(members(tie))}"
                    space = space.become(tie)
                    space = replace(space, notes=(*space.notes, note))
        together = self._together(space)
        if together is None:
            for undo in reversed(undos):
                undo()
            space, doubtful = before, self.alike
        else:
            left = [name for name in self.alike if name in together.axes]
            space, shown = together, influential(self.trials, together, left)
            doubtful = [name for name in left if name not in shown]
        for name in doubtful:
            if name in space.axes:
                space = self._settle_fully(space, name)
        return space

    def _together(self, space: Space) -> Space | None:
        """Return the space, repaired, if cuts of all widths at once hold; None if they do not."""
        names = [name for name, axis in space.axes.items() if axis.kind != "depth"]
        if not any(name in names for name in self.alike):
            return space
        better: Space | None = space
        for number in range(JOINT):
            some = {name: self._any(space.axes[name]) for name in names}
            counts = some if number else {name: space.axes[name].counts[0] for name in names}
            if better is not None and not self.check(better, counts).holds:
                better = self._repaired(better, counts)
        return better

    # -- one axis -----------------------------------------------------------------------------

    def _settle(self, space: Space, name: str) -> Space:
        verdict, counts = self._look(space, name)
        better = space if verdict.holds else self._amended(space, name, counts)
        if verdict.holds and not verdict.noticed:
            if self.trials.rouse():
                return self._settle(space, name)
            reason = "cutting it does not change the output, so nothing can be proven"
            return self._frozen(space, name, Verdict(False, 0.0, reason), counts)
        return better if better is not None else self._frozen(space, name, verdict, counts)

    def _look(self, space: Space, name: str) -> tuple[Verdict, Counts]:
        """Cut an axis to some counts, until the output shows it or it fails."""
        axis = space.axes[name]
        least = min(axis.counts[0], axis.size - 1)
        tried = (self._some(axis, max(least, 2)), least, *(() if name in self.coarse else (1,)))
        for count in dict.fromkeys(tried):
            verdict = self.check(space, {name: count})
            if verdict.noticed or not verdict.holds:
                break
        return verdict, {name: count}

    def _amended(self, space: Space, name: str, counts: Counts) -> Space | None:
        """Repair the space so that a cut works, or tie axes."""
        return self._repaired(space, counts) or self._tied(space, name, counts)

    def _settle_one_unit(self, space: Space, name: str) -> Space:
        """Forbid a single unit where it does not work: it is squeezed away, or has no variance."""
        axis = space.axes[name]
        if axis.counts[0] != 1 or len(axis.counts) < 3 or self.check(space, {name: 1}).holds:
            return space
        note = f"{name}: a single unit does not work, so at least {axis.counts[1]} are kept"
        axes = {**space.axes, name: replace(axis, counts=axis.counts[1:])}
        return replace(space, axes=axes, notes=(*space.notes, note))

    def _settle_depth(self, space: Space, name: str) -> Space:
        """Allow the counts from which on blocks can be passed by; freeze the axis if none can."""
        axis = space.axes[name]
        strange = self.trials.strange_in_training(space, name)
        if strange:
            return self._frozen(space, name, Verdict(False, 0.0, strange), {})
        below = axis.counts[-2::-1]  # from the smallest cut to the largest
        if not below:
            return space

        def verdict(number: int) -> Verdict:
            return self.check(space, {name: below[number - 1]})

        numbers = range(1, len(below))
        tried = (*self.random.sample(numbers, min(1, len(numbers))), len(below))
        failing = next((number for number in tried if not verdict(number).holds), None)
        if failing is None:
            if verdict(len(below)).noticed:
                return space
            if self.trials.rouse():
                return self._settle_depth(space, name)
            reason = "passing blocks by does not change the output, so nothing can be proven"
            return self._frozen(space, name, Verdict(False, 0.0, reason), {})
        last = _first_failing(failing, lambda number: verdict(number).holds)
        if last < 2:
            cut = {name: below[0]}
            return self._frozen(space, name, self.check(space, cut), cut)
        counts = axis.counts[-last:]
        why = verdict(last).reason
        note = f"{name}: at least {counts[0]} blocks are kept, because with fewer {why}"
        axes = {**space.axes, name: replace(axis, counts=counts)}
        return replace(space, axes=axes, notes=(*space.notes, note))

    def _settle_rehearsed(self, space: Space, name: str) -> Space:
        """Freeze a depth axis whose blocks cannot be passed by in training."""
        error = self.trials.depth_error(space, name) if name in space.axes else ""
        return self._frozen(space, name, Verdict(False, 0.0, error), {}) if error else space

    def _some(self, axis: Axis, least: int) -> int:
        """Return a random count that cuts something; on the grid of allowed counts or off it."""
        if axis.name in self.coarse:
            return self.random.choice(axis.counts[:-1] or axis.counts)
        return self.random.randrange(min(least, axis.size - 1), axis.size)

    def _any(self, axis: Axis) -> int:
        """Return a random count from the least allowed one on, or the full size."""
        if axis.name in self.coarse:
            return self.random.choice(axis.counts)
        return self.random.randint(min(axis.counts[0], axis.size - 1), axis.size)

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
                self.last = tie
                note = f"tied, because the code cuts them together: {', '.join(members(tie))}"
                return replace(trial, notes=(*trial.notes, note))
            undo()
        return None

    def _cuts_of_tie(self, space: Space, tie: Tie, counts: Counts) -> list[Counts]:
        """Return cuts of the axes that a tie leaves: as given, the least, and one unit less."""
        left = dict.fromkeys(a for extent in tie.values() for a in extents.axes_of(extent))
        cuts: list[dict[str, int]] = [{}, {}, {}]
        for name in left:
            axis = space.axes[name]
            most = axis.counts[-2:][0] if not self.coarse.isdisjoint(counts) else axis.size - 1
            given = counts.get(name, next(iter(counts.values())))
            for cut, count in zip(cuts, (given, axis.counts[0], most), strict=True):
                cut[name] = max(1, min(count, axis.size - 1))
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
            some = {name: self._any(space.axes[name]) for name in names}
            counts = least if narrowest else some
            if self.check(space, counts).holds:
                return space
            better = self._repaired(space, counts)
            space = better if better is not None else self._blame(space, names, counts)
        return space

    def _blame(self, space: Space, names: Sequence[str], counts: Counts) -> Space:
        """Freeze the axis whose cut, added to the cuts before it, first breaks the equality.

        If that cut was not an allowed one, the axis is tried with allowed ones only from now on.
        """

        def holds(number: int) -> bool:
            return self.check(space, {name: counts[name] for name in names[:number]}).holds

        last = _first_failing(len(names), holds)
        name = names[last - 1]
        if counts[name] not in space.axes[name].counts:
            self.coarse.add(name)  # only the allowed counts then
            return space
        part = {name: counts[name] for name in names[:last]}
        return self._frozen(space, name, self.check(space, part), part)

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
