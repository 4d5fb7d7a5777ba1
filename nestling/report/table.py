"""The table at the end of a run, for a terminal or a log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestling.report import figures
from nestling.report.rows import Page, Row
from nestling.report.units import (
    MISSING,
    human_bytes,
    human_count,
    human_interval,
    human_ms,
    human_percent,
    human_times,
    printable,
)

if TYPE_CHECKING:
    from rich.table import Table


def table(page: Page) -> Table:
    """Return the menu as a Rich table; under it, why some entries are not offered, and which
    counts are not worth having here.

    Names are shown as they are: markup and terminal escapes in them have no effect.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(
        title=Text(printable(page.title)),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    made.caption = Text(_notes(page)) if _notes(page) else None
    made.caption_justify = "left"
    for n, head in enumerate(_heads(page)):
        made.add_column(Text(head), justify="right" if n else "left", no_wrap=n > 0)
    made.columns[0].min_width = min(8, max(len(printable(row.name)) for row in page.rows))
    for row in page.rows:
        cells = [Text(cell) for cell in _cells(page, row)]
        made.add_row(*cells, style=None if row.offered else "dim")
    return made


def plain(page: Page) -> str:
    """Return the same table as text without colour or lines, for logs and pipes."""
    lines = [_heads(page), *(_cells(page, row) for row in page.rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))]
    text = [printable(page.title), ""]
    for name, *cells in lines:
        rest = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        text.append("  ".join([name.ljust(widths[0]), *rest]).rstrip())
    if notes := _notes(page):
        text += ["", notes]
    return "\n".join(text) + "\n"


def _heads(page: Page) -> list[str]:
    metric = printable(page.metric)
    heads = ["name", "MACs", "params", "bytes", "ms", "95 % CI", "speed-up"]
    return [*heads, metric, "offered"]


def _cells(page: Page, row: Row) -> list[str]:
    return [
        printable(row.name),
        human_count(row.macs),
        human_count(row.params),
        human_bytes(row.bytes),
        MISSING if row.latency is None else human_ms(row.latency[0]),
        human_interval(row.latency),
        human_times(figures.speedup(page, row)),
        human_percent(row.accuracy),
        "yes" if row.offered else "no",
    ]


def _notes(page: Page) -> str:
    lines = [
        f"not offered: {row.name}, {figures.why_not_offered(page, row)}"
        for row in page.rows
        if not row.offered
    ]
    return "\n".join(printable(line) for line in [*lines, *_narrowed(page)])


def _narrowed(page: Page) -> list[str]:
    return [f"narrowed: {line}" for line in page.narrowed]
