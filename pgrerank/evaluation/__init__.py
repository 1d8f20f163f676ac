"""How good an order is: measures by ir-measures over qrels and runs, and whether two differ."""

from pgrerank.evaluation.measures import measure, measure_queries
from pgrerank.evaluation.significance import Comparison, compare

__all__ = ["Comparison", "compare", "measure", "measure_queries"]
