"""Errors: each states the rule that was broken, the value that broke it, and the cure."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable

_FOLDED = re.compile(r"(\d+)(?:[-,]\d+)+")  # as a report writes the numbers of like layers


class NestlingError(Exception):
    """Base of every error that a user can cause; the command line prints it and exits with 2."""


class ModelError(NestlingError, ValueError):
    """A model that cannot become a supernet, or a call that does not fit the model."""


class SpecError(NestlingError, ValueError):
    """An unknown axis, a count that is not allowed, or a spec of another space or order."""


class BudgetError(NestlingError, ValueError):
    """A budget that no subnet meets, or one that cannot be answered on this machine."""


class FileError(NestlingError, ValueError):
    """A model file, profile or checkpoint that cannot be read or written."""


class DataError(NestlingError, ValueError):
    """A data set that is missing or damaged, or a batch that does not fit."""


class EngineError(NestlingError, RuntimeError):
    """A request that an engine refuses, or that it cannot answer."""


class FullError(EngineError):
    """An engine's queue is full: the request was not taken, and can be tried again later."""


class ExpiredError(EngineError, TimeoutError):
    """A request's deadline came before it could be answered, so that it was not run."""


class UncalibratedWarning(UserWarning):
    """A subnet is evaluated with norm statistics that are mere slices of the full net's."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the nearest known word, or an empty string.

    A name as reports fold it, such as `blocks.0-3.mlp`, is unfolded.

    Args:
        word: what the user wrote.
        known: the words that would have been accepted.

    Example:
        >>> did_you_mean("hiden", ["hidden", "depth"])
        "; did you mean 'hidden'?"
    """
    words = list(known)
    pattern = _FOLDED.sub("*", word)
    if pattern != word and any(fnmatch.fnmatchcase(each, f"{pattern}*") for each in words):
        one = _FOLDED.sub(r"\1", word)
        return f"; the report folds like names into one: write {one} or the pattern {pattern}"
    near = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def brief(error: BaseException) -> str:
    """Return an error's type and the first line of its text; torch adds a list of overloads.

    Example:
        >>> brief(ValueError("no such size, but expected one of:"))
        'ValueError: no such size'
    """
    first = (str(error).strip().splitlines() or [""])[0].removesuffix(", but expected one of:")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
