"""Passes over training data that are the same whenever they are made."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any

from nestling.checkpoint import RandomState, generators_of, seed_all


def fixed_passes(loader: Iterable[Any], seed: int, epochs: int = 1) -> Generator[Any, None, None]:
    """Yield the batches of some epochs, which follow from the seed, not from what came before.

    Close the iterator, or read it to its end: the random states and the loader's place are then as
    they were.

    Args:
        loader: a `Batches`, a DataLoader, a list of batches ...
        seed: of the order and of random crops.
        epochs: how often to read it.
    """
    own = generators_of(loader)
    before, place = RandomState.now(own), getattr(loader, "epoch", None)
    at = getattr(loader, "at", None)
    try:
        seed_all(seed)
        for number, generator in enumerate(own.values()):
            generator.manual_seed(seed + number)
        for epoch in range(epochs):
            yield from at(seed + epoch) if callable(at) else loader
    finally:
        before.restore(own)
        if callable(at) and place is not None:
            loader.epoch = place  # type: ignore[attr-defined]
