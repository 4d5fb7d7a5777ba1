"""Reply: the future of an answer, which also tells what gave it."""

from __future__ import annotations

import math
from concurrent.futures import Future
from typing import Any


class Reply(Future[Any]):
    """A future whose result is one example's output.

    Attributes:
        entry: the subnet that ran it; empty before, and where nothing ran.
        ms: milliseconds from its arrival to its answer; NaN before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.entry = ""
        self.ms = math.nan
