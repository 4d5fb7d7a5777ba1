"""Joint training: the members of a list become good together; what several methods end with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nestling.binding import binding
from nestling.errors import ModelError
from nestling.objectives.listed import DRAW, chances_of, check_draw, drawn, largest_first
from nestling.objectives.sandwich import Loss, in_training, lessons, task_loss
from nestling.ownership import own_norms, take
from nestling.spec import Spec
from nestling.supernet import Supernet
from nestling.training import Run
from nestling.weights import tensors_of

STARTS = ("given", "ranked")


@dataclass(frozen=True)
class Joint:
    """How the members of a list are trained together.

    Attributes:
        draw: random members a step, beside the full net and the smallest; None trains all.
        labels_first: share of the training in which all learn from the labels, before the others
            learn from the full net; 1 is hard cross-entropy throughout. None is 1, or 0.5 where
            there is a `distill`.
        distill: from then on, the loss of the others, from (outputs, the full net's outputs).
        summed: whether the optimiser makes one step for all subnets of a batch, with the sum of
            their gradients, as the papers do; otherwise a step after each, at the same cost.
        own_norms: whether every member has norm weights of its own, see `ownership.own_norms`.
        data: batches to train on; those of the run by default.
        epochs: the run's by default.
    """

    draw: int | None = DRAW
    labels_first: float | None = None
    distill: Loss | None = None
    summed: bool = False
    own_norms: bool = False
    data: Iterable[Any] | None = None
    epochs: int | None = None

    def __post_init__(self) -> None:
        check_draw(self.draw)
        labels_share(self.labels_first, self.distill)

    def share(self, run: Run) -> float:
        """Return the share of the training in which all subnets learn from the labels.

        Raises:
            ModelError: the run has a loss of its own, and nobody knows how to distil with it.
        """
        return labels_share(self.labels_first, self.distill, run.loss)

    def train(self, run: Run, members: Sequence[Spec]) -> dict[Spec, nn.Module]:
        """Train the members, and return their subnets.

        Args:
            run: whose net they are of.
            members: the list; the full net trains with them.
        """
        net, share = run.net, self.share(run)
        others = largest_first(net.space, members)
        specs, chances = [net.space.full, *others], chances_of(net.space, others)
        # Of their own, not the pool's: these are more than it holds, and drawn again and again.
        made = {spec: net.subnet(spec) for spec in specs}
        owned = [own_norms(subnet) for subnet in made.values()] if self.own_norms else []
        norms = nn.ModuleList(nn.ParameterList(each.values()) for each in owned)

        def objective(_: object) -> Iterator[tuple[nn.Module, Loss]]:
            early = run.done < share
            loss, distill = (run.loss or task_loss, None) if early else (run.loss, self.distill)
            chosen = [net.space.full, *drawn(others, chances, self.draw)]
            return lessons((in_training(made[spec]) for spec in chosen), loss, distill)

        run.train_stage(
            objective,
            name="joint",
            extra=norms,
            data=self.data,
            epochs=self.epochs,
            summed=self.summed,
        )
        return {spec: _anew(net, spec, made[spec]) for spec in members}


def _anew(net: Supernet, spec: Spec, trained: nn.Module) -> nn.Module:
    """Return the subnet of a spec with the norm weights that are a trained one's own.

    Not the trained one itself: after a resume its norm statistics would be others, until they are
    measured.
    """
    subnet, tie = net.subnet(spec), binding(trained)
    if tie is not None:
        take(subnet, tie.own)
    return subnet


def train_full(run: Run, epochs: int | None, name: str) -> None:
    """Train the full net alone, before others train with it.

    Args:
        run: whose net it is of.
        epochs: the run's if None.
        name: shown with the progress.
    """

    def plain(net: Supernet) -> Iterator[tuple[nn.Module, Loss]]:
        yield in_training(net.pooled(net.space.full)), run.loss or task_loss

    run.train_stage(plain, name=name, epochs=epochs)


def labels_share(
    labels_first: float | None, distill: Loss | None = None, loss: Loss | None = None
) -> float:
    """Return the share of a training in which all subnets learn from the labels.

    Args:
        labels_first: that share; None is all of it, or half where there is a loss to distil with.
        distill: the loss from (outputs, the full net's outputs).
        loss: of the run, where it has one of its own; what to distil with is unknown then.

    Raises:
        ModelError: no share from 0 to 1; or one below 1 with a `loss` and no `distill`.
    """
    if labels_first is None:
        return 1.0 if distill is None else 0.5
    number = isinstance(labels_first, int | float) and not isinstance(labels_first, bool)
    if not number or not 0 <= labels_first <= 1:
        raise ModelError(f"labels_first= is a share from 0 to 1, but it is {labels_first!r}")
    if labels_first < 1 and loss is not None and distill is None:
        raise ModelError(
            f"labels_first={labels_first!r} lets subnets learn from the full net, but with loss= "
            "nobody knows how; give distill= too, a loss from (outputs, the full net's outputs)"
        )
    return float(labels_first)


def check_start(start: str) -> None:
    """Check from which weights a joint training starts.

    Raises:
        ModelError: no such start.
    """
    if start not in STARTS:
        raise ModelError(f"start= is one of {', '.join(STARTS)}, not {start!r}")


def weights_of(run: Run) -> Mapping[str, Tensor]:
    """Return a copy of the weights that the run's net has now, the same after a resume."""
    return run.once(lambda: tensors_of(run.net.model))
