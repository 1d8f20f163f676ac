"""A click that says how relevant a document is."""

from __future__ import annotations

import psycopg
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pgrerank.errors import SettingsError
from pgrerank.judgements import judge, list_sets
from pgrerank.studio.state import MARKS, grant_of_judgements, studio_of

RELEVANCES = {str(relevance): relevance for relevance in MARKS} | {"": None}


def judge_document(request: Request, form: dict[str, str]) -> Response:
    """Write a judgement, or take it back where it has no relevance; answers the set's counts."""
    name, query, key = (form.get(field, "").strip() for field in ("set", "query", "key"))
    relevance = form.get("relevance", "")
    if not name:
        raise SettingsError("a judgement wants a set to go to: give that a name")
    if relevance not in RELEVANCES:
        raise SettingsError(f"relevance is {relevance!r}, expected 0, 1 or 2, or nothing")
    with studio_of(request).connections.connection() as connection:
        try:
            judge(connection, name, query, key, RELEVANCES[relevance])
        except psycopg.errors.InsufficientPrivilege as error:
            raise SettingsError(
                f"role {connection.info.user} may not judge: have the owner run"
                f" {grant_of_judgements(connection)}"
            ) from error
        counts = [one for one in list_sets(connection) if one.name == name]
    queries, judgements = (counts[0].queries, counts[0].judgements) if counts else (0, 0)
    return JSONResponse(
        {"relevance": RELEVANCES[relevance], "queries": queries, "judgements": judgements}
    )
