"""Clipped group lasso: a unit is worth how long its weights withstand a growing pull to zero.

The full net is trained with `loss + strength * sum_l sum_o min(||W_l[o]||, delta_l)`, where
`delta_l = clip * mean_o ||W_l[o]||` is taken as a constant: only units whose weights are short
already are pulled, so that the norms part into two humps. The pull grows during the run. Units are
ordered by the moment at which they fell; each time that the units left cost no more than one of the
targets, their counts are noted: paper A's path of subnets along one run.

The bound must reach the norms. They begin nearly alike, so with `clip` at 0.3 and below nothing is
pulled in a short run, whatever the strength; at 1 the shorter half is.

Source: Yang, He, Cao and Fan, Non-uniform DNN Structured Subnets Sampling for Dynamic Inference
(DAC 2020). Its criterion is a norm whose distribution becomes two-humped; the rest is how we fill
it in.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from nestling.errors import ModelError
from nestling.objectives.sandwich import Loss, task_loss
from nestling.options import Checked, whole
from nestling.rankers.noise import check_trains
from nestling.spec import Axis, Space, Spec
from nestling.supernet import Supernet
from nestling.training import Run
from nestling.units import combined, loose_axes, makers

TARGETS = (0.75, 0.5, 0.25, 0.15)  # shares of the full net's MACs
STRENGTH = (5e-3, 4e-2)  # of the penalty, at the start and the end of the run
CLIP = 1.0  # of the mean norm: shorter ones are pulled
FALLEN = 0.05  # of the mean norm: shorter ones have fallen
TINY = 1e-12  # keeps the slope of a norm finite at zero


@dataclass(frozen=True)
class Path:
    """What a run of the clipped lasso leaves.

    Attributes:
        scores: axis name to one number a unit: below 1 the share of the run at which it fell, above
            1 how long its weights are at the end.
        specs: one for each target: the counts of the units that were left when it was crossed. They
            follow the order of the scores: the spec is a prefix after a reorder by them.
        crossed: whether the run crossed the target; where it did not, its spec has the units with
            the longest weights at the end.
    """

    scores: dict[str, Tensor]
    specs: tuple[Spec, ...]
    crossed: tuple[bool, ...]


def lasso(
    run: Run,
    *,
    strength: Annotated[tuple[float, float], Checked(check_pull, ("clip",))] = STRENGTH,
    clip: float = CLIP,
    epochs: Annotated[int | None, whole(1, none=True)] = None,
) -> Mapping[str, Tensor]:
    """Train the full net with a clipped group lasso and score units by when they fell.

    Args:
        run: whose net is trained.
        strength: of the penalty at the start and at the end of the training.
        clip: which share of a weight's mean norm a unit must be below to be pulled.
        epochs: of the training; the run's by default.

    Raises:
        ModelError: an option that is none, no epoch, or a training that diverged.
        DataError: the batches do not fit.
    """
    return path(run, (), strength=strength, clip=clip, epochs=epochs).scores


def path(
    run: Run,
    targets: Sequence[float] = TARGETS,
    *,
    strength: tuple[float, float] = STRENGTH,
    clip: float = CLIP,
    epochs: int | None = None,
) -> Path:
    """Train the full net with a clipped group lasso; return scores and a spec for each target.

    Args:
        run: whose net is trained.
        targets: shares of the full net's MACs, above 0 and below 1.
        strength: of the penalty at the start and at the end of the training.
        clip: which share of a weight's mean norm a unit must be below to be pulled.
        epochs: of the training; the run's by default.

    Raises:
        ModelError: an option that is none, no epoch, or a training that diverged.
        DataError: the batches do not fit.

    Example:
        >>> found = path(run, (0.5, 0.25))
        >>> run.reorder(rankers.orders(run.net.space, found.scores))
    """
    _check_targets(targets)
    check_pull(strength, clip)
    check_trains(run, epochs)
    falls = Falls(run.net.space, targets, run.device)

    def objective(net: Supernet) -> Iterator[tuple[nn.Module, Loss]]:
        subnet = net.pooled(net.space.full).train()
        norms = falls.norms(dict(subnet.named_parameters()))
        falls.note(norms, run.done)
        weight = strength[0] + (strength[1] - strength[0]) * run.done
        yield subnet, _penalised(run.loss or task_loss, norms, clip, weight)

    run.train_stage(objective, name="lasso ranking", extra=falls, epochs=epochs)
    crossed = tuple(bool(row[0] >= 0) for row in falls.widths)
    return Path(falls.scores(), falls.specs(), crossed)


def kept(run: Run, targets: Sequence[float], **options: Any) -> Path:
    """Return what `path` returns; a resumed run has it from its checkpoint.

    Args:
        run: of the method that needs the path.
        targets: as for `path`.
        **options: as for `path`.
    """
    axes = list(run.net.space.axes)

    def make() -> dict[str, Tensor]:
        found = path(run, targets, **options)
        counts = [[spec[name] for name in axes] for spec in found.specs]
        scores = {f"scores/{name}": score for name, score in found.scores.items()}
        return {
            **scores,
            "counts": torch.tensor(counts).reshape(len(counts), len(axes)),
            "crossed": torch.tensor(found.crossed, dtype=torch.bool),
        }

    tensors = run.once(make)
    return Path(
        {n.removeprefix("scores/"): t for n, t in tensors.items() if n.startswith("scores/")},
        tuple(
            Spec(run.net.space, dict(zip(axes, row, strict=True)))
            for row in tensors["counts"].tolist()
        ),
        tuple(tensors["crossed"].tolist()),
    )


class Falls(nn.Module):
    """When the units of a net fell, and the counts at which it crossed its targets.

    Units are numbered axis by axis; all of its state is in buffers, which a checkpoint holds.

    Args:
        space: of the net.
        targets: shares of the full net's MACs.
        device: where its weights are.
    """

    fell: Tensor  # the share of the run at which a unit fell, infinite while it stands
    lengths: Tensor  # the relative norms of the last step
    widths: Tensor  # (targets, axes) counts; -1 where the target was not crossed yet

    def __init__(self, space: Space, targets: Sequence[float], device: torch.device) -> None:
        super().__init__()
        self.space = space
        self.targets = tuple(targets)
        self.axes = loose_axes(space)
        self.places = [[p.to(device) for p in makers(space, a.name)] for a in self.axes]
        units = sum(axis.size for axis in self.axes)
        shape = (len(self.targets), len(self.axes))
        self.register_buffer("fell", torch.full((units,), math.inf, device=device))
        self.register_buffer("lengths", torch.ones(units, device=device))
        self.register_buffer("widths", torch.full(shape, -1, device=device))
        self.seen: list[int] = []

    def norms(self, weights: Mapping[str, Tensor]) -> list[list[Tensor]]:
        """Return the L2 norm of each unit's weights, by axis and by weight that makes it."""
        return [
            [(place.sums(weights[place.parameter].square()) + TINY).sqrt() for place in places]
            for places in self.places
        ]

    def note(self, norms: Sequence[Sequence[Tensor]], now: float) -> None:
        """Note which units have fallen, and the counts of those left where that crosses a target.

        Args:
            norms: of this step.
            now: share of the run that is done.
        """
        flat = [combined([each.detach() for each in norms_of_axis]) for norms_of_axis in norms]
        self.lengths.copy_(torch.cat(flat))
        down = self.lengths < FALLEN
        moment = torch.where(self.fell.isinf(), torch.full_like(self.fell, now), self.fell)
        self.fell.copy_(torch.where(down, moment, torch.full_like(self.fell, math.inf)))
        left = [int(n) for n in torch.stack([(~d).sum() for d in self._parts(down)]).tolist()]
        if left != self.seen:
            self.seen = left
            self._cross(left)

    def _cross(self, left: Sequence[int]) -> None:
        counts = _allowed(self.axes, left)
        share = self.space.macs(counts) / self.space.macs(self.space.full)
        for number, target in enumerate(self.targets):
            if share <= target and self.widths[number, 0] < 0:
                self.widths[number] = torch.tensor(list(counts.values()))

    def scores(self) -> dict[str, Tensor]:
        """Return one number a unit: when it fell, or 1 and its length if it stands."""
        found = torch.where(self.fell.isinf(), 1 + self.lengths, self.fell).double()
        return dict(zip((axis.name for axis in self.axes), self._parts(found), strict=True))

    def specs(self) -> tuple[Spec, ...]:
        """Return the spec of each target: as noted, or of the best units in the end."""
        names = [axis.name for axis in self.axes]
        return tuple(
            Spec(self.space, dict(zip(names, row, strict=True)) if row[0] >= 0 else last)
            for row, last in zip(self.widths.tolist(), self._in_the_end(), strict=True)
        )

    def _in_the_end(self) -> list[dict[str, int]]:
        """Return for each target the counts of the units of the highest scores that fit in it."""
        scores = torch.cat(list(self.scores().values()))
        bounds = sorted({0.0, *scores.tolist(), math.inf})
        full = self.space.macs(self.space.full)

        def counts(bound: float) -> dict[str, int]:
            return _allowed(self.axes, [int((part >= bound).sum()) for part in self._parts(scores)])

        def found(target: float) -> dict[str, int]:
            # The cost falls as the bound rises; the last one stands where none fits.
            most = target * full
            place = bisect_left(
                bounds,
                True,
                hi=len(bounds) - 1,
                key=lambda bound: self.space.macs(counts(bound)) <= most,
            )
            return counts(bounds[place])

        return [found(target) for target in self.targets]

    def _parts(self, flat: Tensor) -> Sequence[Tensor]:
        return torch.split(flat, [axis.size for axis in self.axes])


