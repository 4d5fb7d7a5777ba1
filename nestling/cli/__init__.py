"""The command line: one verb a file, errors in one place.

Data goes to stdout, everything else to stderr.
"""

from __future__ import annotations

from typing import Annotated

import typer

from nestling.cli import (
    bench,
    doctor,
    export,
    info,
    inspect,
    profile,
    quickstart,
    report,
    run,
    search,
    train,
)
from nestling.cli.group import Commands

app = typer.Typer(
    name="nestling",
    cls=Commands,
    help="One network, every size: nested subnets of your own PyTorch model, chosen at run time.",
    epilog="Start with: nestling quickstart\n\nThen, on your own model: "
    "nestling inspect FILE.py:function --input 1,3,224,224",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for verb in (quickstart, inspect, train, search, report, info, bench, profile, export, run, doctor):
    verb.add_to(app)


def _version(asked: bool) -> None:
    if asked:
        from nestling import __version__

        typer.echo(f"nestling {__version__}")
        raise typer.Exit


@app.callback()
def start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Print the help where no verb is given."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command line; the exit code is 0, 2 for what a user can correct, 1 for our bugs."""
    app(prog_name="nestling")


__all__ = ["app", "main"]
