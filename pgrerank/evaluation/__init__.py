"""How good an order is: measures by ir-measures over qrels and runs."""

from pgrerank.evaluation.measures import Qrels, Run, measure

__all__ = ["Qrels", "Run", "measure"]
