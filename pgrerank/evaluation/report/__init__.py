"""A report of an evaluation, or of two side by side: HTML, plots, CSV and JSON in one folder."""

from pgrerank.evaluation.report.read import read_evaluation
from pgrerank.evaluation.report.write import write_report

__all__ = ["read_evaluation", "write_report"]
