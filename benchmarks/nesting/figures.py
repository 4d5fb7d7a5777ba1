"""Figures: what kept results show of each part.

As in `comparison.figures`: nothing is interpolated, subnets are chosen by held-out accuracy, and
the test accuracy of what was chosen is the figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comparison.cases import BASELINE
from comparison.figures import POINTS, TEST, Comparison
from comparison.protocols import BUDGETS
from comparison.results import Result, Row

from nesting.parts import ADABITS, ALL, ANY_PRECISION, EQUAL, METHOD, Part
from nestling.report.seeds import Summary, summarize

REMOVED = (0.0, 0.25, 0.5, 0.65, 0.75)  # shares of the parts; the paper names 65 %
GRID = (0.9, *BUDGETS)  # shares of the MACs at which fronts are compared


def summary(part: Part, found: Comparison) -> dict[str, Any]:
    """Return the figures of a part, in percentage points and shares."""
    settings = found.settings
    line: dict[str, Any] = {
        "part": part.name,
        "protocol": settings["name"],
        "net": part.called,
        "data": settings["data"],
        "seeds": len(found.seeds(*part.labels)),
    }
    label = part.labels[0]
    if part.bits:
        return {**line, **_bits_line(part, found)}
    if part.rival:
        equal = label + EQUAL
        line["mean_gain_over_us_equal_epochs"] = _mean_gain(found, label)
        line["mean_gain_over_us_equal_compute"] = _mean_gain(found, equal)
        line["nets_trained"] = trained(found, label)
        line["nets_trained_by_us"] = trained(found, BASELINE)
    if part.name == "all":
        leads = {kind: lead(found, kind) for kind in part.labels[1:]}
        line["joint_dominates"] = dominates(leads)
        line["least_lead_over"] = {
            kind: round(min(each.mean for each in by.values()), 3) if by else None
            for kind, by in leads.items()
        }
    elif not part.rival:
        line["accuracy_by_share_removed"] = {
            f"{share:g}": None if reached is None else round(reached.mean, 4)
            for share, reached in by_share_removed(found, label).items()
        }
    return line


def _bits_line(part: Part, found: Comparison) -> dict[str, Any]:
    """Return the figures of bits: test accuracies by number of bits, and their goals."""
    ours = _rounded(by_bits(found, part.labels[0]))
    lost = None
    if {"4", "2"} <= ours.keys():
        lost = round(POINTS * (ours["4"] - ours["2"]), 3)
    return {
        "accuracy_by_bits": ours,
        "any_precision_by_bits": _rounded(by_bits(found, ANY_PRECISION)),
        "adabits_by_bits": _with_gaps(_rounded(by_bits(found, ADABITS)), part),
        "accuracy_by_bits_equal_compute": _rounded(by_bits(found, part.labels[0] + EQUAL)),
        "points_from_4_to_2_bits": lost,
    }


def by_bits(found: Comparison, label: str, on: str = TEST) -> dict[int, Summary]:
    """Return the accuracy of nets all of whose weights and inputs are in so many bits, most first.

    Args:
        found: the results.
        label: of the case.
        on: pictures that the accuracies are of, `TEST` or `HELD_OUT`.
    """
    by: dict[int, list[float]] = {}
    for seed in found.seeds(label):
        result = found[label, seed]
        for row in result.rows:
            bits, reached = bits_of(result, row), getattr(row, on)
            if bits is not None and reached is not None:
                by.setdefault(bits, []).append(reached)
    seeds = len(found.seeds(label))
    return {n: summarize(by[n]) for n in sorted(by, reverse=True) if len(by[n]) == seeds}


def bits_of(result: Result, row: Row) -> int | None:
    """Return the number of bits of a subnet that has the same in all layers; else None."""
    pairs = zip(result.content["kinds"], row.counts, strict=True)
    found = {count for kind, count in pairs if kind == "bits"}
    return found.pop() if len(found) == 1 else None


def _rounded(by: Mapping[int, Summary]) -> dict[str, float]:
    return {str(bits): round(reached.mean, 4) for bits, reached in by.items()}


def _with_gaps(by: Mapping[str, float], part: Part) -> dict[str, float | None]:
    """Return the accuracies with None at numbers of bits that a rival is not for."""
    return {str(bits): by.get(str(bits)) for bits in part.bits} if by else {}


def _mean_gain(found: Comparison, label: str) -> float | None:
    gain = found.gain(label, BASELINE) if label in found.labels else None
    return None if gain is None else round(gain.mean, 3)


def trained(found: Comparison, label: str) -> int | None:
    """Return how many nets of different shape a training makes usable, each without a search."""
    seeds = found.seeds(label)
    return int(found[label, seeds[0]].content["trained"]) if seeds else None


# -- one kind alone ------------------------------------------------------------------------------


def removed(result: Result, row: Row) -> float:
    """Return the share of the nested units that a subnet has not: of the kinds that are nested."""
    kinds = result.case.options.get("kinds") or result.content["kinds"]
    nested = [place for place, kind in enumerate(result.content["kinds"]) if kind in kinds]
    whole = _full(result)
    return 1 - sum(row.counts[n] for n in nested) / sum(whole[n] for n in nested)


def by_share_removed(
    found: Comparison, label: str, shares: Sequence[float] = REMOVED
) -> Mapping[float, Summary | None]:
    """Return the test accuracy of the first subnet with at least that share of units removed."""
    result: dict[float, Summary | None] = {}
    for share in shares:
        rows = [_first_below(found[label, seed], share) for seed in found.seeds(label)]
        reached = [row.test for row in rows if row is not None]
        result[share] = summarize(reached) if rows and len(reached) == len(rows) else None
    return result


def _first_below(result: Result, share: float) -> Row | None:
    lacking = [row for row in result.rows if removed(result, row) >= share - 1e-9]
    return min(lacking, key=lambda row: (removed(result, row), -row.macs), default=None)


def _full(result: Result) -> tuple[int, ...]:
    whole = result.content["full"]["macs"]
    return next(row.counts for row in result.rows if row.macs == whole)


# -- all kinds -----------------------------------------------------------------------------------


def lead(found: Comparison, kind: str, grid: Sequence[float] = GRID) -> dict[float, Summary]:
    """Return the lead of all kinds together over one kind alone in points, by share of the MACs.

    A share that the one kind does not reach is left out: there is nothing to lead.

    Args:
        found: the results.
        kind: that is nested alone, in a training of its own.
        grid: shares of the full net's MACs.
    """
    result = {}
    for share in grid:
        gaps = []
        for seed in found.seeds(ALL, kind):
            joint, alone = found.at(ALL, seed, share), found.at(kind, seed, share)
            if alone is not None:
                gaps.append(POINTS * ((joint.test if joint is not None else 0.0) - alone.test))
        if gaps:
            result[share] = summarize(gaps)
    return result


def dominates(leads: Mapping[str, Mapping[float, Summary]]) -> bool | None:
    """Return whether the joint front is nowhere below a single one; None if nothing is known."""
    known = [each.mean for by in leads.values() for each in by.values()]
    return all(mean >= 0 for mean in known) if known and all(leads.values()) else None


def search_share(found: Comparison, label: str) -> Summary | None:
    """Return the seconds of the search over those of the training, by seed."""
    shares = []
    for seed in found.seeds(label):
        result = found[label, seed]
        spent, search = (result.seconds.get(stage) for stage in ("ordered dropout", "search"))
        if spent and search and result.complete and result.case.method == METHOD:
            shares.append(search / spent)
    return summarize(shares) if shares else None
