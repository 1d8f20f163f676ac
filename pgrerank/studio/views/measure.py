"""Measure what each stage brings on judgements, and tune; backfill, which takes as long."""

from __future__ import annotations

import time
from functools import partial

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from pgrerank.catalog import call, fetch_one
from pgrerank.errors import EvaluationError, SettingsError
from pgrerank.evaluation.variant import Variant, parse_variant
from pgrerank.judgements import load_set
from pgrerank.studio.connections import Connections
from pgrerank.studio.jobs import Job
from pgrerank.studio.state import (
    Studio,
    grant_of_judgements,
    names_of_rerankers,
    sets_of,
    studio_of,
    whose,
)

REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'"
)
"""A report has its style in itself, and nothing else that could act."""
_POLL = 0.5
"""Seconds between two looks at what workers have still to encode."""


def measure_page(request: Request) -> Response:
    """Sets of judgements, what to measure on them, and the jobs of this run."""
    studio, given = studio_of(request), request.query_params
    with studio.connections.connection() as connection:
        return studio.page(
            request,
            "measure",
            sets=sets_of(connection),
            grant=grant_of_judgements(connection),
            rerankers=names_of_rerankers(connection),
            chosen=given.get("set", ""),
            variant=given.get("variant", ""),
            jobs=studio.jobs.latest(),
            whose=whose(connection),
        )


def start_job(request: Request, form: dict[str, str]) -> Response:
    """Begin to measure or to tune."""
    studio, name = studio_of(request), form.get("set", "").strip()
    variant = parse_variant(form.get("variant", "").strip())
    works = {"measure": _measure, "tune": _tune}
    if form.get("work") not in works:
        raise SettingsError(f"work is {form.get('work')!r}, expected measure or tune")
    with studio.connections.connection() as connection:
        load_set(connection, name)  # says which there are
    work = partial(works[form["work"]], studio, variant, name)
    job = studio.jobs.start(f"{form['work']} {variant.label} on {name}", work)
    return RedirectResponse(f"/jobs/{job.identifier}", 303)


def start_backfill(request: Request, form: dict[str, str]) -> Response:
    """Enqueue what a reranker lacks, for workers to encode, and watch them do it."""
    studio, name = studio_of(request), form.get("reranker", "")
    again = form.get("retry_failed") == "on"
    with studio.connections.connection() as connection:
        total = fetch_one(call(connection, "enqueue", {"reranker": name, "retry_failed": again}))[0]
    work = partial(_watch, studio.connections, name, total)
    job = studio.jobs.start(f"backfill {name}", work)
    return RedirectResponse(f"/jobs/{job.identifier}", 303)


def job_page(request: Request) -> Response:
    """One job: its progress, and what came of it."""
    studio, job = _job_of(request)
    with studio.connections.connection() as connection:
        return studio.page(request, "job", job=job, whose=whose(connection))


def job_progress(request: Request) -> Response:
    """How far a job is, for the page's script."""
    _, job = _job_of(request)
    return JSONResponse(job.shown())


def stop_job(request: Request, form: dict[str, str]) -> Response:
    """Have a job end at its next step."""
    _, job = _job_of(request)
    job.is_stopping = True
    return RedirectResponse(f"/jobs/{job.identifier}", 303)


def job_report(request: Request) -> Response:
    """The report of what was measured: the page that `pgrerank evaluate --report` writes."""
    from pgrerank.evaluation.report.contrast import contrast
    from pgrerank.evaluation.report.page import page

    _, job = _job_of(request)
    if job.evaluation is None:
        raise EvaluationError("this job has no report: it has measured nothing yet")
    text = page({"": job.evaluation}, contrast(job.evaluation, None))
    headers = {"Content-Security-Policy": REPORT_POLICY}
    return HTMLResponse(text.encode("utf-8", "replace"), headers=headers)


def apply_job(request: Request, form: dict[str, str]) -> Response:
    """Write what tuning recommends to the reranker."""
    from pgrerank.evaluation.tune import apply

    studio, job = _job_of(request)
    if job.evaluation is None:
        raise EvaluationError("this job has found nothing to write yet")
    with studio.connections.connection() as connection:
        chosen = apply(connection, job.evaluation)
    changes = ", ".join(f"{name} = {value}" for name, value in chosen.items())
    job.message = f"written: {changes}" if changes else "nothing gains by more than chance"
    return RedirectResponse(f"/jobs/{job.identifier}", 303)


def _measure(studio: Studio, variant: Variant, name: str, job: Job) -> str:
    return _evaluated(studio.connections, variant, name, job, is_tuned=False)


def _tune(studio: Studio, variant: Variant, name: str, job: Job) -> str:
    return _evaluated(studio.connections, variant, name, job, is_tuned=True)


def _evaluated(
    connections: Connections, variant: Variant, name: str, job: Job, *, is_tuned: bool
) -> str:
    from pgrerank.evaluation.evaluate import evaluate, search_all
    from pgrerank.evaluation.tune import tune

    with connections.open() as connection:
        judged = load_set(connection, name)
        searched = search_all(connection, variant, judged, phase=job.phase_of)
        tuning = tune(connection, searched, phase=job.phase_of) if is_tuned else None
        job.evaluation = evaluate(
            connection, searched, qrels=name, tuning=tuning, phase=job.phase_of
        )
    last, measure = job.evaluation["orders"][-1], job.evaluation["measures"][0]
    return f"{measure} {last['measures'][measure]:.3f} after {last['name'].removeprefix('+ ')}"


def _watch(connections: Connections, name: str, total: int, job: Job) -> str:
    """Wait until workers have encoded what is pending; says so where there are none."""
    with connections.open() as connection:
        left = total
        while left:
            left, failed, alive = fetch_one(
                connection.execute(
                    "SELECT count(*) FILTER (WHERE p.failed_at IS NULL),"
                    " count(*) FILTER (WHERE p.failed_at IS NOT NULL),"
                    " (SELECT count(*) FROM pgrerank.workers w WHERE w.is_alive)"
                    " FROM pgrerank.pending p WHERE p.reranker = %s",
                    (name,),
                )
            )
            of = "workers encode" if alive else "waiting for a worker: run pgrerank worker"
            job.phase = f"{of}; {failed} failed" if failed else of
            job.report(max(0, total - left), total)
            if left:
                time.sleep(_POLL)
    return f"{total} documents were pending" if total else "nothing was missing"


def _job_of(request: Request) -> tuple[Studio, Job]:
    studio = studio_of(request)
    job = studio.jobs.get(request.path_params["job"])
    if job is None:
        raise HTTPException(404, "There is no such job in this run of studio.")
    return studio, job
