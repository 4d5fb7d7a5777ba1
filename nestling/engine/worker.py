"""Worker: a thread that runs one turn after the other."""

from __future__ import annotations

import threading
from contextlib import suppress

from nestling.engine.turn import Turn, Turns


class Worker:
    """A thread that begins a turn whenever there is work and nobody else runs one.

    Args:
        turns: of the engine.

    Attributes:
        thread: it runs in.
    """

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._turn: Turn | None = None
        self.thread = threading.Thread(target=self._work, name="nestling-worker", daemon=True)
        self.thread.start()

    @property
    def is_gone(self) -> bool:
        """Whether its thread has ended, or is in a turn that was abandoned and ends after it."""
        turn = self._turn
        return not self.thread.is_alive() or (turn is not None and turn.abandoned)

    def _work(self) -> None:
        with suppress(BaseException):  # its requests were told, and the watch sees the end
            while (turn := self._next()) is not None:
                self._turn = turn
                with turn:
                    turn.run()
                if turn.abandoned:
                    return

    def _next(self) -> Turn | None:
        """Wait for something to do, and begin the turn; None when there is nothing more."""
        turn = Turn(self._turns)
        with self._turns.lock:
            while not turn.begin():
                if self._turns.is_over:
                    return None
                self._turns.ready.wait()
        return turn
