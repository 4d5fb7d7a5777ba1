"""`report.html`: the whole result in one file that needs no network."""

from __future__ import annotations

import base64
import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

from nestling.errors import FileError
from nestling.files import write_atomically
from nestling.report import figures
from nestling.report.own import own_call, own_options
from nestling.report.page import FRAME
from nestling.report.rows import Page, Row
from nestling.report.units import (
    MISSING,
    human_bytes,
    human_count,
    human_interval,
    human_ms,
    human_percent,
    human_share,
    human_times,
)

_COLUMN = 1112  # pixels of the page's text column (72rem less its padding)
_PNG = b"\x89PNG\r\n\x1a\n"


def report_html(
    page: Page, pictures: Mapping[str, str | os.PathLike[str]], path: str | os.PathLike[str]
) -> Path:
    """Write the report as one HTML file and return its path.

    Pictures are embedded and the page forbids itself every request, so it can be mailed, kept in an
    archive, and opened anywhere. All text that comes from the user is escaped.

    Args:
        page: what to show.
        pictures: title -> PNG file, shown in this order.
        path: the HTML file to write.

    Raises:
        FileError: a picture is missing or no PNG, or the place cannot be written.
    """
    parts = {
        "title": escape(page.title),
        "head_line": escape(figures.head_line(page)),
        "key_figures": escape(figures.key_figures(page)),
        "table": _table(page),
        "reasons": _reasons(page),
        "narrowed": listed("Which counts are worth having on this device:", page.narrowed),
        "pictures": "\n".join(embedded(title, file) for title, file in pictures.items()),
        "widths": _widths(page),
        "use": _use(page),
        "facts": fact_list("How it was made", page.facts),
        "machine": fact_list("Where it was measured", page.machine),
    }
    write_atomically(path, Template(FRAME).substitute(parts).encode())
    return Path(path)


def _table(page: Page) -> str:
    heads = ["Subnet", "Share of MACs", "MACs", "Parameters", "Bytes", "Latency, ms"]
    heads += ["95 % interval, ms", "Measured speed-up", "Ideal speed-up"]
    heads += [page.metric[:1].upper() + page.metric[1:], "Offered"]
    head = "".join(
        f'<th scope="col"><button type="button">{escape(word)}</button></th>' for word in heads
    )
    body = "\n".join(_table_row(page, row) for row in page.rows)
    return f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>"


def _table_row(page: Page, row: Row) -> str:
    """Return a row; every cell carries the exact value, by which the table is sorted."""
    latency = None if row.latency is None else row.latency[0]
    speedup = figures.speedup(page, row)
    cells: list[tuple[str, float | None]] = [
        (human_share(figures.share_of_macs(page, row)), row.macs),
        (human_count(row.macs), row.macs),
        (human_count(row.params), row.params),
        (human_bytes(row.bytes), row.bytes),
        (MISSING if latency is None else human_ms(latency), latency),
        (human_interval(row.latency), None if row.latency is None else row.latency[1]),
        (human_times(speedup), speedup),
        (human_times(figures.ideal_speedup(page, row)), figures.ideal_speedup(page, row)),
        (human_percent(row.accuracy), row.accuracy),
    ]
    shown = "".join(
        f'<td data-v="{"" if value is None else f"{value:.9g}"}">{text}</td>'
        for text, value in cells
    )
    offered = f'<td data-v="{row.offered:d}">{"yes" if row.offered else "no"}</td>'
    long = ' class="long"' if len(row.name) > 16 else ""
    name = f'<th scope="row"{long} data-v="{escape(row.name)}">{escape(row.name)}</th>'
    kind = "in" if row.offered else "out"
    return f'<tr class="{kind}">{name}{shown}{offered}</tr>'


def _reasons(page: Page) -> str:
    hidden = [row for row in page.rows if not row.offered]
    lines = [f"{row.name}: {figures.why_not_offered(page, row)}" for row in hidden]
    return listed("Not offered:", lines)


def listed(heading: str, lines: Sequence[str]) -> str:
    """Return a list; of each line, what stands before the first colon is set off."""
    if not lines:
        return ""
    items = []
    for line in lines:
        head, colon, rest = line.partition(": ")
        items.append(
            f"<li><b>{escape(head)}</b>{colon}{escape(rest)}</li>"
            if colon
            else f"<li>{escape(line)}</li>"
        )
    return f'<p class="key">{escape(heading)}</p><ul>{"".join(items)}</ul>'


