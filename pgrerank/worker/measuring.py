"""Measures orders for `pgrerank.evaluate`: the database searches, and has no ir-measures."""

from __future__ import annotations

from typing import Any

from pgrerank.errors import RequestError
from pgrerank.evaluation.orders import measure_orders
from pgrerank.evaluation.traces import Trace


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Rows of the orders after each stage.

    The request has `qrels`, relevance by query and key; `traces`, by query an `exact` and a whole
    search as `pgrerank._trace` gives them; and the names of `measures`. Raises RequestError where
    it is malformed, SettingsError for an unknown measure or without ir-measures.
    """
    try:
        qrels = {
            str(query): {str(key): int(relevance) for key, relevance in documents.items()}
            for query, documents in request["qrels"].items()
        }
        asked = {
            which: {
                query: Trace.from_json(both[which]) for query, both in request["traces"].items()
            }
            for which in ("exact", "trace")
        }
        measures = [str(name) for name in request["measures"]]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RequestError(
            f"malformed searches to measure: {type(error).__name__}: {error}", sqlstate="22023"
        ) from error
    if not measures or not qrels:
        raise RequestError("nothing to measure: no measures, or no qrels", sqlstate="22023")
    return {"orders": measure_orders(qrels, asked["trace"], asked["exact"], measures)[0]}
