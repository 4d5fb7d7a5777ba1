"""The log of a search, as a picture needs it: what was evaluated, and the way it went."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from nestling import strictjson
from nestling.errors import FileError, NestlingError
from nestling.spec import Space, Spec

_CURE = "give the .jsonl file that `nestling search` wrote beside its .nest file"


class Seen(NamedTuple):
    """One evaluation.

    Attributes:
        spec: of the subnet.
        accuracy: 0 to 1, on the held-out slice or the part of it that was looked at.
        macs: its multiply-accumulates.
    """

    spec: Spec
    accuracy: float
    macs: int


class Tuned(NamedTuple):
    """One fine-tuning.

    Attributes:
        step: place in the chain of the net that was tuned.
        macs: its multiply-accumulates.
        before: its accuracy, 0 to 1.
        after: its accuracy with the tuned weights.
    """

    step: int
    macs: int
    before: float
    after: float


@dataclass(frozen=True)
class SearchLog:
    """What a search did.

    Attributes:
        search: its name.
        options: what it was made with.
        seed: of its random choices.
        seen: every evaluation, in order.
        chain: the net after each step, largest first; of a search that goes no steps, what it has
            found.
        steps: whether the chain is made of steps.
        tuned: the fine-tunings, in order.
        found: the result; empty while the search is not finished.
    """

    search: str
    options: Mapping[str, Any]
    seed: int
    seen: tuple[Seen, ...]
    chain: tuple[Seen, ...]
    steps: bool
    tuned: tuple[Tuned, ...] = field(default=())
    found: tuple[Seen, ...] = field(default=())


def read_search(path: str | os.PathLike[str], space: Space) -> SearchLog:
    """Read the log of a search, finished or not.

    Args:
        path: of the log.
        space: of the net that was searched; the multiply-accumulates are counted in it.

    Raises:
        FileError: the file cannot be read, is no log of a search, is damaged before its last line,
            or is that of another net.
    """
    header, rows = _rows(Path(path))
    seen, picks, steps, tuned, found = [], [], [], [], []
    scores: list[Seen] = []
    for number, row in rows:
        if row["kind"] not in _PLACES:
            continue
        one = _seen(row, space, f"{path}, line {number}")
        if row["kind"] in ("score", "candidate"):
            seen.append(one)
        if row["kind"] == "score":
            scores.append(one)
        if row["kind"] == "pick":
            picks.append(one)
        if row["kind"] == "step":
            steps.append(one)
        if row["kind"] == "found":
            found.append(one)
        if row["kind"] == "tune":
            before = steps or [*scores[:1], *picks]
            last = before[-1].accuracy if before else one.accuracy
            tuned.append(Tuned(max(len(before) - 1, 0), one.macs, last, one.accuracy))
    # A step may take several picks, or none; searches that have one a step keep no lines of steps.
    walked = steps or ([*scores[:1], *picks] if picks else [])
    chain = walked or found or scores
    if not chain:
        raise FileError(f"{path} has no evaluation yet, so there is nothing to draw; go on with it")
    return SearchLog(
        search=str(header.get("search", "search")),
        options=dict(header["options"]) if isinstance(header.get("options"), dict) else {},
        seed=header["seed"] if isinstance(header.get("seed"), int) else 0,
        seen=tuple(seen),
        chain=tuple(chain if walked else sorted(chain, key=lambda each: -each.macs)),
        steps=bool(walked),
        tuned=tuple(tuned),
        found=tuple(found),
    )


_PLACES = ("score", "candidate", "pick", "step", "tune", "found")  # lines of a spec


def _rows(path: Path) -> tuple[dict[str, Any], list[tuple[int, dict[str, Any]]]]:
    """Return the first line, and the others with their numbers; a torn last line is left out."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}; {_CURE}") from error
    parsed: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(lines, 1):
        try:
            row = strictjson.parse(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not ("kind" in row or number == 1):
            if number < len(lines) or number == 1:
                raise FileError(f"{path} is no log of a search (line {number}); {_CURE}")
            break
        parsed.append((number, row))
    if not parsed or "nestling search" not in parsed[0][1]:
        raise FileError(f"{path} is no log of a search; {_CURE}")
    return parsed[0][1], parsed[1:]


def _seen(row: Mapping[str, Any], space: Space, where: str) -> Seen:
    accuracy = row.get("accuracy")
    if isinstance(accuracy, bool) or not isinstance(accuracy, int | float):
        raise FileError(f"{where}: an evaluation has an accuracy, not {accuracy!r:.80}; {_CURE}")
    if not 0 <= accuracy <= 1 or not math.isfinite(accuracy):
        raise FileError(f"{where}: an accuracy lies between 0 and 1, not at {accuracy}; {_CURE}")
    counts = row.get("spec")
    try:
        spec = Spec(space, counts if isinstance(counts, dict) else {"": 0})
    except NestlingError as error:
        raise FileError(
            f"{where} does not fit the net, so that it is the log of another one ({error}); {_CURE}"
        ) from error
    return Seen(spec, float(accuracy), space.macs(spec))
