"""Methods: the named recipes. A method is a file here with a function of its name.

A recipe puts a ranker, an objective and a search together: given a `Run`, it trains and returns the
subnets to offer, by name. A new file is found by its name; nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from torch import nn

from nestling import catalogue
from nestling.catalogue import Catalogue
from nestling.spec import Spec

Recipe: TypeAlias = Callable[..., Mapping[str, tuple[Spec, nn.Module]]]

_ALL = Catalogue(__name__, "method")
names, options = _ALL.names, catalogue.options
find: Callable[[str], Recipe] = _ALL.find
check_options = _ALL.check_options
