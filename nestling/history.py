"""History: what a resumable run has behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nestling.checkpoint import Checkpoint, load_into, refuse_other
from nestling.errors import FileError
from nestling.supernet import Supernet
from nestling.weights import cloned, tensors_of


class History:
    """The stages of a run, what they left, and the changes to the weights between them.

    A method is called again when its run is resumed; what is behind it is passed over then.

    Args:
        path: of the checkpoint, for errors.

    Attributes:
        stages: what was true of each stage that was begun, as JSON values; a resumed run's must be
            the same.
        results: tensors that finished stages and `once` have left.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.stages: list[dict[str, Any]] = []
        self.results: dict[str, dict[str, Tensor]] = {}
        self._stage = 0  # the next one
        self._once = 0
        self._changes = 0  # that the weights have behind them
        self._changed = 0  # that the method has asked for
        self._found: Checkpoint | None = None

    # -- stages -------------------------------------------------------------------------------

    def begin(self, facts: Mapping[str, Any]) -> int:
        """Return the number of the stage that begins.

        Args:
            facts: what must be the same when the stage is resumed or passed over.

        Raises:
            FileError: it was begun with others.
        """
        number, self._stage = self._stage, self._stage + 1
        if number < len(self.stages):
            refuse_other(self.stages[number], facts, self.path, f" in its stage {number + 1}")
        else:
            self.stages.append(dict(facts))
        return number

    def passed(self, stage: int, own: nn.Module | None) -> bool:
        """Return whether a resumed run has a stage behind it, after restoring its result."""
        if self._found is None or stage >= self._found.header["stage"]:
            return False
        if own is not None:
            load_into(own, self.results.get(str(stage), {}), self.path)
        return True

    def take(self, stage: int) -> Checkpoint | None:
        """Return the checkpoint that stopped in a stage; after this all is new."""
        found, self._found = self._found, None
        return found if found is not None and found.header["stage"] == stage else None

    def finish(self, stage: int, own: nn.Module | None) -> None:
        """Keep what a stage has trained beside the shared weights."""
        if own is not None:
            self.results[str(stage)] = cloned(tensors_of(own))

    # -- between stages -----------------------------------------------------------------------

    def once(self, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return the tensors that `make` returns; a resumed run has them from its checkpoint."""
        self._once += 1
        made, stages = f"once{self._once}", f"stages{self._once}"
        if stages in self.results:
            self._stage += int(self.results[stages]["number"])
        else:
            before = self._stage
            self.results[made] = cloned(make())
            self.results[stages] = {"number": torch.tensor(self._stage - before)}
        return dict(self.results.get(made, {}))

    def due(self) -> bool:
        """Return whether the weights do not have the next change of the method behind them yet."""
        self._changed += 1
        due = self._changed > self._changes
        self._changes = max(self._changes, self._changed)
        return due

    # -- resuming -----------------------------------------------------------------------------

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint of the present stage holds beside the results, as JSON values."""
        return {"stage": self._stage - 1, "stages": self.stages, "changes": self._changes}

    def restore(self, found: Checkpoint, net: Supernet) -> None:
        """Go on from a checkpoint: bring a net's units into the order of its weights.

        Raises:
            FileError: the orders are none of this net's.
        """
        self._changes = found.header["changes"]
        self.stages = [dict(facts) for facts in found.header["stages"]]
        orders = found.header["orders"] if self._changes else {}
        now = net.orders
        try:
            net.reorder(
                {name: [now[name].index(unit) for unit in order] for name, order in orders.items()}
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FileError(f"{self.path} holds no valid orders: {error}") from error
        self.results = found.results
        self._found = found
