"""The HTML report of evaluations: charts, tables, and an example of every kind of failure on one page."""

from megedit.evaluate.report.failures import Failure, classify
from megedit.evaluate.report.page import compare_check, load_result, render_report, write_report

__all__ = ["Failure", "classify", "compare_check", "load_result", "render_report", "write_report"]
