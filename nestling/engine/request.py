"""Request: one example on its way through the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from nestling.engine.reply import Reply
from nestling.governor import Choice


@dataclass(slots=True, eq=False)
class Request:
    """One example that waits for its answer.

    Attributes:
        inputs: the model's inputs for one example, without the dimension of the batch.
        since: when it arrived, in seconds of the engine's clock.
        deadline: when its answer is of no use any more; infinite without one.
        priority: those of a larger one run first.
        rungs: what the request's own budget makes of each rung that the governor may choose; None
            without a budget.
        future: where its answer goes.
    """

    inputs: tuple[Tensor, ...]
    since: float
    deadline: float = float("inf")
    priority: int = 0
    rungs: tuple[int, ...] | None = None
    future: Reply = field(default_factory=Reply)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Requests that run together, and what runs them.

    Attributes:
        requests: at least one.
        rung: of the entry.
        entry: its name.
        choice: the governor's, for all of them.
    """

    requests: Sequence[Request]
    rung: int
    entry: str
    choice: Choice