def embedded(title: str, file: str | os.PathLike[str]) -> str:
    """Return a figure that holds a PNG file itself.

    Raises:
        FileError: the file cannot be read, or is no PNG.
    """
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise FileError(
            f"a picture of the report is a PNG file that can be read; {os.fspath(file)!r} could "
            f"not be ({error.strerror or error}); draw it first, for example with pareto()"
        ) from error
    if not data.startswith(_PNG) or len(data) < 24:
        raise FileError(
            f"a picture of the report is a PNG file; {os.fspath(file)!r} starts with {data[:8]!r}; "
            "save it as PNG"
        )
    # The header's pixels, shown at three quarters: crisp, and text as large as the page's own.
    width, height = (int.from_bytes(data[at : at + 4], "big") * 3 // 4 for at in (16, 20))
    wide = f' class="wide" style="--width: {width}px"' if width > _COLUMN else ""
    alt = f"{title}: a picture of the figures in the tables of this page"
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return (
        f"<figure{wide}><figcaption>{escape(title)}</figcaption>"
        f'<img width="{width}" height="{height}" alt="{escape(alt)}" src="{source}"></figure>'
    )


def _widths(page: Page) -> str:
    head = "".join(f'<th scope="col">{escape(row.name)}</th>' for row in page.rows)
    lines = [f'<thead><tr><th scope="col">Axis</th>{head}</tr></thead>', "<tbody>"]
    for axis, size in page.sizes.items():
        counts = "".join(f"<td>{row.counts.get(axis, size)}</td>" for row in page.rows)
        lines.append(f'<tr><th scope="row">{escape(axis)}</th>{counts}</tr>')
    return "\n".join([*lines, "</tbody>"])


def _use(page: Page) -> str:
    """Return the lines that use the model file, with a budget that this menu meets."""
    file = page.facts.get("file", "model.nest")
    offered = [row for row in page.rows if row.offered] or [page.full]
    smallest = min(offered, key=lambda row: row.macs)
    timed = [row for row in offered if row.latency is not None]
    chosen = offered[len(offered) // 2]
    budget = f"fraction={_round_up(figures.share_of_macs(page, chosen)):g}"
    others = "latency_ms=, macs= or params="
    if timed:
        chosen = timed[len(timed) // 2]
        assert chosen.latency is not None
        budget = f"latency_ms={_round_up(chosen.latency[2]):g}"
        others = "macs=, params= or fraction="
    line, call = ("", "") if page.own is None else own_call(page.own)
    made = f", model={call}" if call else ""
    python = [
        *(["import importlib", ""] if line and not line.startswith("from ") else []),
        "import nestling",
        *([line] if line else []),
        "",
        f"model = nestling.load({json.dumps(file)}{made})",
        *_inputs(page.facts),
        f"outputs = model(inputs, {budget})  # or {others}",
        f"outputs = model(inputs, subnet={json.dumps(smallest.name)})  # or by name",
    ]
    quoted = shlex.quote(file)
    own = "" if page.own is None else own_options(*page.own)
    shell = [
        f"nestling profile {quoted}{own}  # measure the latencies on this machine",
        f"nestling bench {quoted}{own}    # latency, throughput and memory of every subnet",
        f"nestling run {quoted} INPUT --fraction 0.5{own}  # a picture or a .npy file",
    ]
    return _code("Python", python) + _code("Shell", shell)


def _inputs(facts: Mapping[str, str]) -> list[str]:
    """Return the lines that make real inputs, where the menu was made on a data set of ours.

    As many as were measured a call, so that a latency budget has an answer.
    """
    if "data" not in facts or "mean" not in facts:
        return []
    batch = facts.get("batch", "64")
    return [
        f"data = nestling.data.load({json.dumps(facts['data'])})",
        f"inputs, labels = next(iter(data.test_batches({batch})))  # normalised as in training",
    ]


def _code(language: str, lines: Sequence[str]) -> str:
    code = escape("\n".join(lines))
    return f'<h3>{language}</h3><pre tabindex="0"><code>{code}</code></pre>\n'


def fact_list(heading: str, facts: Mapping[str, str]) -> str:
    """Return a section of facts; empty where there are none."""
    if not facts:
        return ""
    lines = "".join(
        f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in facts.items()
    )
    return f"<section><h2>{heading}</h2><dl>{lines}</dl></section>"


def _round_up(value: float) -> float:
    """Return the value rounded up to two significant digits, so that the budget is met."""
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return round(math.ceil(value / step - 1e-9) * step, 12)
