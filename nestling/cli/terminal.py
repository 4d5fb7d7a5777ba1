"""The terminal: data to stdout, everything else to stderr. NO_COLOR is honoured."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from nestling import report
from nestling.report.rows import Page
from nestling.report.units import printable


def say(text: str) -> None:
    """Write a line to stderr."""
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


def complain(kind: str, text: str) -> None:
    """Write what went wrong as one line to stderr."""
    line = Text(f"{kind}: ", style="bold red") + Text(printable(" ".join(text.split())), style="")
    Console(stderr=True).print(line, soft_wrap=True)


def put(text: str = "") -> None:
    """Write text to stdout."""
    typer.echo(text)


def put_json(value: Any) -> None:
    """Write a value as JSON to stdout."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def put_page(page: Page) -> None:
    """Write a menu's table to stdout: with lines and colour on a wide terminal, else plain."""
    if sys.stdout.isatty():
        Console().print(report.table(page))
    else:
        put(report.plain(page).rstrip())


def put_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write aligned columns to stdout, the first one to the left, the others to the right."""
    lines = [[printable(cell) for cell in line] for line in (heads, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    for first, *rest in lines:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        put("  ".join([first.ljust(widths[0]), *cells]).rstrip())
