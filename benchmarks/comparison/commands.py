"""Commands: the options that benchmarks have in common, and how their scripts end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from nestling.errors import NestlingError
from nestling.interruption import Interrupted

UNFINISHED = 3  # exit status: the time was up, run the same command again


def command(doc: str | None, noun: str, kept: Path) -> argparse.ArgumentParser:
    """Return the options of a benchmark that keeps a result for each of its parts.

    Args:
        doc: of the script, which is its help.
        noun: what such a part is: a case, a job, a trial.
        kept: where results are kept.
    """
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--data-dir", help="folder of the data sets")
    made.add_argument("--results", type=Path, default=kept, help="where results are kept")
    only = f"only these {noun}s, or patterns"
    made.add_argument("--only", nargs="+", metavar=noun.upper(), help=only)
    made.add_argument("--list", action="store_true", help=f"print the {noun}s and their states")
    made.add_argument("--tables", action="store_true", help="write the page of docs/, pictures too")
    made.add_argument("--summary", action="store_true", help="print the kept figures as JSON")
    return made


def add_protocol(made: argparse.ArgumentParser, protocols: Iterable[str], work: Path) -> None:
    """Add the options of trainings by a protocol, whose settings they may replace.

    Args:
        made: the options so far.
        protocols: names of those that there are.
        work: where trainings keep their state.
    """
    made.add_argument("--protocol", default="short", help=f"one of {', '.join(protocols)}")
    made.add_argument("--data", help="a data set of nestling.data, instead of the protocol's")
    for name in ("epochs", "batch"):
        made.add_argument(f"--{name}", type=int, help="instead of the protocol's")
    made.add_argument("--device", help="instead of the protocol's")
    made.add_argument("--seeds", type=int, nargs="+", help="only these")
    made.add_argument("--minutes", type=float, help="stop, saved, before so many are over")
    made.add_argument("--work", type=Path, default=work, help="where trainings keep their state")


def add_cases(made: argparse.ArgumentParser) -> None:
    """Add the options of trainings whose protocols and cases are those of `comparison`."""
    for name in ("pictures", "held-out", "threads"):
        made.add_argument(f"--{name}", type=int, help="instead of the protocol's")
    made.add_argument("--lr", type=float, help="instead of the protocol's")
    made.add_argument("--weights", type=Path, help="folder of the weights of --protocol pretrained")
    made.add_argument(
        "--any-commit", action="store_true", help="go on with what other code began; both are named"
    )


def replaced(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return what the options replace in a protocol, by name; None where they replace nothing.

    Args:
        options: of the command.
        names: of settings, beside those that `add_protocol` adds.
    """
    names = ("data", "epochs", "batch", "device", *names)
    seeds = tuple(options.seeds) if options.seeds else None
    return {**{name: getattr(options, name) for name in names}, "seeds": seeds}


def ended(do: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Do what the options ask for; return the exit status, and say on stderr what stopped it."""
    try:
        status = do(options)
        sys.stdout.flush()  # here, not at Python's end, where nothing is caught
        return status
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return UNFINISHED
    except NestlingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # who reads the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is not flushed
        return 1
