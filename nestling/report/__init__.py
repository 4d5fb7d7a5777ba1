"""What a user looks at: tables, pictures and HTML reports, of a menu and of runs compared."""

from nestling.report.comparison import comparison
from nestling.report.html import report_html
from nestling.report.lineup import Lineup, line_up
from nestling.report.lineup_html import lineup_html
from nestling.report.of_menu import page_of
from nestling.report.pareto import pareto
from nestling.report.rows import Page, Row
from nestling.report.runs import ReadRun, read_run
from nestling.report.search_path import search_path
from nestling.report.searchlog import SearchLog, read_search
from nestling.report.seeds import Point, Result, Summary, at_budget, best_within, curve, summarize
from nestling.report.skyline import skyline, skylines
from nestling.report.table import plain, table

__all__ = [
    "Lineup",
    "Page",
    "Point",
    "ReadRun",
    "Result",
    "Row",
    "SearchLog",
    "Summary",
    "at_budget",
    "best_within",
    "comparison",
    "curve",
    "line_up",
    "lineup_html",
    "page_of",
    "pareto",
    "plain",
    "read_run",
    "read_search",
    "report_html",
    "search_path",
    "skyline",
    "skylines",
    "summarize",
    "table",
]
