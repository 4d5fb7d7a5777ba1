"""The log of a search: every evaluation as a line of JSON, and the answers to begin again from.

The first line says what the search is; then, in the order in which they were asked for, come
`score`, `pick`, `tune` and `cost` lines, which answer a request each. A `candidate` line stands
before the `pick` that it was part of, and a `step` line says what net a chain of steps has come to;
`found` lines at the end are the result.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nestling import strictjson
from nestling.checkpoint import differing
from nestling.errors import FileError
from nestling.files import write_atomically

VERSION = 1
ANSWERS = {  # kind of line to what it must have to answer a request
    "score": {"spec", "accuracy"},
    "pick": {"of", "place", "accuracy", "accuracies", "shares"},
    "tune": {"spec", "accuracy"},
    "cost": {"of", "costs"},
}


class Log:
    """Appends lines to a file, and gives back the answers that it held when it was opened.

    Args:
        path: of the file; None keeps nothing.
        facts: what a resumed search must share, as JSON values.
        resume: take the answers of a file that is there; otherwise it is replaced.

    Attributes:
        answers: the rows that answer requests, oldest first; the driver takes them from the left.

    Raises:
        FileError: the file cannot be read or written, is damaged before its last line, or is that
            of another search.
    """

    def __init__(self, path: Path | None, facts: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        self.answers: deque[dict[str, Any]] = deque()
        self._pending = b""  # the first line, until there is an answer to keep with it
        if path is None:
            return
        header = {"nestling search": VERSION, **facts}
        if resume and path.exists():
            rows, end = _read(path)
            if rows:
                _refuse_other(rows[0], header, path)
                self.answers.extend(row for row in rows[1:] if row.get("kind") in ANSWERS)
                _truncate(path, end)
                return
        self._pending = _lines([header])

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows, all in one go, so that an interruption loses at most these."""
        if self.path is None:
            return
        if self._pending:
            write_atomically(self.path, self._pending + _lines(rows))
            self._pending = b""
            return
        try:
            with self.path.open("ab") as file:
                file.write(_lines(rows))
        except OSError as error:
            raise FileError(
                f"cannot write {self.path}: {error.strerror or error}; what it holds is whole, so "
                "resume=True goes on from there"
            ) from error


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the rows up to the last answer, and where that ends in the file, in bytes.

    A last line that is not whole was being written when the search was stopped; it is left out.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    rows: list[dict[str, Any]] = []
    place = kept = end = 0
    for number, line in enumerate(lines, 1):
        row = _row(line)
        if row is None:
            if number < len(lines):
                raise FileError(
                    f"{path} is damaged in line {number}; cut it off before that line, or start "
                    "the search anew without resume"
                )
            break
        rows.append(row)
        place += len(line)
        if number == 1 or row.get("kind") in ANSWERS:
            kept, end = len(rows), place
    return rows[:kept], end


def _row(line: bytes) -> dict[str, Any] | None:
    """Return a line's row; None where it is not whole."""
    try:
        row = strictjson.parse(line)
    except ValueError:
        return None
    if not line.endswith(b"\n") or not isinstance(row, dict):
        return None
    if "nestling search" in row:
        return row
    return row if "kind" in row and row.keys() >= ANSWERS.get(row["kind"], set()) else None


def _truncate(path: Path, end: int) -> None:
    try:
        with path.open("r+b") as file:
            file.truncate(end)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error


def _refuse_other(theirs: Mapping[str, Any], ours: Mapping[str, Any], path: Path) -> None:
    """Check that a log is that of the same search; name what differs."""
    ours = strictjson.parse(strictjson.dump(dict(ours)))
    different = differing(_beside(theirs, ours), _beside(ours, theirs))
    if different:
        raise FileError(
            f"{path} is the log of another search, one with {', '.join(different)}; resume with "
            "the same search, net and seed, or start with another log"
        )


def _beside(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts with the options alone that others do not share: all of them are a long line."""
    mine, theirs = one.get("options"), other.get("options")
    if not isinstance(mine, dict) or not isinstance(theirs, dict):
        return dict(one)
    alone = {n: each for n, each in mine.items() if n not in theirs or theirs[n] != each}
    return {**one, "options": alone}


def _lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(strictjson.dump(dict(row)) + "\n" for row in rows).encode()
