"""What a search asks for, and what it is told: plain data.

A search is a generator function. It yields requests, is sent the answers, and returns what it has
found. It touches neither weights nor data nor clocks, so one driver can answer every search, keep
the answers, and feed them to the same search again to resume it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from nestling.spec import Spec

Worth: TypeAlias = Callable[[int, float], float]
"""What a candidate is worth, from its place and its accuracy; never falls with the accuracy."""

CostOf: TypeAlias = Callable[[Spec], float]
"""What a spec costs: MACs, parameters, bytes, a measured latency ..."""


class Found(NamedTuple):
    """A spec that a search has found, with its accuracy (0 to 1) on the held-out slice."""

    spec: Spec
    accuracy: float


class Choice(NamedTuple):
    """The answer to `Pick`: the place of the best candidate, its accuracy, and all accuracies.

    Those of candidates that were dropped early are of a part of the held-out slice only.
    """

    place: int
    accuracy: float
    accuracies: tuple[float, ...]


@dataclass(frozen=True)
class Score:
    """Asks for the accuracy of a spec, 0 to 1; the answer is a float."""

    spec: Spec


@dataclass(frozen=True)
class Pick:
    """Asks which of several candidates is best; the answer is a `Choice`.

    Cheaper than a `Score` for each, since candidates that cannot win any more are dropped.

    Attributes:
        specs: at least one; of equally good ones the first is taken.
        worth: what counts, from a candidate's place and accuracy; None means the accuracy.
    """

    specs: tuple[Spec, ...]
    worth: Worth | None = None


@dataclass(frozen=True)
class Tune:
    """Asks to fine-tune the weights of a spec; the answer is its accuracy afterwards.

    Attributes:
        spec: whose slices of the shared weights are trained.
        until: the accuracy, 0 to 1, at which to stop.
        epochs: after which to stop anyway.
    """

    spec: Spec
    until: float
    epochs: int


@dataclass(frozen=True)
class Cost:
    """Asks what specs cost; the answer is a tuple of numbers.

    It is asked for, not computed by the search, because a latency that is measured again is another
    number, and a resumed search must be told the same.
    """

    specs: tuple[Spec, ...]


@dataclass(frozen=True)
class Progress:
    """Tells how far the search is; the answer is None.

    Attributes:
        done: steps, of `total`.
        total: steps that there are at most.
        reached: the spec that a chain of steps has come to, with its accuracy known. The log keeps
            it where a step asks more than once, so that its picks do not tell the chain.
    """

    done: int
    total: int
    reached: Spec | None = None


Request: TypeAlias = Score | Pick | Tune | Cost | Progress
Search: TypeAlias = Generator[Request, Any, list[Found]]


def best_of(specs: Sequence[Spec], accuracies: Sequence[float], worth: Worth | None) -> int:
    """Return the place of the first best candidate."""
    value = worth or (lambda place, accuracy: accuracy)
    return max(range(len(specs)), key=lambda place: (value(place, accuracies[place]), -place))


def front(found: Sequence[Found], cost: CostOf) -> list[Found]:
    """Return the Pareto front, most costly first: nothing cheaper is as accurate as any of it.

    Example:
        >>> front(menu_of_specs, net.space.macs)
    """
    kept: list[Found] = []
    for each in sorted(found, key=lambda one: (cost(one.spec), -one.accuracy)):
        if not kept or each.accuracy > kept[-1].accuracy:
            kept.append(each)
    return kept[::-1]
