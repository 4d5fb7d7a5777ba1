"""Catalogues: functions that are found by the name of their file."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nestling.errors import ModelError, did_you_mean
from nestling.options import check_values


@dataclass(frozen=True)
class Catalogue:
    """The functions of a folder, one a file, by the names of the files with `-` for `_`.

    A new file is found by its name, and no list of them is kept. A file of the folder without such
    a function is a part that the others share.

    Attributes:
        package: the folder, as it is imported.
        noun: what one of the functions is, as errors say it.
        plural: of the noun; with an s by default.
        function: what it is called in every file; by default as its file.
        generator: whether only generator functions count.

    Example:
        >>> Catalogue("nestling.methods", "method").names()
        ['individual', 'uniform']
    """

    package: str
    noun: str
    plural: str = ""
    function: str = ""
    generator: bool = False

    def names(self) -> list[str]:
        """Return all names, in alphabetical order."""
        return sorted(name for name in self._files() if self._function(name) is not None)

    def find(self, name: str) -> Callable[..., Any]:
        """Return the function of a name; no other file is loaded.

        Raises:
            ModelError: there is none.
        """
        found = self._function(name) if name in self._files() else None
        if found is not None:
            return found
        known = self.names()
        plural = self.plural or f"{self.noun}s"
        raise ModelError(
            f"unknown {self.noun} {name!r:.80}{did_you_mean(str(name), known)}; the {plural} are "
            f"{', '.join(known)}"
        )

    def check_options(
        self, name: str, function: Callable[..., Any], given: Mapping[str, Any]
    ) -> None:
        """Check that the function of a name takes all of the options, with these values.

        Raises:
            ModelError: it has no such option.
            NestlingError: a value is none that the option's annotation allows.
        """
        known = options(function)
        for option in given:
            if option not in known:
                near = did_you_mean(option, known)
                raise ModelError(
                    f"the {self.noun} {name!r} has no option {option!r}{near}; its options are "
                    f"{', '.join(known) or 'none'}"
                )
        check_values(function, given)

    def _files(self) -> list[str]:
        folder = importlib.import_module(self.package)
        return [info.name.replace("_", "-") for info in pkgutil.iter_modules(folder.__path__)]

    def _function(self, name: str) -> Callable[..., Any] | None:
        """Return the function of a file of the folder; None where it has none."""
        file = name.replace("-", "_")
        module = importlib.import_module(f"{self.package}.{file}")
        found: Callable[..., Any] | None = getattr(module, self.function or file, None)
        counts = inspect.isgeneratorfunction if self.generator else inspect.isfunction
        return found if counts(found) else None


def options(function: Callable[..., Any]) -> list[str]:
    """Return the names of the options that a function takes: what it takes by keyword alone."""
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