def _allowed(axes: Sequence[Axis], left: Sequence[int]) -> dict[str, int]:
    """Return the least allowed counts that hold the units left."""
    return {
        axis.name: next(count for count in axis.counts if count >= units)
        for axis, units in zip(axes, left, strict=True)
    }


def _penalised(hard: Loss, norms: Sequence[Sequence[Tensor]], clip: float, weight: float) -> Loss:
    """Return a loss with the penalty added."""

    def loss(outputs: Any, targets: Any) -> Tensor:
        return hard(outputs, targets) + weight * penalty(norms, clip)

    return loss


def penalty(norms: Sequence[Sequence[Tensor]], clip: float) -> Tensor:
    """Return `sum_l sum_o min(||W_l[o]||, clip * mean_o ||W_l[o]||)`, the bound taken as constant.

    Args:
        norms: one a unit, (units,), by axis and weight.
        clip: share of the mean.
    """
    parts = [
        torch.minimum(norm, clip * norm.detach().mean()).sum() for each in norms for norm in each
    ]
    return torch.stack(parts).sum()


def _check_targets(targets: Sequence[float]) -> None:
    for target in targets:
        if isinstance(target, bool) or not isinstance(target, (int, float)) or not 0 < target < 1:
            raise ModelError(
                f"targets= are shares of the full net's MACs, above 0 and below 1, not {target!r}"
            )


def check_pull(strength: tuple[float, float], clip: float) -> None:
    """Check how strongly units are pulled, and which.

    Raises:
        ModelError: no such numbers.
    """
    pair = tuple(strength) if isinstance(strength, (tuple, list)) else ()
    if len(pair) != 2 or not all(isinstance(n, (int, float)) and 0 <= n < math.inf for n in pair):
        raise ModelError(
            f"strength= is a pair of numbers of at least 0, at the start and the end, not "
            f"{strength!r}"
        )
    if isinstance(clip, bool) or not isinstance(clip, (int, float)) or not 0 < clip < math.inf:
        raise ModelError(f"clip= is a share above 0 of the mean norm, but it is {clip!r}")
