"""The governor: at run time, turns a policy and what is seen into a choice from the menu.

`step(state, reading)` is a pure function: the same readings give the same choices, in a test, in a
simulation and in the engine. A policy is a file here with a function of its name, found by it:
given a `Forecast` and its options, it returns a `Policy`, whose judge says of one entry whether it
could go on for good with what arrives, and whose relief whether it may run now with what waits, and
both how many examples it may run. What is common to all policies is in `stepping.py`:
readings that make no sense, corrections of the profile, and going down fast but up slowly. The
argument `objective=` names a policy; objectives of training (`nestling.objectives`) are others.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from nestling import catalogue
from nestling.catalogue import Catalogue
from nestling.errors import ModelError
from nestling.governor.forecast import Forecast
from nestling.governor.records import Choice, Policy, Reading, State
from nestling.governor.stepping import begin, step

MakePolicy: TypeAlias = Callable[..., Policy]

_ALL = Catalogue(__name__, "objective")
names, options = _ALL.names, catalogue.options
find: Callable[[str], MakePolicy] = _ALL.find


def policy(name: str, forecast: Forecast, given: Mapping[str, Any]) -> Policy:
    """Return the policy of a name for a menu on this device.

    Args:
        name: of a file of this folder.
        forecast: what the menu's entries cost.
        given: the policy's options.

    Raises:
        ModelError: there is no such policy, or it takes no such option.
        BudgetError: an option is no sensible number, or no entry meets the objective (the message
            names the fastest).

    Example:
        >>> forecast = Forecast.of({"full": 0.9, "half": 0.8}, {1: {"full": 8.0, "half": 4.0}})
        >>> policy("latency", forecast, {"ms": 20}).goal
        'p99 <= 20 ms'
    """
    make = find(name)
    _ALL.check_options(name, make, given)
    parameters = inspect.signature(make).parameters.values()
    required = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    missing = [option for option in required if option not in given]
    if missing:
        raise ModelError(f"the objective {name!r} needs {', '.join(f'{o}=' for o in missing)}")
    return make(forecast, **given)


__all__ = [
    "Choice",
    "Forecast",
    "MakePolicy",
    "Policy",
    "Reading",
    "State",
    "begin",
    "find",
    "names",
    "options",
    "policy",
    "step",
]
