"""How good an order is: measures by ir-measures over qrels and runs, and whether two differ."""

from pgrerank.evaluation.measures import Qrels, Run, measure, measure_queries
from pgrerank.evaluation.significance import Comparison, compare

__all__ = ["Comparison", "Qrels", "Run", "compare", "measure", "measure_queries"]
