"""Cases: what is trained. One method with its options and one seed is a case.

Some cases need the results of others: a net alone at a shape that a search has found needs that
shape, and a training at equal compute needs to know how much that is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatch
from functools import partial
from typing import Any

from comparison.protocols import BUDGETS, Protocol
from nestling import rankers
from nestling.errors import FileError, ModelError, did_you_mean

OURS, BASELINE, PLAIN = "progressive", "uniform", "plain"
LONG, BUNDLE = "uniform, equal compute", "bundle"
UPDATES = 4  # optimiser steps a batch of "progressive" and "uniform": one after each pass
CONTROL = "four steps a batch"
UNIFORM_SHAPE = "a uniform width"
PROJECTED = {"shortcut": "projection"}  # an argument of the residual nets' builders
SLICE = 2_500  # held-out pictures that a search looks at, as in the paper
PAPERS = "progressive"  # the search of the paper
GROUPS = {"short": 4, "full": 8}  # its parts of an axis; the paper has both, and 4 halve the search
DENSE = tuple(round(1 - number / 40, 3) for number in range(37))  # 1.0, 0.975 ... 0.1
# The smallest member trains in every step; that of "uniform" has 12 % of the MACs. Where trained
# weights are tuned for a short time, it costs points to go further down than is asked for.
TUNED = DENSE[:-1]  # down to 0.125


@dataclass(frozen=True)
class Shape:
    """The shape of a net that is trained alone.

    Attributes:
        of: the label of the case that has chosen it, or `UNIFORM_SHAPE`.
        share: of the full net's MACs that it may cost; 1 is the full net.
    """

    of: str
    share: float


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        label: of the method with its options, as tables write it.
        method: its name.
        options: of the method, as JSON has them.
        seed: of everything random.
        group: "main", or what the ablation varies.
        shapes: of nets that are trained alone.
        arguments: of the net's builder, where they are other ones.
        equals: labels of the cases that train the same nets, where this one trains for as many
            epochs as cost as much as all of another case; a search of its own does not count.
        lr: its learning rate, over the protocol's.
        steps: optimiser steps a batch of a net that is trained alone, each on the same batch.
        looked_at: held-out pictures that its search looks at; None is all.
        stretch: times the protocol's epochs that it trains for, where others train in two stages.
        compute: label of that other case.
    """

    label: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    group: str = "main"
    shapes: tuple[Shape, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    equals: tuple[str, ...] = ()
    lr: float = 1.0
    steps: int = 1
    looked_at: int | None = None
    stretch: int = 1
    compute: str = OURS

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Case:
        """Return the case that a file tells; what it does not tell is as ever.

        Raises:
            FileError: it tells what this version does not know.
        """
        unknown = set(found) - {each.name for each in fields(cls)}
        if unknown:
            raise FileError(
                f"the case {found.get('label')!r} has settings that this version does not know, "
                f"{', '.join(sorted(unknown))}; read it with the version that has made it"
            )
        shapes = tuple(Shape(**each) for each in found["shapes"])
        return cls(**{**found, "shapes": shapes, "equals": tuple(found["equals"])})

    @property
    def name(self) -> str:
        """A plain name that no other case of the protocol has; its files are called so."""
        return f"{re.sub(r'[^a-z0-9.]+', '-', self.label.lower()).strip('-')}-seed{self.seed}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Labels of the cases of the same seed whose results it needs."""
        found = [shape.of for shape in self.shapes if shape.of != UNIFORM_SHAPE]
        if self.equals:
            found += [self.compute, *self.equals]
        return tuple(dict.fromkeys(found))


def alone_label(shape: Shape) -> str:
    """Return the label of a net that is trained alone at a shape."""
    of = "uniform" if shape.of == UNIFORM_SHAPE else shape.of
    return PLAIN if shape.share == 1 else f"alone {of} {100 * shape.share:g}"


def control_label(shape: Shape) -> str:
    """Return the label of a net alone that makes several optimiser steps a batch.

    Patterns such as "alone uniform*" shall not take these four times as long trainings along.
    """
    alone = alone_label(shape)
    return f"{alone}, {CONTROL}" if shape.share == 1 else f"{CONTROL}, {alone}"


def cases(of: Protocol) -> list[Case]:
    """Return all cases of a protocol, seed by seed; what others need comes before them."""
    return [
        case
        for seed in of.seeds
        for case in (*_main(of, seed), *_alone(of, seed), *_long(of, seed))
    ] + [case for seed in of.seeds for case in ablations(of, seed)]


def _main(of: Protocol, seed: int) -> list[Case]:
    listed = list(of.shares)
    return [
        _plain(of, seed),
        Case(BASELINE, "uniform", _widths(of), seed),
        Case(OURS, "progressive", _searched(of), seed, looked_at=SLICE),
        Case("norms", "norms", {"fractions": listed[1:]}, seed),
        Case("slimmable", "slimmable", {"fractions": listed}, seed),
    ]


def _searched(of: Protocol, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the options of "progressive", with changes."""
    given = changes or {}
    dense = list(DENSE if of.weights is None else TUNED)
    usual = {"fractions": dense, "rank_by": "l1", "search": "greedy", "start": "ranked"}
    if "rank_options" in given:  # they are the paper's ranker's
        usual["rank_by"] = "noise"
    found = {**usual, **_begun(of, given), **given}
    if found["search"] == PAPERS:
        groups = {"groups": GROUPS.get(of.name, GROUPS["full"])}
        found["search_options"] = {**groups, **found.get("search_options", {})}
    return found


def _widths(of: Protocol, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the options of "uniform", with changes.

    From scratch it begins with a training of the full net, as "progressive" does with its ranking.
    """
    first = {"full_epochs": None} if of.weights is None else {}
    return {**first, **(changes or {})}


def _begun(of: Protocol, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of "progressive" for trained weights, whose units are in order already.

    A ranker that a change names ranks all the same; the usual one does where its options change.
    """
    if of.weights is None:
        return {}
    by = changes.get("rank_by", "noise" if "rank_options" in changes else None)
    if by is None:
        return {"rank_by": None, "rank_epochs": 0}
    return {} if "epochs" in rankers.options(rankers.find(by)) else {"rank_epochs": 0}


def by_itself(of: Protocol) -> dict[str, Any]:
    """Return the options of nets alone."""
    return {"start": "given"} if of.weights is not None else {}


def _stretch(of: Protocol) -> int:
    """Return for how many times the protocol's epochs nets train alone: as long as the joint ones.

    From scratch these train twice: the full net by itself, and all together.
    """
    return 2 if of.weights is None else 1


def _plain(of: Protocol, seed: int, label: str = PLAIN, **more: Any) -> Case:
    shapes = (Shape(UNIFORM_SHAPE, 1.0),)
    more = {"stretch": _stretch(of), **more}
    return Case(label, "individual", by_itself(of), seed, shapes=shapes, **more)


def _alone(of: Protocol, seed: int) -> list[Case]:
    shares = [share for share in dict.fromkeys((*of.shares, *BUDGETS)) if share < 1]
    shapes = [Shape(by, share) for by in (UNIFORM_SHAPE, OURS, "norms") for share in shares]
    options = by_itself(of)
    return [
        Case(
            *(alone_label(shape), "individual", options, seed),
            shapes=(shape,),
            stretch=_stretch(of),
        )
        for shape in shapes
    ]


def _long(of: Protocol, seed: int) -> list[Case]:
    shapes = tuple(Shape(UNIFORM_SHAPE, share) for share in (1.0, *BUDGETS))
    return [
        Case(LONG, "uniform", _widths(of), seed, equals=(BASELINE,)),
        Case(
            *(BUNDLE, "individual", by_itself(of), seed),
            shapes=shapes,
            equals=tuple(map(alone_label, shapes)),
        ),
    ]


VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "ranker": {by: {"rank_by": by} for by in ("noise", "l2", "scale", "taylor", "lasso", "random")},
    "noise": {
        "most noise kept": {"rank_options": {"direction": "ascending"}},
        "plain steps": {"rank_options": {"steps": "plain", "score": "last"}},
    },
    "groups": {
        "4 groups": {"search_options": {"groups": 4}},
        "single steps": {"search_options": {"groups": None}},
    },
    "threshold": {
        f"threshold {value:g}": {"search_options": {"threshold": value}}
        for value in (0.3, 0.5, 0.8)
    },
    "distillation": {
        "distilled from the start": {"labels_first": 0.0},
        "distilled in the second half": {"labels_first": 0.5},
    },
    "steps": {"one step for all passes": {"summed": True}},
    "paper": {
        "as in the paper": {
            "rank_options": {"steps": "plain", "score": "last"},
            "search": PAPERS,
            "search_options": {"look": 1.0},
            "labels_first": 0.0,
            "summed": True,
            "start": "given",
        },
    },
    "re-selection": {
        "the paper's search, no re-selection": {
            "search": PAPERS,
            "search_options": {"reselect": False},
        }
    },
    "start": {"from scratch": {"rank_by": "noise", "start": "given"}},
    "norms": {"own norms": {"own_norms": True}},
    "draws": {"1 random member": {"draw": 1}, "4 random members": {"draw": 4}},
    "search": {
        "the paper's search": {"search": PAPERS},
        "evolutionary search": {"search": "evolution"},
        "chosen all the way": {"search_options": {"even_below": None}},
        "even below 0.5": {"search_options": {"even_below": 0.5}},
        "even below 0.7": {"search_options": {"even_below": 0.7}},
        "all axes looked at": {"search_options": {"look": None}},
    },
}
BASELINE_VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "distillation": VARIANTS["distillation"],
    "paper": {
        "as in the paper": {"low": 0.25, "labels_first": 0.0, "summed": True, "full_epochs": 0}
    },
    "start": {"from scratch": {"full_epochs": 0}},
    "steps": VARIANTS["steps"],
    "draws": {"1 random width": {"random": 1}, "4 random widths": {"random": 4}},
}
RATES: dict[str, dict[str, Any]] = {"": {}, ", one step for all passes": {"summed": True}}
LOWER = 0.3  # of the learning rate: what a step for all passes may want, for it sums gradients


def ablations(of: Protocol, seed: int) -> list[Case]:
    """Return "progressive" and "uniform" with one thing changed at a time, and controls."""
    found = []
    for label, method, looked_at, varied in (
        (OURS, "progressive", SLICE, VARIANTS),
        (BASELINE, "uniform", None, BASELINE_VARIANTS),
    ):
        changed = partial(_searched if label == OURS else _widths, of)
        own, more = changed({}), {"seed": seed, "looked_at": looked_at}
        found += [
            Case(f"{label}, {words}", method, changed(options), group=group, **more)
            for group, variants in varied.items()
            for words, options in variants.items()
            if changed(options) != own and (of.weights is None or group != "start")
        ]
        found += [
            Case(
                f"{label}{words}, lr x {LOWER:g}",
                *(method, changed(options)),
                group="learning rate",
                lr=LOWER,
                **more,
            )
            for words, options in RATES.items()
        ]
        if of.net.startswith("resnet") and of.weights is None:
            words = f"{label}, projected shortcuts"
            found.append(Case(words, method, own, group="shortcuts", arguments=PROJECTED, **more))
    if of.net.startswith("resnet") and of.weights is None:
        words = f"{PLAIN}, projected shortcuts"
        found.append(_plain(of, seed, words, group="shortcuts", arguments=PROJECTED))
    return found + _controls(of, seed)


def _controls(of: Protocol, seed: int) -> list[Case]:
    """Return nets alone that make as many optimiser steps a batch as those trained together."""
    shapes = [Shape(by, share) for by in (UNIFORM_SHAPE, OURS) for share in BUDGETS]
    return [
        Case(
            *(control_label(shape), "individual", by_itself(of), seed, "updates"),
            shapes=(shape,),
            steps=UPDATES,
            stretch=_stretch(of),
        )
        for shape in (Shape(UNIFORM_SHAPE, 1.0), *shapes)
    ]


# -- choosing cases ------------------------------------------------------------------------------


def chosen(
    all_cases: Sequence[Case],
    *,
    only: Sequence[str] | None = None,
    part: tuple[int, int] = (1, 1),
) -> list[Case]:
    """Return the cases of some labels, or one part of them.

    Args:
        all_cases: to choose from.
        only: labels, or patterns such as "alone*"; by default those of the main comparison.
        part: (i, n), counted from 1; the n parts have every case once.

    Raises:
        ModelError: a pattern that no label matches.
    """
    labels = list(dict.fromkeys(case.label for case in all_cases))
    for pattern in only or ():
        if not any(fnmatch(label, pattern) for label in labels):
            near = did_you_mean(pattern, labels)
            raise ModelError(f"no case is called {pattern!r}{near}; --list shows all")
    wanted: Callable[[Case], bool] = (
        (lambda case: any(fnmatch(case.label, pattern) for pattern in only))
        if only
        else (lambda case: case.group == "main")
    )
    found = [case for case in all_cases if wanted(case)]
    number, count = part
    return found[number - 1 :: count]


def parse_part(text: str, option: str = "--part") -> tuple[int, int]:
    """Return (i, n) of "i/n", which an option of the command is.

    Raises:
        ModelError: it is no part.
    """
    first, _, second = text.partition("/")
    if not (first.isdigit() and second.isdigit() and 1 <= int(first) <= int(second)):
        raise ModelError(f"{option} is i/n with i from 1 to n, such as 1/4, not {text!r}")
    return int(first), int(second)
