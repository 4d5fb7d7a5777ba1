"""The caption of a picture of methods: what the kept results show, in words for the README."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from comparison.cases import BASELINE, OURS, PLAIN
from comparison.figures import Comparison
from comparison.protocols import BUDGETS
from comparison.tables import DATA, NETS, epochs_of
from nestling.report.seeds import Summary

WIDTH = 100  # of a line
RIVAL = "the best of Universally Slimmable's uniform widths"


def caption(found: Comparison) -> str:
    """Return the caption, in Markdown: what was trained, and how our subnets compare.

    Every figure is one of the tables'. Leads are told as they are, small and negative ones too,
    and an average over seeds with its interval.
    """
    alone = _against_alone(found)
    uniform = _against_uniform(found, "they" if alone else "the non-uniform shapes")
    return textwrap.fill(f"*{' '.join(filter(None, [_trained(found), alone, uniform]))}*", WIDTH)


def _trained(found: Comparison) -> str:
    settings = found.settings
    net, data = settings["net"], settings["data"]
    used = "" if settings["pictures"] is None else f"{settings['pictures']:,} pictures of "
    epochs = epochs_of(list(found.results.values()))
    seeds = _counted(
        len(found.seeds(OURS, BASELINE) or {seed for _, seed in found.results}), "seed"
    )
    return f"{NETS.get(net, net)} on {used}{DATA.get(data, data)}, {epochs}, {seeds}."


def _against_alone(found: Comparison) -> str:
    """Return the sentence on the same shapes trained alone; "" if there are none."""
    full = found.gain(OURS, PLAIN, [1.0])
    known = [each for each in (found.against_alone(OURS, s) for s in found.shares()) if each]
    if not known:
        return ""
    leads = [round(each.mean, 1) + 0.0 for each in (*known, *([full] if full else []))]
    included = ", the full net included" if full else ""
    return (
        f"The non-uniform shapes, trained together, are {_compared(leads)} the same shapes trained "
        f"alone for as many epochs{included}."
    )


def _compared(leads: Sequence[float]) -> str:
    """Return how leads in points, rounded, compare with what they are leads over."""
    low, high = min(leads), max(leads)
    if low == high == 0:
        return "as good as"
    if low > 0:
        return f"{_span(low, high)} points better than"
    if high < 0:
        return f"{_span(-high, -low)} points worse than"
    ends = [f"{-low:.1f} points worse"] * (low < 0) + [f"{high:.1f} points better"] * (high > 0)
    return f"{'up to ' if len(ends) == 1 else 'from '}{' to '.join(ends)} than"


def _span(low: float, high: float) -> str:
    return f"{low:.1f}" if low == high else f"{low:.1f} to {high:.1f}"


def _against_uniform(found: Comparison, ours: str) -> str:
    """Return the sentences on uniform widths at the same cost; "" if they are not known."""
    mean = found.gain(OURS, BASELINE)
    by_budget = {budget: found.gain(OURS, BASELINE, [budget]) for budget in BUDGETS}
    each = {budget: lead.mean for budget, lead in by_budget.items() if lead is not None}
    if mean is None or not each:
        return ""
    points = round(mean.mean, 1)
    if points == 0:
        said = f"On average {ours} are level with {RIVAL}"
    else:
        verb = "lead" if points > 0 else "trail"
        said = f"{ours[0].upper()}{ours[1:]} {verb} {RIVAL} by {abs(points):.1f} points on average"
    least, most = min(each, key=each.__getitem__), max(each, key=each.__getitem__)
    return (
        f"{said} ({_signed(each[least])} at {100 * least:g} % of the multiply-accumulates, "
        f"{_signed(each[most])} at {100 * most:g} %). {_certainty(mean)}"
    )


def _certainty(mean: Summary) -> str:
    """Return the sentence on how sure an average over seeds is."""
    if mean.low is None or mean.high is None:
        return "One seed cannot tell how much of that is chance."
    interval = f"The 95 % interval of that average is {_signed(mean.low)} to {_signed(mean.high)}"
    if mean.low <= 0 <= mean.high:
        return f"{interval}, so that it is not certain which are better."
    return f"{interval}."


def _signed(points: float) -> str:
    return "0.0" if round(points, 1) == 0 else f"{points:+.1f}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
