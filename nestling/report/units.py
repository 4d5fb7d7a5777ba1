"""Numbers as people read them: `4.1 M`, `1.1 MB`, `3.10 ms`, `99.20 %`, and names that fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MISSING = "–"


def human_count(count: float) -> str:
    """Return a count with a decimal prefix.

    Example:
        >>> [human_count(n) for n in (950, 64_000, 270_000, 4_100_000, 1_820_000_000)]
        ['950', '64.0 k', '0.27 M', '4.1 M', '1.8 G']
    """
    for prefix, unit, start in (("G", 1e9, 1e9), ("M", 1e6, 1e5), ("k", 1e3, 1e3)):
        if count >= start:
            return f"{_short(count / unit)} {prefix}"
    return f"{count:.0f}"


def human_bytes(count: float) -> str:
    """Return a number of bytes in decimal units.

    Example:
        >>> human_bytes(1_100_000), human_bytes(512)
        ('1.1 MB', '512 B')
    """
    text = human_count(count).replace("k", "kB").replace("M", "MB").replace("G", "GB")
    return text if text.endswith("B") else f"{text} B"


def human_ms(milliseconds: float) -> str:
    """Return milliseconds to three significant digits, without the unit.

    Example:
        >>> human_ms(3.1), human_ms(0.6123), human_ms(123.4)
        ('3.10', '0.612', '123')
    """
    decimals = 2 - math.floor(math.log10(milliseconds))
    return f"{milliseconds:.{max(0, decimals)}f}"


def human_interval(latency: tuple[float, float, float] | None) -> str:
    """Return the ends of a latency's interval with as many decimals as its median.

    Example:
        >>> human_interval((3.1, 3.02, 3.214))
        '3.02–3.21'
    """
    if latency is None:
        return MISSING
    median, low, high = latency
    decimals = len(human_ms(median).partition(".")[2])
    return f"{low:.{decimals}f}–{high:.{decimals}f}"


def human_percent(share: float | None) -> str:
    """Return a share as a percentage with two decimals, the way accuracies are compared.

    Example:
        >>> human_percent(0.992), human_percent(None)
        ('99.20 %', '–')
    """
    return MISSING if share is None else f"{100 * share:.2f} %"


def human_share(share: float) -> str:
    """Return a share as a short percentage, the way costs are compared.

    Example:
        >>> human_share(1.0), human_share(0.343), human_share(0.0731)
        ('100 %', '34 %', '7.3 %')
    """
    percent = 100 * share
    return f"{percent:.0f} %" if percent >= 9.95 else f"{percent:.1f} %"


def human_times(ratio: float | None) -> str:
    """Return a ratio such as a speed-up.

    Example:
        >>> human_times(5.136), human_times(13.67), human_times(None)
        ('5.14×', '13.7×', '–')
    """
    if ratio is None:
        return MISSING
    return f"{ratio:.{2 if ratio < 9.995 else 1 if ratio < 99.95 else 0}f}×"


def human_seeds(counts: Iterable[int]) -> str:
    """Return how many seeds there are, where methods may have different numbers of them.

    Example:
        >>> human_seeds([3, 3]), human_seeds([1]), human_seeds([5, 2])
        ('3 seeds', 'one seed', '2 to 5 seeds')
    """
    found = sorted(set(counts))
    if len(found) > 1:
        return f"{found[0]} to {found[-1]} seeds"
    return "one seed" if found == [1] else f"{found[0]} seeds"


def human_list_of(words: Sequence[str]) -> str:
    """Return words as a list in a sentence.

    Example:
        >>> human_list_of(["a"]), human_list_of(["a", "b", "c"])
        ('a', 'a, b and c')
    """
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def printable(text: str) -> str:
    """Return the text with control characters (line breaks, terminal escapes) made visible.

    Example:
        >>> printable("a" + chr(27) + "[2J")
        'a�[2J'
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def shorten(text: str, limit: int) -> str:
    """Return the text, its middle replaced by `…` when it is longer than `limit` characters.

    Both ends stay, since names of a kind differ there (`stage1.…channels`, `…-v2`).

    Example:
        >>> shorten("backbone.stages.0.blocks.1.conv1", 15)
        'backbon…1.conv1'
    """
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 2
    return f"{text[: limit - 1 - tail]}…{text[len(text) - tail :]}"


def _short(value: float) -> str:
    return f"{value:.{2 if value < 0.995 else 1 if value < 99.95 else 0}f}"


def human_list(facts: Mapping[str, Any], name: str) -> str:
    """Return a fact that is a list of numbers as text; empty where there is no such fact.

    Example:
        >>> human_list({"mean": [0.30529, 0.5]}, "mean")
        '0.3053, 0.5'
    """
    values = facts.get(name)
    if not isinstance(values, list) or not all(isinstance(v, int | float) for v in values):
        return ""
    return ", ".join(f"{value:.4g}" for value in values)
