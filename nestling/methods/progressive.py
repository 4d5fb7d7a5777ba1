"""Progressive sub-net search: rank the units, search non-uniform subnets, train them together.

Units are ranked, best first, while the full net trains; a search on the trained net takes away what
is missed least and records the nets on the way; these are then trained as one list, and some of
them are offered.

Source: Yang, He, Cao and Fan, A Progressive Sub-Network Searching Framework for Dynamic Inference
(arXiv 2009.05681).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from torch import nn

from nestling import rankers
from nestling.entry import names_for
from nestling.errors import BudgetError
from nestling.joint import Joint, check_start, labels_share, train_full, weights_of
from nestling.objectives.listed import DRAW, check_draw
from nestling.objectives.sandwich import Loss
from nestling.options import Checked, DataRule, EpochsRule, LossRule, Switch, whole
from nestling.search import check_given as check_search
from nestling.search.stage import check_begins, held_out_of, searched
from nestling.search.uniform import FRACTIONS, Fractions
from nestling.spec import Space, Spec
from nestling.supernet import rearranged
from nestling.training import Run

EVEN_BELOW = 0.5  # of the full net's accuracy, for the search on given weights
LOOK = 4  # axes that a step of the greedy search looks at at a time


def progressive(
    run: Run,
    *,
    fractions: Fractions = FRACTIONS,
    rank_by: Annotated[str | None, Checked(rankers.check_given, ("rank_options",))] = "l1",
    rank_epochs: Annotated[int | None, whole(0, none=True)] = None,
    rank_options: Mapping[str, Any] | None = None,
    search: Annotated[str, Checked(check_search, ("search_options",))] = "greedy",
    search_options: Mapping[str, Any] | None = None,
    held_out: Annotated[Iterable[Any] | None, DataRule] = None,
    start: Annotated[str, Checked(check_start)] = "ranked",
    draw: Annotated[int | None, Checked(check_draw)] = DRAW,
    labels_first: Annotated[float | None, Checked(labels_share)] = None,
    distill: Annotated[Loss | None, LossRule] = None,
    summed: Switch = False,
    own_norms: Switch = False,
    train_all: Annotated[Iterable[Any] | None, EpochsRule] = None,
) -> Mapping[str, tuple[Spec, nn.Module]]:
    """Rank, search and train a list of non-uniform subnets; return those nearest to the fractions.

    Args:
        run: what the training is made of.
        fractions: shares of the full net's MACs that the menu shall have: for each, the list's
            largest member at or below it, beside the full net. Members smaller than the smallest of
            these are not trained.
        rank_by: name of the ranker; None keeps the units in their present order. Before one that
            does not train, such as "l1", the full net is trained. The paper's is "noise"; weights
            that bore noise are a worse start for the list than those that did not.
        rank_epochs: of the full net's training before the search, in which rankers that train find
            their scores; the run's by default. 0 where the given weights are trained already, for
            rankers that do not train themselves.
        rank_options: of the ranker, such as `{"direction": "ascending"}` of "noise".
        search: name of the search: "greedy", which takes away what costs the least accuracy for the
            multiply-accumulates that it saves; "progressive", the paper's, which asks for the
            accuracy alone; "evolution" or "uniform". Bits save no multiply-accumulates; search nets
            with bits by `nested`, whose cost can be another one.
        search_options: of the search, such as `{"groups": 4, "threshold": 0.5}`. Of "greedy",
            `look` is 4 here, and, on given weights (`rank_epochs=0`), `even_below` is 0.5.
        held_out: batches of training data to search on; those that the run holds out by default.
        start: from which weights the list is trained: "ranked", those that the ranking has left, or
            "given", those that the run began with, as the paper does from scratch. That costs as
            much, and in short trainings four points.
        draw: random members of the list a step, beside the full net and the smallest; None trains
            all.
        labels_first: share of the joint training in which all learn from the labels, before the
            narrower ones learn from the full net, as for "uniform". The paper has 0.
        distill: from then on, the loss of the narrower ones, as for "uniform".
        summed: whether the optimiser makes one step for all subnets of a batch, as the paper does,
            or one after each of them.
        own_norms: whether each member has norm weights of its own.
        train_all: batches for the joint training, such as those of `train` and of what was held
            out together; those of `train` by default.

    Raises:
        ModelError: an option that is none, or nothing to search on.
        SpecError: a fraction that is none.
        DataError: the held-out batches vary from one iteration to the next.
        BudgetError: the search finds no subnet as small as any of the fractions.
    """
    joint = Joint(draw, labels_first, distill, summed, own_norms, train_all)
    joint.share(run)  # an error now, not after the ranking
    slice_ = held_out_of(run, held_out)
    options = _search_options(search, rank_epochs, search_options or {})
    check_begins(run, search, slice_, options)
    given = weights_of(run) if start == "given" else None
    orders = _ranked(run, rank_by, rank_epochs, rank_options or {})
    if given is not None:
        given = rearranged(run.net.space, given, orders)
    run.reorder(orders)
    found = searched(run, search, slice_, options)
    members = [run.net.space.full, *(each.spec for each in found)]
    wanted = offered(run.net.space, members, fractions)
    named = names_for(run.net.space, wanted)
    missed = [each for each in fractions if each < _least(run.net.space, members)]
    if missed:
        run.reporter.say(
            f"fractions {', '.join(map(str, missed))} are left out: no subnet of the list is as "
            "small; lower the search's floor"
        )
    if given is not None:
        run.refill(given)
    subnets = joint.train(run, _not_below(run.net.space, members, wanted))
    return {name: (spec, subnets[spec]) for name, spec in named.items()}


def offered(space: Space, members: Sequence[Spec], fractions: Sequence[float]) -> list[Spec]:
    """Return the full net, and for each fraction the largest member that costs no more MACs.

    Args:
        space: of the members.
        members: the list.
        fractions: shares of the full net's MACs.

    Raises:
        BudgetError: no member is as small as any of the fractions.
    """
    whole = space.macs(space.full)
    chosen: dict[Spec, None] = {space.full: None}
    for fraction in sorted(fractions, reverse=True):
        within = [spec for spec in members if space.macs(spec) <= fraction * whole]
        if within:
            chosen[max(within, key=space.macs)] = None
    below = [fraction for fraction in fractions if fraction < 1]
    if below and len(chosen) == 1:
        raise BudgetError(
            f"no subnet of the list has at most {max(below):.3g} of the full net's MACs: the "
            f"smallest has {_least(space, members):.3g}; ask for more in fractions=, or lower the "
            "search's floor"
        )
    return sorted(chosen, key=space.macs, reverse=True)


def _not_below(space: Space, members: Sequence[Spec], wanted: Sequence[Spec]) -> list[Spec]:
    """Return the members that are not smaller than the smallest wanted one.

    The smallest of the list trains in every step. The end of a chain, with all axes at their
    floors, may have 2 % of the full net's MACs; a quarter of the updates would go into a net that
    nobody asked for, and the others would pay for it.
    """
    least = min(map(space.macs, wanted))
    return [spec for spec in members if space.macs(spec) >= least]


def _least(space: Space, members: Sequence[Spec]) -> float:
    """Return the share of the full net's MACs that the smallest member has."""
    return min(map(space.macs, members)) / space.macs(space.full)


def _search_options(
    search: str, rank_epochs: int | None, given: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return the options of the search: those given, and for "greedy" what this method has."""
    if search != "greedy":
        return given
    # A short joint training keeps much of what trained weights can do, and with it the mistakes of
    # a search that went on where its net hardly worked. From scratch it helps as often as it harms.
    even = {"even_below": EVEN_BELOW} if rank_epochs == 0 else {}
    return {"look": LOOK, **even, **given}


def _ranked(
    run: Run, by: str | None, epochs: int | None, given: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
    """Train the full net, and return the order of its units; none where the present one stays.

    Rankers that train do both at once. The search needs a trained net in any case.
    """
    options = dict(given)
    if by is not None and "epochs" in rankers.options(rankers.find(by)):
        options.setdefault("epochs", epochs)
    else:
        train_full(run, epochs, "plain ranking")
    return {} if by is None else rankers.orders(run.net.space, rankers.scores(run, by, **options))
