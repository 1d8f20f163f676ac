"""Ask a question, see the order after each stage, and move the sliders."""

from __future__ import annotations

import itertools
from typing import Any

import psycopg
from starlette.requests import Request
from starlette.responses import Response

from pgrerank.errors import PgrerankError
from pgrerank.explain.heat_map import timeline
from pgrerank.judgements import judged_documents
from pgrerank.studio.asked import Asked, ask
from pgrerank.studio.knobs import Knobs, knobs_of, sliders
from pgrerank.studio.state import (
    Studio,
    chosen_reranker,
    names_of_rerankers,
    sets_of,
    studio_of,
    whole_number,
    whose,
)

SET = "studio"
"""The set of judgements that clicks go to where there is none yet."""
SHOWN = (5, 10, 20)


def ask_page(request: Request) -> Response:
    """The question's form; with a question, what the stages made of it."""
    studio, given = studio_of(request), request.query_params
    query = given.get("query", "").strip()
    with studio.connections.connection() as connection:
        reranker = chosen_reranker(connection, given.get("reranker"))
        values = _form(connection, given.get("set", "")) | {"query": query, "asked": None}
        if reranker is None:
            return studio.page(request, "ask", reranker=None, examples=[], **values)
        own = knobs_of(reranker.settings)
        knobs = knobs_of(reranker.settings, given)
        if query:
            asked = ask(connection, reranker, query, own, knobs)
            studio.searches.keep(asked)
            values |= shown(studio, request, asked, knobs, values["set"])
        else:
            values["examples"] = _examples(connection, values["set"]) if values["sets"] else []
        return studio.page(
            request,
            "ask",
            reranker=reranker,
            own=own,
            sliders=sliders(knobs, own),
            settings=knobs,
            **values,
        )


def _form(connection: psycopg.Connection[Any], name: str) -> dict[str, Any]:
    """What the form offers; judgements go to the set of that name, or to the first."""
    sets = {one.name: one for one in sets_of(connection) or []}
    name = name or next(iter(sets), SET)
    return {
        "rerankers": names_of_rerankers(connection),
        "sets": sets,
        "set": name,
        "tally": sets.get(name),
        "whose": whose(connection),
    }


def orders_part(request: Request) -> Response:
    """The columns by other knobs, of scores that are known; the cross-encoder's are added to."""
    studio, given = studio_of(request), request.query_params
    asked = studio.searches.get(given.get("search", ""))
    if asked is None:
        raise PgrerankError("This search is not kept any more: ask again.")
    knobs = knobs_of(asked.reranker.settings, given)
    unread = asked.unread(knobs)
    if unread and "complete" in given:
        with studio.connections.connection() as connection:
            asked.read_more(connection, unread)
    name = given.get("set", "")
    return studio.page(request, "orders", **shown(studio, request, asked, knobs, name))


def shown(
    studio: Studio, request: Request, asked: Asked, knobs: Knobs, qrels_set: str
) -> dict[str, Any]:
    """What the columns' template wants, with the judgements of a set."""
    given = request.query_params
    number = whole_number(given.get("shown", ""), "shown", SHOWN[1], 1, 50)
    orders = asked.orders(knobs)
    with studio.connections.connection() as connection:
        asked.read_titles(connection, itertools.chain(*(keys[:number] for keys in orders.values())))
        judged = judged_of(connection, qrels_set, asked.query)
    return {
        "asked": asked,
        "columns": asked.columns(orders, number),
        "judged": judged,
        "shown": number,
        "is_moved": knobs != asked.knobs,
        "is_overruling": not knobs.blend,
        "unread": len(asked.unread(knobs)),
        "unknown": asked.unknown(knobs),
        "times": timeline(asked.trace.times),
        "variant": knobs.variant(asked.own, asked.reranker.name).text,
    }


def judged_of(connection: psycopg.Connection[Any], name: str, query: str) -> dict[str, int]:
    """A query's judgements in a set, as far as the role may read them."""
    try:
        return judged_documents(connection, name, query)
    except psycopg.errors.InsufficientPrivilege:
        return {}


def _examples(connection: psycopg.Connection[Any], name: str) -> list[str]:
    """A few questions that were asked or judged, to begin with."""
    rows = connection.execute(
        "SELECT query FROM pgrerank.queries WHERE qrels_set = %s ORDER BY md5(id) LIMIT 5", (name,)
    ).fetchall()
    return [query for (query,) in rows]
