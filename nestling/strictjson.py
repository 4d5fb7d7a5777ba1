"""Strict JSON, as text and as files: what is written is read back equal, or it is an error.

The standard module takes NaN, doubled keys and nesting without end, and changes some values in
silence.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from nestling.errors import FileError
from nestling.files import StrPath, reading, write_atomically

MAX_BYTES = 64 * 2**20  # of a file
MAX_DEPTH = 64  # of nested lists and mappings

# A bracket, or a string; one that never ends is a match too, so that the scan stays linear.
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[][{}]', re.DOTALL)


def write(path: StrPath, value: Any) -> None:
    """Write a JSON file, indented, whole or not at all.

    Raises:
        FileError: a value that is not plain JSON (see `dump`), or a file that cannot be written.
    """
    try:
        payload = (dump(value, indent=1) + "\n").encode()
    except ValueError as problem:
        raise FileError(f"cannot save {path}: {problem}; change what is saved") from problem
    write_atomically(path, payload)


def read(path: StrPath, *, cure: str = "write it again") -> Any:
    """Read a JSON file of at most 64 MiB with the rules of `parse`.

    Args:
        path: the file.
        cure: what the user can do about a damaged file; ends the message of the error.

    Raises:
        FileError: the file is missing, cannot be read, is too large or is not valid JSON.
    """
    with reading(path, cure) as (file, size):
        if size > MAX_BYTES:
            raise ValueError(f"it may have at most {MAX_BYTES} bytes, and has {size}")
        return parse(file.read(MAX_BYTES))


def dump(value: Any, *, indent: int | None = None) -> str:
    """Return JSON text that `parse` reads back equal (tuples as lists).

    Raises:
        ValueError: a value that JSON cannot hold: NaN or infinity, a key that is not text, nesting
            deeper than 64, or any other type. The standard module would change some in silence.

    Example:
        >>> dump({"counts": (4, 8)})
        '{"counts":[4,8]}'
    """
    _check_plain(value, 1)
    separators = (",", ":") if indent is None else None
    text = json.dumps(
        value, ensure_ascii=False, allow_nan=False, indent=indent, separators=separators
    )
    text.encode()  # half a surrogate pair is no character
    return text


def _check_plain(value: Any, depth: int) -> None:
    if isinstance(value, (dict, list, tuple)):
        if depth > MAX_DEPTH:
            raise ValueError(f"values are nested at most {MAX_DEPTH} deep")
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    raise ValueError(f"a key must be text, not {key!r}")
        for item in value.values() if isinstance(value, dict) else value:
            _check_plain(item, depth + 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"a number must be finite, not {value}")
    elif value is not None and not isinstance(value, (str, int)):
        raise ValueError(f"a value must be plain JSON, not a {type(value).__name__}: {value!r:.80}")


def parse(text: str | bytes) -> Any:
    """Parse JSON strictly: no duplicate key, no NaN or infinity, at most 64 levels of nesting.

    Raises:
        ValueError: text that breaks a rule; never RecursionError.

    Example:
        >>> parse('{"width": [8, 16]}')
        {'width': [8, 16]}
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as problem:
            raise ValueError(f"it is not UTF-8 text at byte {problem.start}") from problem
    depth = 0
    for token in _TOKEN.finditer(text):
        if token[0] in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"JSON may be nested at most {MAX_DEPTH} deep")
        elif token[0] in "]}":
            depth -= 1
    try:
        value = json.loads(
            text, object_pairs_hook=_distinct, parse_constant=_refuse, parse_float=_finite
        )
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no character
    except json.JSONDecodeError as problem:
        raise ValueError(f"it is not valid JSON: {problem}") from problem
    except UnicodeEncodeError as problem:
        raise ValueError("it is not valid JSON: half of a surrogate pair") from problem
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} appears twice")
    return result


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"a number must be finite, not {word}")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"a number must be finite, not {digits[:80]}")
    return number
