"""Two settings compared blind: the page of a duel, votes, and their counts."""

from __future__ import annotations

import random
from typing import Any

import psycopg
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from pgrerank.catalog import read_reranker, read_texts
from pgrerank.errors import EvaluationError, SettingsError
from pgrerank.evaluation.traces import ask_one
from pgrerank.evaluation.variant import Variant, parse_variant
from pgrerank.judgements import load_set
from pgrerank.studio.asked import beginning
from pgrerank.studio.blind import Contest
from pgrerank.studio.state import names_of_rerankers, sets_of, studio_of, whose

VOTES = ("left", "same", "right")
_SHOWN = 8
_LOGGED = 200
Order = list[tuple[str, str, str]]
"""Key, title and snippet of the first documents."""


def compare_page(request: Request) -> Response:
    """The form that begins a comparison, and the comparisons of this run."""
    studio, given = studio_of(request), request.query_params
    with studio.connections.connection() as connection:
        names = names_of_rerankers(connection)
        return studio.page(
            request,
            "compare",
            rerankers=names,
            sets=sets_of(connection) or [],
            a=given.get("a") or (names[0] if names else ""),
            b=given.get("b", ""),
            contests=list(reversed(studio.contests.values())),
            whose=whose(connection),
        )


def start_contest(request: Request, form: dict[str, str]) -> Response:
    """Begin a comparison on the questions of a set, of the log, or on those that were typed."""
    studio = studio_of(request)
    a, b = (parse_variant(form.get(field, "").strip()) for field in ("a", "b"))
    with studio.connections.connection() as connection:
        for variant in (a, b):
            read_reranker(connection, variant.reranker, variant.generation)
        questions = _questions(connection, form, a.reranker)
    if a == b:
        raise SettingsError("both sides are the same: give B another reranker or other settings")
    contest = Contest(a, b, questions)
    studio.contests[contest.identifier] = contest
    return RedirectResponse(f"/compare/{contest.identifier}", 303)


def contest_page(request: Request) -> Response:
    """A question answered by both, for a vote; questions that both answer alike are passed over."""
    studio, contest = studio_of(request), _contest_of(request)
    orders: dict[str, Order] = {}
    with studio.connections.connection() as connection:
        while not orders and (contest.duel or contest.questions):
            query = contest.duel.query if contest.duel else contest.questions[0]
            found = {
                "a": _order(connection, contest.a, query),
                "b": _order(connection, contest.b, query),
            }
            if found["a"] == found["b"]:
                contest.pass_over()
                continue
            duel = contest.duel or contest.ask()
            right = "b" if duel.left == "a" else "a"
            orders = {"left": found[duel.left], "right": found[right]}
        return studio.page(
            request, "contest", contest=contest, orders=orders, whose=whose(connection)
        )


def vote(request: Request, form: dict[str, str]) -> Response:
    """Count a vote, and go on to the next question."""
    contest = _contest_of(request)
    if form.get("vote") not in VOTES:
        raise SettingsError(f"vote is {form.get('vote')!r}, expected left, same or right")
    contest.vote(form.get("duel", ""), form["vote"])
    return RedirectResponse(f"/compare/{contest.identifier}", 303)


def _questions(
    connection: psycopg.Connection[Any], form: dict[str, str], reranker: str
) -> list[str]:
    """Questions in a random order, each once."""
    typed = [line.strip() for line in form.get("questions", "").splitlines() if line.strip()]
    if typed:
        return list(dict.fromkeys(typed))
    name = form.get("set", "")
    if name:
        questions = list(load_set(connection, name).queries.values())
    else:
        rows = connection.execute(
            "SELECT query FROM pgrerank.searches WHERE reranker = %s"
            " GROUP BY query ORDER BY max(searched_at) DESC LIMIT %s",
            (reranker, _LOGGED),
        ).fetchall()
        questions = [query for (query,) in rows]
    if not questions:
        raise EvaluationError(
            f"the log has no searches of reranker {reranker}: type some questions, choose a set of"
            " judgements, or have searches logged: pgrerank alter NAME --log-sample 1"
        )
    random.shuffle(questions)
    return questions


def _order(connection: psycopg.Connection[Any], variant: Variant, query: str) -> Order:
    trace = ask_one(connection, variant, query)
    if trace.reason is not None:
        raise EvaluationError(
            f"{variant.text} can't be compared while searches are degraded: {trace.reason};"
            " start a worker (pgrerank worker), or give searches more time (NAME:timeout=5 min)"
        )
    keys = list(trace.keys[:_SHOWN])
    texts = read_texts(connection, variant.reranker, keys, variant.generation) if keys else {}
    return [(key, *beginning(texts.get(key, ""))) for key in keys]


def _contest_of(request: Request) -> Contest:
    contest = studio_of(request).contests.get(request.path_params["contest"])
    if contest is None:
        raise HTTPException(404, "There is no such comparison in this run of studio.")
    return contest
