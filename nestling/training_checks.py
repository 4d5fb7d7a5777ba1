"""The contracts of what trains and searches: rankers, methods and searches, as functions."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import random
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nestling.checkpoint import RandomState
from nestling.interruption import Interrupted
from nestling.menu import Menu, make_menu, menu_of
from nestling.methods import Recipe
from nestling.progress import Reporter
from nestling.rankers import Ranker, orders
from nestling.search.driver import conduct
from nestling.search.request import Found, Search
from nestling.spec import Space, Spec
from nestling.supernet import Supernet
from nestling.training import Run
from nestling.units import loose_axes
from nestling.weights import cloned, tensors_of

EXACT = 1e-9  # relative
EXHAUSTIBLE = 5000  # specs of a space that is looked at as a whole


def check_ranker(
    ranker: Ranker,
    net: Supernet,
    train: Iterable[Any],
    *,
    trains: bool = False,
    epochs: int = 1,
    seed: int = 0,
    **options: Any,
) -> None:
    """Check what holds for every ranker, on a net and batches of your own.

    It orders the units of every axis that has no order of its own, and of no other; does the same
    twice under one seed; changes no weight, buffer or gradient, unless it trains; and what it has
    ordered computes the same as before, also from a file.

    Args:
        ranker: a function as in `nestling.rankers`, of a run and options, that returns scores.
        net: the supernet; it is not changed.
        train: batches, the same at every iteration under one seed.
        trains: whether the ranker trains the net's weights.
        epochs: of the run.
        seed: of the run.
        **options: of the ranker.

    Raises:
        AssertionError: what does not hold.

    Example:
        >>> check_ranker(nestling.rankers.find("taylor"), net, batches)
    """
    first, own = _ranked(ranker, net, train, trains, epochs, seed, options)
    again, _ = _ranked(ranker, net, train, trains, epochs, seed, options)
    sizes = {axis.name: axis.size for axis in loose_axes(net.space)}
    assert set(first) == set(sizes), f"it orders {sorted(first)}, but must order {sorted(sizes)}"
    for name, size in sizes.items():
        assert sorted(first[name]) == list(range(size)), f"the order of {name!r} is no permutation"
    assert first == again, "the same seed gives other orders the second time"
    own.model.eval()
    _check_kept(own, first, train)


def _ranked(
    ranker: Ranker,
    net: Supernet,
    train: Iterable[Any],
    trains: bool,
    epochs: int,
    seed: int,
    options: Mapping[str, Any],
) -> tuple[dict[str, tuple[int, ...]], Supernet]:
    """Return what a ranker makes of a twin, and the twin; unless it trains, nothing may change."""
    own = twin(net)
    own.zero_grad()
    run = Run(own, train, epochs, seed=seed, precision="float32")
    before = cloned(tensors_of(own.model))
    found = orders(own.space, ranker(run, **options))
    after = tensors_of(own.model)
    for name in before if not trains else ():
        assert torch.equal(before[name], after[name]), f"ranking changed {name!r}"
    left = [name for name, p in own.named_parameters() if p.grad is not None]
    assert trains or not left, f"ranking left gradients in {left}"
    return found, own


def _check_kept(net: Supernet, found: Mapping[str, Sequence[int]], train: Iterable[Any]) -> None:
    """Check that orders survive a file: the full net and the narrowest subnet are the same."""
    expected = {
        name: tuple(present[unit] for unit in found.get(name, range(len(present))))
        for name, present in net.orders.items()
    }
    net.reorder(found)
    least = Spec(net.space, {name: axis.counts[0] for name, axis in net.space.axes.items()})
    menu = make_menu(net, {"full": net.space.full, "least": least}, calibrate=train, measure=False)
    with tempfile.TemporaryDirectory() as folder:
        path = menu.save(Path(folder) / "ranked.nest")
        loaded = Menu.load(path, copy.deepcopy(net.model))
    assert dict(loaded.net.orders) == expected, "the orders are others after save and load"
    for name in ("full", "least"):
        one, other = (tensors_of(each.module(name)) for each in (menu, loaded))
        assert one.keys() == other.keys(), f"{name!r} has other tensors after save and load"
        same = all(torch.equal(one[key], other[key]) for key in one)
        assert same, f"{name!r} is another net after save and load"


def check_method(
    recipe: Recipe,
    net: Supernet,
    train: Iterable[Any],
    held_out: Iterable[Any],
    *,
    epochs: int = 2,
    seed: int = 0,
    **options: Any,
) -> None:
    """Check what holds for every method, on a net and batches of your own.

    It returns subnets of its net, or nets of such shapes, by name; does the same twice under one
    seed, and also where it is stopped anywhere and resumed, down to the bytes of its checkpoint;
    and what it offers computes the same from a file.

    Args:
        recipe: a function as in `nestling.methods`, of a run and options.
        net: the supernet; it is not changed.
        train: batches, the same at every iteration under one seed.
        held_out: batches, the same at every iteration.
        epochs: of the run.
        seed: of the run.
        **options: of the method.

    Raises:
        AssertionError: what does not hold.

    Example:
        >>> check_method(nestling.methods.find("slimmable"), net, train, held_out)
    """
    before = RandomState.now()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def fit(place: str, stop: int = -1, resume: bool = False) -> tuple[Menu, bytes, int]:
            own, path, shown = twin(net), folder / place, _Stopping(stop)
            run = Run(own, train, epochs, seed, held_out=held_out, checkpoint=path, reporter=shown)
            if resume:
                run.resume()
            modules = recipe(run, **options)
            _check_offer(own, modules)
            batches = run.calibration()
            menu = menu_of(own, modules, held_out, calibrate=batches, measure=False)
            return menu, path.read_bytes() if path.exists() else b"", shown.steps

        try:
            menu, state, steps = fit("whole")
            expected = _told(menu), state
            again, state, _ = fit("again")
            assert (_told(again), state) == expected, "the same seed does something else again"
            for stop in sorted({1, steps // 3, 2 * steps // 3, steps} - {0}):
                with contextlib.suppress(KeyboardInterrupt):
                    fit(str(stop), stop)
                torch.manual_seed(stop)  # a new process has other random states
                again, state, _ = fit(str(stop), resume=True)
                stopped = f"stopped in step {stop} of {steps} and resumed, it does something else"
                assert (_told(again), state) == expected, stopped
        finally:
            before.restore()
        loaded = Menu.load(menu.save(folder / "method.nest"), copy.deepcopy(menu.net.model))
        assert loaded.identity() == menu.identity(), "it offers something else from a file"


class _Stopping(Reporter):
    """Counts the steps that are shown, and interrupts in one of them."""

    def __init__(self, stop: int) -> None:
        super().__init__(quiet=True)
        self.stop, self.steps = stop, 0

    def advance(self, note: str = "") -> None:
        self.steps += 1
        if self.steps == self.stop:
            raise KeyboardInterrupt


def _check_offer(net: Supernet, modules: Mapping[str, tuple[Spec, nn.Module]]) -> None:
    assert modules, "it offers nothing"
    for name, (spec, module) in modules.items():
        wanted = {key: layout.shape(spec) for key, layout in net.space.present(spec).items()}
        found = {key: tuple(tensor.shape) for key, tensor in tensors_of(module).items()}
        assert found == wanted, f"what it offers as {name!r} is no net of its spec, {spec}"


def _told(menu: Menu) -> tuple[Any, ...]:
    return menu.identity(), menu.net.orders, [(entry.name, entry.accuracy) for entry in menu]


def check_search(
    make: Callable[[Space], Search],
    net: Supernet,
    *,
    score: Callable[[Spec], float] | None = None,
    cost: Callable[[Spec], float] | None = None,
    most: float = 1.0,
) -> float:
    """Check what holds for every search, and return how far it is from what exhaustion finds.

    It stays in the space and in its budget, tells the accuracies that it was told, repeats, and is
    the same when it is stopped anywhere and resumed, without a second evaluation of anything.

    Args:
        make: makes the search, such as `progressive`.
        net: a supernet of few specs; 5,000 or fewer are looked at exhaustively.
        score: accuracy of a spec; one of diminishing returns by default.
        cost: of a spec; multiply-accumulates by default.
        most: share of the full net's cost that the search has as its budget.

    Returns:
        The largest amount by which another spec, that costs no more than a found one, is more
        accurate; 0 where the space is too large to look.

    Raises:
        AssertionError: what does not hold.

    Example:
        >>> check_search(nestling.search.progressive, net)
        0.0125
    """
    space = net.space
    price = cost or space.macs
    told = _Told(score or _diminishing(space))
    found = conduct(make(space), net, score=told, cost=price)
    assert found, "the search found nothing"
    for spec, reached in found:
        shown = f"the found {spec}"
        assert reached == told.score(spec), f"{shown} has another accuracy than was told"
        assert price(spec) <= most * price(space.full) * (1 + EXACT), f"{shown} costs too much"
    again = _Told(told.score)
    assert conduct(make(space), net, score=again, cost=price) == found, "it does not repeat"
    assert again.asked == told.asked, "it asks for other specs when it is repeated"
    for stop in {0, 1, len(told.asked) // 2, len(told.asked) - 1}:
        _check_resume(make, net, price, told, found, stop)
    return _shortfall(space, found, told.score, price)


class _Told:
    """A score function that keeps what it was asked for; the call number `stop` interrupts."""

    def __init__(self, score: Callable[[Spec], float], stop: int = -1) -> None:
        self.score, self.stop = score, stop
        self.asked: list[Spec] = []

    def __call__(self, spec: Spec) -> float:
        if len(self.asked) == self.stop:
            raise KeyboardInterrupt
        self.asked.append(spec)
        return self.score(spec)


def _check_resume(
    make: Callable[[Space], Search],
    net: Supernet,
    price: Callable[[Spec], float],
    told: _Told,
    found: Sequence[Found],
    stop: int,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "search.jsonl"
        first, rest = _Told(told.score, stop), _Told(told.score)
        with contextlib.suppress(Interrupted):
            conduct(make(net.space), net, score=first, cost=price, log=log)
        same = conduct(make(net.space), net, score=rest, cost=price, log=log, resume=True)
        assert same == found, f"it finds something else when it is stopped after {stop} scores"
        # The candidates of one choice are kept together, so those of the last one are asked again.
        kept = told.asked[: len(told.asked) - len(rest.asked)]
        assert [*kept, *rest.asked] == told.asked, "a resumed search asks for other specs"
        assert first.asked[: len(kept)] == kept, "a resumed search repeats what the log holds"


def _diminishing(space: Space) -> Callable[[Spec], float]:
    """Return a score to which every axis adds, the more the fewer units are left."""
    draw = random.Random(0)
    weights = {name: draw.uniform(0.2, 1.0) for name in space.axes}
    total = sum(weights.values())

    def score(spec: Spec) -> float:
        lost = (weights[n] * (1 - spec[n] / a.size) ** 2 for n, a in space.axes.items())
        return 0.9 - 0.8 * sum(lost) / total

    return score


def _shortfall(
    space: Space,
    found: Sequence[Found],
    score: Callable[[Spec], float],
    price: Callable[[Spec], float],
) -> float:
    if math.prod(len(axis.counts) for axis in space.axes.values()) > EXHAUSTIBLE:
        return 0.0
    choices = itertools.product(*(axis.counts for axis in space.axes.values()))
    every = [Spec(space, dict(zip(space.axes, counts, strict=True))) for counts in choices]
    table = [(price(spec), score(spec)) for spec in every]
    return max(
        max(reached for cost, reached in table if cost <= price(spec)) - accuracy
        for spec, accuracy in found
    )


def twin(net: Supernet) -> Supernet:
    """Return a supernet of the same weights that may be changed."""
    model = copy.deepcopy(net.model)
    return Supernet.restore(model, net.space, net.orders, net.private, net.signature)
