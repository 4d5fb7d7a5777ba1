"""Progress: a bar with the time left on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import math
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Reporter:
    """Shows how far a run is. NO_COLOR is honoured; `quiet` shows nothing.

    Args:
        quiet: show nothing at all.
        console: where to write; the default is stderr.
    """

    def __init__(self, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, quiet=quiet)
        self.quiet = quiet
        self._progress: Progress | None = None
        self._task: Any = None
        self._said = -math.inf
        self._depth = 0

    def say(self, text: str) -> None:
        """Show a line of text."""
        if not self.quiet:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Reporter:
        self._depth += 1
        if self._depth > 1:  # a search within a training shows its progress in the same bar
            return self
        if self.console.is_terminal and not self.quiet:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
                transient=True,
            )
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._depth -= 1
        if self._progress is not None and not self._depth:
            self._progress.stop()
            self._progress = self._task = None

    def start(self, description: str, total: int, done: int = 0) -> None:
        """Begin a stage of `total` steps, of which `done` were made before."""
        if self._progress is not None:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(description, total=total, completed=done, note="")

    def advance(self, note: str = "") -> None:
        """Count one more step."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=1, note=note)

    def line(self, text: str, *, at_most_every: float = 0.0) -> None:
        """Show a line that stands also where there is no terminal, at most every few seconds."""
        now = time.monotonic()
        if now - self._said >= at_most_every:
            self._said = now
            self.say(text)
