"""`nestling quickstart`: the whole story in a minute or two."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nestling.cli import terminal
from nestling.cli.options import examples


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command(
        epilog=examples("nestling quickstart", "nestling quickstart --out /tmp/first --seed 1")
    )(quickstart)


def quickstart(
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run, which must be new. (default: runs/quickstart-1 ...)"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random choices.")] = 0,
    epochs: Annotated[
        int, typer.Option(min=1, max=10_000, help="Passes over the training pictures.")
    ] = 20,
) -> None:
    """Train, measure, save, load and answer three budgets, on real digits: a minute or two."""
    from nestling import quickstart as story

    told = story.tell(out, seed=seed, epochs=epochs)
    terminal.put()
    terminal.put_page(told.outcome.page)
    terminal.put()
    story.explain(told, terminal.put)
    terminal.say(f"done in {told.seconds:.0f} s")
