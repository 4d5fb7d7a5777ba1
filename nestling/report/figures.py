"""Figures that follow from a page: shares, speed-ups, the Pareto front, the key result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from nestling.report.rows import Page, Row
from nestling.report.units import human_ms, human_percent

_Figure = Callable[[Row], float | None]


def is_timed(page: Page) -> bool:
    """Return whether the page compares by latency: the full net, which all refer to, has one."""
    return page.full.latency is not None


def cost_of(page: Page) -> _Figure:
    """Return what the page compares subnets by: median latency in ms, or MACs when untimed."""
    if is_timed(page):
        return lambda row: None if row.latency is None else row.latency[0]
    return lambda row: float(row.macs)


def share_of_macs(page: Page, row: Row) -> float:
    """Return the row's MACs as a share of the full net's."""
    return row.macs / page.full.macs


def speedup(page: Page, row: Row) -> float | None:
    """Return the measured speed-up over the full net: full median / the row's median."""
    if page.full.latency is None or row.latency is None:
        return None
    return page.full.latency[0] / row.latency[0]


def ideal_speedup(page: Page, row: Row) -> float:
    """Return the speed-up if time fell in proportion to MACs: full MACs / the row's MACs."""
    return page.full.macs / row.macs


def ideal_latency(page: Page, row: Row) -> float | None:
    """Return the latency in ms if time fell in proportion to MACs from the full net."""
    return None if page.full.latency is None else page.full.latency[0] * share_of_macs(page, row)


def front(rows: Iterable[Row], cost: _Figure) -> list[Row]:
    """Return the Pareto front, cheapest first: no other row costs no more and is as accurate.

    Rows without a cost or an accuracy are skipped; of rows with both alike, all are kept.
    """
    known = sorted(
        (x, -row.accuracy, i, row)
        for i, row in enumerate(rows)
        if (x := cost(row)) is not None and row.accuracy is not None
    )
    best: list[tuple[float, float, Row]] = []
    for x, loss, _, row in known:
        if not best or loss < best[-1][1] or (x, loss) == best[-1][:2]:
            best.append((x, loss, row))
    return [row for _, _, row in best]


def why_not_offered(page: Page, row: Row) -> str:
    """Return why a subnet is not offered: the menu's words, or which offered one is as good."""
    if row.reason:
        return row.reason
    cost, accuracy = cost_of(page), row.accuracy
    mine = cost(row)
    if accuracy is None or mine is None:
        return f"its {'latency' if mine is None else page.metric} was not measured"
    rivals = [r for r in page.rows if r.offered and r is not row and (r.accuracy or 0) >= accuracy]
    costs = [(c, r) for r in rivals if (c := cost(r)) is not None]
    if better := [r for c, r in costs if c < mine]:
        adjective = "slower" if is_timed(page) else "more MACs"
        return f"{adjective} than {_best(better)} and no more accurate"
    if equal := [r for c, r in costs if c == mine]:
        adjective = "no faster" if is_timed(page) else "no fewer MACs"
        return f"{adjective} than {_best(equal)} and no more accurate"
    if close := [r for r in rivals if _overlap(r, row)]:
        return f"not measurably faster than {_best(close)} and no more accurate"
    return "left out when the menu was made"


def head_line(page: Page) -> str:
    """Return the key result in one sentence: what the smallest offered subnet gains and costs.

    A gain in time is claimed only when the two 95 % intervals do not overlap.
    """
    smallest = _smallest(page)
    if smallest is None:
        return "No subnet smaller than the full net is offered."
    return f"The smallest offered subnet {_gain(page, smallest)}{_price(page, smallest)}."


def key_figures(page: Page) -> str:
    """Return the numbers behind the head line: from the full net to the smallest offered subnet."""
    small, full = _smallest(page), page.full
    if small is None:
        return ""
    parts = [f"MACs fall {ideal_speedup(page, small):.3g} times"]
    if full.latency is not None and small.latency is not None:
        times = (human_ms(full.latency[0]), human_ms(small.latency[0]))
        parts.append(f"latency goes from {times[0]} ms to {times[1]} ms")
    if full.accuracy is not None and small.accuracy is not None:
        shares = (human_percent(full.accuracy), human_percent(small.accuracy))
        parts.append(f"{page.metric} from {shares[0]} to {shares[1]}")
    return f"{small.name}: {', '.join(parts)}."


def _smallest(page: Page) -> Row | None:
    offered = [row for row in page.rows[1:] if row.offered]
    return min(offered, key=lambda row: row.macs, default=None)


def _gain(page: Page, row: Row) -> str:
    ratio = speedup(page, row)
    if ratio is None:
        return f"needs {_ratio(ideal_speedup(page, row))} times fewer MACs"
    if _overlap(page.full, row):
        return "is not measurably faster than the full net"
    if ratio < 1:
        return f"runs {_ratio(1 / ratio)} times slower than the full net"
    return f"runs {_ratio(ratio)} times faster"


def _price(page: Page, row: Row) -> str:
    if page.full.accuracy is None or row.accuracy is None:
        return f" ({page.metric} not measured)"
    points = round(100 * (page.full.accuracy - row.accuracy), 2)
    if points == 0:
        return f" at the same {page.metric}"
    size = f"{abs(points):.{1 if abs(points) >= 1 else 2}f}"
    return f" at {size} points {'less' if points > 0 else 'more'} {page.metric}"


def _ratio(ratio: float) -> str:
    return f"{ratio:.{2 if ratio < 1.2 else 1 if ratio < 19.95 else 0}f}"


def _overlap(one: Row, other: Row) -> bool:
    if one.latency is None or other.latency is None:
        return False
    return one.latency[1] <= other.latency[2] and other.latency[1] <= one.latency[2]


def _best(rows: Sequence[Row]) -> str:
    return max(rows, key=lambda row: (row.accuracy or 0, -row.macs)).name
