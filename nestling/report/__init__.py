"""What a user looks at: the table, the pictures and the HTML report of a menu."""

from nestling.report.html import report_html
from nestling.report.of_menu import page_of
from nestling.report.pareto import pareto
from nestling.report.rows import Page, Row
from nestling.report.skyline import skyline
from nestling.report.table import plain, table

__all__ = ["Page", "Row", "page_of", "pareto", "plain", "report_html", "skyline", "table"]
