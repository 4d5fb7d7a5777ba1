"""Greedy search by price: take away what costs the least accuracy for the most saving.

Like the progressive search, but a step counts by the accuracy that is lost per unit of cost that is
saved, for any cost: multiply-accumulates, parameters, or a latency measured on the device. Axes of
all kinds compete with each other: channels, neurons, heads, paths, blocks.

Source: Yu and Huang, AutoSlim: Towards One-Shot Architecture Search for Channel Numbers
(arXiv 1903.11728), whose greedy slimming is that of `progressive`; the price per unit of cost is
that of Yang et al., NetAdapt (ECCV 2018), in its continuous form. Removing the last units first,
over all kinds at once, is that of Cui et al., Fully Nested Neural Network (IJCAI 2020).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from numbers import Real
from typing import Annotated, Any, NamedTuple

from nestling.errors import BudgetError, SpecError
from nestling.options import Checked, KindsRule, Switch
from nestling.search.request import (
    Choice,
    Cost,
    Found,
    Pick,
    Progress,
    Request,
    Score,
    Search,
    Tune,
    Worth,
)
from nestling.search.steps import (
    EPOCHS,
    FLOOR,
    Floor,
    check_shares,
    check_steps,
    check_tuning,
    lowered,
    narrowed,
    number_of,
    stairs,
)
from nestling.spec import Space, Spec
from nestling.units import axes_of_kinds

SLACK = 0.002  # losses below this are noise: 5 of 2,500 pictures


def greedy(
    space: Space,
    *,
    groups: Annotated[int | None, Checked(check_steps, ("floor",))] = 8,
    floor: Floor = FLOOR,
    kinds: Annotated[Iterable[str] | None, KindsRule] = None,
    targets: Annotated[Sequence[float], Checked(_check, ("budgets", "slack", "look"))] = (),
    budgets: Sequence[float] = (),
    reachable: Switch = False,
    slack: float = SLACK,
    look: int | None = None,
    threshold: Annotated[float | None, Checked(check_tuning, ("epochs",))] = None,
    epochs: int = EPOCHS,
    even_below: Annotated[float | None, Checked(check_even_below)] = None,
) -> Search:
    """Search a chain of nested subnets, largest first, each the best bargain from the one before.

    The cost is the one that `conduct` is given. Steps that do not make the net cheaper (as measured
    latencies sometimes have it) are made only where no other is left.

    Args:
        space: of the net.
        groups: equal parts of an axis, one of which goes at a time; None takes single steps.
        floor: share of its units that every axis keeps, or that share by axis name.
        kinds: of the axes that are cut; all by default.
        targets: shares of the full net's cost; the search returns, for each, the first net that
            costs no more, and stops at the last. Without targets and budgets it returns all, down
            to the floors.
        budgets: the same in the cost's own units: multiply-accumulates, bytes, milliseconds ...
        reachable: whether targets below what the floors cost stand for the net at its floors, as
            long as one is within reach; budgets never do.
        slack: losses of accuracy below this count as this, so that among steps that cost nothing
            noticeable the largest saving is taken, not the luckiest one.
        look: axes that are looked at at a time: those that were the best bargains when they were
            last looked at, and the one that was looked at longest ago; the next ones follow where
            these have become worse bargains than the others were. The first step looks at all. As
            losses grow as a rule, the others would be worse by now (Minoux, Accelerated Greedy
            Algorithms, 1978). None looks at all axes in every step.
        threshold: accuracy (0 to 1) below which the net is fine-tuned until it is back, as in
            `progressive`; None never does. What a net without a further part says of that part is
            worth little once the net hardly works.
        epochs: longest time of one fine-tuning.
        even_below: share of the full net's accuracy below which nothing is chosen any more: the
            widths of the net that is then reached shrink alike, down to the floors, and only what
            is left after that goes by choice. None chooses all the way. What a net that hardly
            works loses by a step says little of what the trained net will lose; where the list is
            trained for a short time only, one unlucky choice spoils all that is smaller. A metric
            of one's own whose full net has a score of 0 or less has no such share, and all is
            chosen.

    Raises:
        SpecError: an option is no such number, or a kind that the net lacks.
        BudgetError: a target or budget is below what the floors cost.

    Example:
        >>> search = greedy(net.space, targets=(0.75, 0.5, 0.25))
        >>> found = nestling.search.conduct(search, net, score=score, cost=net.space.params)
    """
    _check(targets, budgets, slack, look)
    check_tuning(threshold, epochs)
    check_even_below(even_below)
    steps = _steps(space, groups, floor, kinds)
    spec = space.full
    total = number_of(steps, spec)
    accuracy: float = yield Score(spec)
    whole, least = yield Cost((spec, Spec(space, {n: counts[-1] for n, counts in steps.items()})))
    limits = _limits(targets, budgets, whole, least, reachable)
    now, chain, costs = whole, [Found(spec, accuracy)], [whole]
    known: dict[str, _Look] = {}
    even: list[Spec] | None = None
    while candidates := lowered(space, spec, steps):
        if limits and now <= min(limits):
            break
        yield Progress(total - number_of(steps, spec), total, spec)
        if threshold is not None and accuracy < threshold:
            accuracy = yield Tune(spec, threshold, epochs)
            known.clear()  # they were those of other weights
        if even is None and _hardly_works(accuracy, chain[0].accuracy, even_below):
            even = narrowed(space, spec, steps, groups)[::-1]
        if even:
            spec = even.pop()
            (now,) = yield Cost((spec,))
            accuracy = yield Score(spec)
        else:
            prices: tuple[float, ...] = yield Cost(tuple(candidates.values()))
            price = dict(zip(candidates, prices, strict=True))
            savings = {name: max(now - price[name], 0.0) for name in _worth_trying(price, now)}
            present = len(chain), accuracy
            name, accuracy = yield from _best(candidates, savings, present, known, slack, look)
            spec, now = candidates[name], price[name]
        chain.append(Found(spec, accuracy))
        costs.append(now)
    yield Progress(total, total, spec)
    return _at(chain, costs, limits) if limits else chain


def _check(
    targets: Sequence[float], budgets: Sequence[float], slack: float, look: int | None
) -> None:
    check_shares("targets=", targets)
    check_budgets(budgets)
    if isinstance(slack, bool) or not isinstance(slack, int | float) or not 0 < slack <= 1:
        raise SpecError(f"slack= is an accuracy above 0 and at most 1, but it is {slack!r}")
    if look is not None and (isinstance(look, bool) or not isinstance(look, int) or look < 1):
        raise SpecError(
            f"look= is a whole number of axes of at least 1, or None for all, not {look!r}"
        )


def check_even_below(even_below: float | None) -> None:
    """Check from where on widths shrink alike.

    Raises:
        SpecError: it is no share.
    """
    number = isinstance(even_below, Real) and not isinstance(even_below, bool)
    if even_below is not None and not (number and 0 < even_below <= 1):
        raise SpecError(
            "even_below= is a share of the full net's accuracy above 0 and at most 1, or None, but "
            f"it is {even_below!r:.80}"
        )


def check_budgets(budgets: Sequence[float]) -> None:
    """Check costs in their own units.

    Raises:
        SpecError: one is none.
    """
    if isinstance(budgets, str) or not isinstance(budgets, Collection):
        raise SpecError(f"budgets= lists costs, such as (2e7,), not {budgets!r:.80}")
    for budget in budgets:
        number = isinstance(budget, Real) and not isinstance(budget, bool)
        if not number or not 0 < budget < math.inf:
            raise SpecError(
                "budgets= lists finite costs above 0 in their own units, such as (2e7,), but one "
                f"is {budget!r:.80}; leave out what has no limit"
            )


def _steps(
    space: Space, groups: int | None, floor: Floor, kinds: Iterable[str] | None
) -> dict[str, tuple[int, ...]]:
    """Return the counts on the way down of the axes of some kinds; the others stay whole.

    Raises:
        SpecError: an option is none, or nothing can go.
    """
    chosen = {axis.name for axis in axes_of_kinds(space, kinds)}
    steps = stairs(space, groups, floor)
    found = {name: counts if name in chosen else counts[:1] for name, counts in steps.items()}
    if not number_of(found, space.full):
        names = ", ".join(repr(name) for name in list(chosen)[:4])
        raise SpecError(
            f"a search takes units away, but {names}{' ...' if len(chosen) > 4 else ''} have no "
            "count below the full one that they may go to; lower floor=, give other kinds=, or the "
            "supernet a smaller step="
        )
    return found


def _limits(
    targets: Sequence[float],
    budgets: Sequence[float],
    whole: float,
    least: float,
    reachable: bool,
) -> list[float]:
    """Return the costs that are wanted, in their own units.

    Raises:
        BudgetError: one is below what the floors cost, or nothing that may go changes the cost.
    """
    wanted = [(share * whole, f"{share:.3g} of the full net") for share in targets]
    if reachable and any(limit >= least for limit, _ in wanted):
        wanted = [(max(limit, least), said) for limit, said in wanted]
    wanted += [(budget, f"{budget:.4g}") for budget in budgets]
    limit, said = min(wanted, default=(least, ""))
    if limit < least and least >= whole:
        raise BudgetError(
            f"no subnet costs at most {said}: none of the axes that may go changes this cost; give "
            "other kinds=, or another cost=, such as bytes or bitops for axes of bits"
        )
    if limit < least:
        raise BudgetError(
            f"no subnet costs at most {said}: with all axes at their floors it is "
            f"{least:.4g}, {least / whole:.3g} of the full net's; ask for more in targets= or "
            "budgets=, or lower floor="
        )
    return [limit for limit, _ in wanted]


def _hardly_works(accuracy: float, full: float, even_below: float | None) -> bool:
    return even_below is not None and full > 0 and accuracy < even_below * full


def _best(
    candidates: Mapping[str, Spec],
    savings: Mapping[str, float],
    present: tuple[int, float],
    known: dict[str, _Look],
    slack: float,
    look: int | None,
) -> Generator[Request, Any, tuple[str, float]]:
    """Ask which candidate is the best bargain; return its axis and its accuracy.

    With `look`, axes are looked at until the best of them is worth as much as the others were when
    these were last looked at.

    Args:
        candidates: by axis.
        savings: what each of those that are worth trying saves.
        present: number and accuracy of the net that they are smaller than.
        known: what each axis lost when it was last looked at; brought up to date.
        slack: losses below this count as this.
        look: axes that are looked at at a time; None for all.
    """
    step, accuracy = present
    stale = {
        name: _stale_worth(known.get(name), saved, accuracy, slack)
        for name, saved in savings.items()
    }
    left, best, best_worth = list(savings), ("", 0.0), -math.inf
    while left:
        names = left if look is None or not known else _looked_at(left, stale, known, look)
        bargain = _bargain(accuracy, [savings[name] for name in names], slack)
        choice: Choice = yield Pick(tuple(candidates[name] for name in names), bargain)
        for name, reached in zip(names, choice.accuracies, strict=True):
            known[name] = _Look(accuracy - reached, step)
        worth = bargain(choice.place, choice.accuracy)
        if not best[0] or worth > best_worth:
            best, best_worth = (names[choice.place], choice.accuracy), worth
        left = [name for name in left if name not in names]
        if all(stale[name] <= best_worth for name in left):
            break
    return best


def _worth_trying(price: Mapping[str, float], now: float) -> list[str]:
    """Return the axes whose candidates are cheaper, cheapest first; all if none is."""
    cheaper = [name for name in price if price[name] < now]
    return sorted(cheaper or price, key=lambda name: price[name])


class _Look(NamedTuple):
    """What an axis lost when it was looked at, and in which step that was."""

    loss: float
    step: int


def _stale_worth(last: _Look | None, saved: float, accuracy: float, slack: float) -> float:
    """Return what a step down an axis is worth by its last look; one without comes first.

    As for a bargain, the accuracy itself decides where nothing saves.
    """
    if last is None:
        return math.inf
    return saved / max(last.loss, slack) if saved else accuracy - last.loss


def _looked_at(
    names: Sequence[str], worth: Mapping[str, float], known: Mapping[str, _Look], look: int
) -> list[str]:
    """Return the axes to look at, in their order: the worthiest, and the one not seen longest.

    Where one axis is the bottleneck of others, these lose less once it is narrow, and no look at
    the worthiest alone would ever tell.
    """
    if look >= len(names):
        return list(names)
    ranked = sorted(names, key=lambda name: -worth[name])
    chosen = set(ranked[: max(1, look - 1)])
    if look > 1:
        chosen.add(
            min(ranked[look - 1 :], key=lambda name: known[name].step if name in known else 0)
        )
    return [name for name in names if name in chosen]


def _bargain(accuracy: float, savings: Sequence[float], slack: float) -> Worth:
    """Return the worth of a step: what it saves per accuracy that it loses.

    Where nothing saves, the accuracy itself decides.
    """
    if not any(savings):
        return lambda place, reached: reached
    return lambda place, reached: savings[place] / max(accuracy - reached, slack)


def _at(chain: Sequence[Found], costs: Sequence[float], budgets: Sequence[float]) -> list[Found]:
    """Return the first net within each budget, each once, largest first."""
    found: dict[int, Found] = {}
    for budget in budgets:
        within = [place for place, cost in enumerate(costs) if cost <= budget]
        if within:
            found[within[0]] = chain[within[0]]
    return [found[place] for place in sorted(found)]
