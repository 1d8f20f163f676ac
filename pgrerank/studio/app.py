"""The application: its routes, and what becomes of errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import psycopg
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pgrerank.errors import PgrerankError
from pgrerank.studio.jobs import message_of
from pgrerank.studio.security import Gate, check_write, read_form
from pgrerank.studio.state import Studio, studio_of
from pgrerank.studio.views import ask, compare, judge, measure, status, why

__all__ = ["create_app"]

Write = Callable[[Request, dict[str, str]], Response]
_STATIC = Path(__file__).parent / "static"


def create_app(studio: Studio) -> Gate:
    """Make the application of one run; its views run in threads of their own."""
    app = Starlette(
        routes=[
            Route("/", ask.ask_page),
            Route("/orders", ask.orders_part),
            Route("/why", why.why_part),
            Route("/judge", _writing(judge.judge_document), methods=["POST"]),
            Route("/measure", measure.measure_page),
            Route("/jobs", _writing(measure.start_job), methods=["POST"]),
            Route("/backfill", _writing(measure.start_backfill), methods=["POST"]),
            Route("/jobs/{job}", measure.job_page),
            Route("/jobs/{job}/progress", measure.job_progress),
            Route("/jobs/{job}/report", measure.job_report),
            Route("/jobs/{job}/stop", _writing(measure.stop_job), methods=["POST"]),
            Route("/jobs/{job}/apply", _writing(measure.apply_job), methods=["POST"]),
            Route("/compare", compare.compare_page),
            Route("/compare/start", _writing(compare.start_contest), methods=["POST"]),
            Route("/compare/{contest}", compare.contest_page),
            Route("/compare/{contest}/vote", _writing(compare.vote), methods=["POST"]),
            Route("/status", status.status_page),
            Route("/studio.css", _style),
            Route("/studio.js", _script),
        ],
        exception_handlers={
            psycopg.Error: _explain,
            PgrerankError: _explain,
            HTTPException: _explain,
            Exception: _explain,
        },
    )
    app.state.studio = studio
    return Gate(app, studio.secrets)


def _writing(view: Write) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint for forms of our own pages only."""

    async def endpoint(request: Request) -> Response:
        form = await read_form(request)
        check_write(request, form, studio_of(request).secrets.csrf)
        return await run_in_threadpool(view, request, form)

    return endpoint


def _explain(request: Request, error: Exception) -> Response:
    """What went wrong and the remedy: a page, or a part of one for the script."""
    if isinstance(error, HTTPException):
        status, message, hint = error.status_code, str(error.detail), ""
    elif isinstance(error, psycopg.OperationalError):
        status, (message, hint) = 503, message_of(error)
    elif isinstance(error, psycopg.Error | PgrerankError):
        status, (message, hint) = 422, message_of(error)
    else:
        status, message, hint = 500, f"{type(error).__name__}: {error}", "The terminal has more."
    template = "problem" if request.headers.get("x-studio") else "error"
    studio = studio_of(request)
    return studio.page(request, template, status=status, message=message, hint=hint, whose=("", ""))


def _style(request: Request) -> Response:
    text = studio_of(request).environment.get_template("studio.css.jinja").render()
    return Response(text, media_type="text/css", headers={"Cache-Control": "no-cache"})


def _script(request: Request) -> Response:  # noqa: ARG001 - as all views
    text = (_STATIC / "studio.js").read_text("utf-8")
    return Response(text, media_type="text/javascript", headers={"Cache-Control": "no-cache"})
