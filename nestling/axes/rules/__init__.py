"""Op rules, one file a family; importing the package fills the table."""

from nestling.axes.rules import attention, contractions, indexing, norms, pointwise, views
from nestling.axes.rules.table import RULES, Rule, lookup, rule

__all__ = [
    "RULES",
    "Rule",
    "attention",
    "contractions",
    "indexing",
    "lookup",
    "norms",
    "pointwise",
    "rule",
    "views",
]
