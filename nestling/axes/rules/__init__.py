"""Op rules, one file a family; importing the package fills the table."""

from nestling.axes.rules import (
    attention,
    contractions,
    indexing,
    norms,
    pointwise,
    recurrent,
    signals,
    views,
)
from nestling.axes.rules.modules import MODULES, lookup_module, module_rule
from nestling.axes.rules.table import RULES, Rule, lookup, rule

__all__ = [
    "MODULES",
    "RULES",
    "Rule",
    "attention",
    "contractions",
    "indexing",
    "lookup",
    "lookup_module",
    "module_rule",
    "norms",
    "pointwise",
    "recurrent",
    "rule",
    "signals",
    "views",
]
