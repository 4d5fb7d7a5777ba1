"""The group of all verbs: turns whatever goes wrong into one line and an exit code."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from nestling.cli import terminal
from nestling.errors import NestlingError, did_you_mean
from nestling.interruption import at_once

OURS, USERS, STOPPED = 1, 2, 130  # exit codes


class Stopped(Exception):
    """Ctrl-C or SIGTERM, on its way to the exit code 130."""


class Commands(TyperGroup):
    """Typer's group, with our errors, suggestions and exit codes."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line and exit."""

        def run() -> Any:
            return super(Commands, self).main(
                args, prog_name, complete_var, False, windows_expand_args, **extra
            )

        if not standalone_mode:
            return run()
        with at_once():
            code = _guarded(run, list(sys.argv[1:] if args is None else args))
        sys.exit(code)

    def invoke(self, ctx: Any) -> Any:
        """Run a verb; what Typer would turn into a bare exit keeps its message."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise Stopped(str(stop) or "before anything was saved") from stop


def _guarded(run: Callable[[], Any], words: Sequence[str]) -> int:
    """Run, print what goes wrong as one line on stderr, and return the exit code."""
    try:
        result = run()
        return result if isinstance(result, int) else 0
    except Stopped as stop:
        terminal.complain("stopped", str(stop).removeprefix("stopped; "))
        return STOPPED
    except NestlingError as error:
        terminal.complain("error", str(error))
        return USERS
    except typer.Abort:
        terminal.complain("stopped", "nothing was done")
        return STOPPED
    except Exception as error:  # noqa: BLE001  (the last stop: nothing may end in a traceback)
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            terminal.complain("error", _usage(error, words))
            return int(error.exit_code)
        terminal.complain("error", _bug(error))
        return OURS


def _usage(error: Any, words: Sequence[str]) -> str:
    """Return Typer's message on a wrong option or argument as one sentence, with a way on."""
    text = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    if context is None:
        return text
    if hasattr(error, "option_name") and hasattr(error, "possibilities"):
        known = [name for option in context.command.params for name in option.opts]
        text = f"{error.message}{did_you_mean(error.option_name, known)}"
    for option in getattr(getattr(error, "param", None), "opts", ()):
        if option in words[:-1]:
            text += f" (got {words[words.index(option) + 1]!r})"
    return f"{text}; see `{context.command_path} --help`"


def _bug(error: Exception) -> str:
    """Write the traceback to a file and return what to do with it."""
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    try:
        handle, path = tempfile.mkstemp(prefix="nestling-error-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(" ".join(sys.argv) + "\n\n" + "".join(traceback.format_exception(error)))
        where = f"the traceback is in {path}"
    except OSError:
        where = "the traceback could not be written"
    return (
        f"this is a bug in Nestling: {what}; {where}. Please report it with that and the output "
        "of `nestling doctor`"
    )
