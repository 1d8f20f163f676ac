"""One document's why: its way through the stages, what each adds, and which words answer which."""

from __future__ import annotations

import math
from typing import Any

import psycopg
from psycopg.rows import dict_row
from starlette.requests import Request
from starlette.responses import Response

from pgrerank.catalog import call
from pgrerank.errors import PgrerankError
from pgrerank.evaluation.pools import STAGES_ALONE
from pgrerank.explain.explanation import Explanation, explanation
from pgrerank.explain.heat_map import LEVELS, Piece, pieces
from pgrerank.explain.stretches import Heat, answers, stretches
from pgrerank.stages import STAGES
from pgrerank.studio.asked import Asked
from pgrerank.studio.connections import Connections
from pgrerank.studio.knobs import knobs_of
from pgrerank.studio.state import grade, studio_of
from pgrerank.studio.views.ask import judged_of

_BESIDE = 3
"""The first documents, aligned with the one that is looked at: one scale of heat for them."""


def why_part(request: Request) -> Response:
    """A document of a search, in full."""
    studio, given = studio_of(request), request.query_params
    asked = studio.searches.get(given.get("search", ""))
    key = given.get("key", "")
    if asked is None or key not in asked.trace.keys:
        raise PgrerankError("This search is not kept any more: ask again.")
    knobs = knobs_of(asked.reranker.settings, given)
    orders = asked.orders(knobs)
    last = next(reversed(orders.values()))
    said: list[str] = []
    with studio.connections.connection() as connection:
        asked.read_titles(connection, [key])
        judged = judged_of(connection, given.get("set", ""), asked.query)
        found = _aligned(studio.connections, asked, [key, *last[:_BESIDE]], said)
    place = asked.trace.keys.index(key)
    return studio.page(
        request,
        "why",
        asked=asked,
        key=key,
        title=asked.title(key)[0],
        steps=_steps(asked, orders, key),
        shares=asked.shares(knobs, key),
        relevance=_known(asked.trace.relevance[place]),
        signals=_known((asked.said["scores"].get("signals") or {place: None})[place]),
        judged=grade(judged.get(key)),
        said=said,
        **_tokens(found, key, asked.texts.get(key, "")),
    )


def _steps(
    asked: Asked, orders: dict[str, list[str]], key: str
) -> list[tuple[str, int | None, float | None]]:
    """What a stage is called, the document's rank after it, and its score of it."""
    return [
        (STAGES[stage].label, keys.index(key) + 1 if key in keys else None, asked.score(stage, key))
        for stage, keys in orders.items()
    ]


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _aligned(
    connections: Connections, asked: Asked, keys: list[str], said: list[str]
) -> Explanation | None:
    """The documents with their tokens; None where the reranker has no tokens to align."""
    reranker = asked.reranker
    if reranker.model("late_interaction") is None:
        said.append("The reranker has no late-interaction model, which words are compared by.")
        return None
    arguments = {
        "reranker": reranker.name,
        "query": asked.query,
        "keys": list(dict.fromkeys(keys)),
        "stages": ["maxsim"],
        "generation": reranker.generation,
        "top_k": len(keys),
        "strict": False,
        "timeout": "20 s",
        "min_relevance": 0.0,
        **STAGES_ALONE,
    }
    with connections.open() as connection:
        connection.row_factory = dict_row
        connection.autocommit = False
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        connection.add_notice_handler(
            lambda diagnostic: said.append(str(diagnostic.message_primary))
        )
        rows = call(connection, "explain_search", arguments).fetchall()
        if rows and rows[0]["degraded"]:
            said.append(rows[0]["reason"])
        return explanation(connection, reranker.name, asked.query, reranker.generation, rows)


def _tokens(found: Explanation | None, key: str, text: str) -> dict[str, Any]:
    """The document's text in pieces, and what answers each of the query's tokens."""
    documents = found["documents"] if found is not None else []
    of_key = [one for one in documents if one["key"] == key and one["alignment"] is not None]
    if found is None or not of_key:
        return {"pieces": [Piece(text)], "answers": [], "least": 0.0, "most": 0.0}
    [document], heat = of_key, Heat(found)
    alignment = document["alignment"]
    assert alignment is not None
    return {
        "pieces": list(pieces(stretches(document["text"], alignment), alignment, heat)),
        "answers": [(one, heat.level(one.score, LEVELS)) for one in answers(alignment)],
        "least": heat.least,
        "most": heat.most,
    }
