"""Runs the demo: Python's own documentation, real models, one SQL call for each question."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from psycopg.types.json import Json

from pgrerank import embedded
from pgrerank.catalog import fetch_one, register_model
from pgrerank.demo.corpus import Entry, read_corpus
from pgrerank.demo.models import MODELS
from pgrerank.demo.questions import load_qrels, load_questions
from pgrerank.demo.report import (
    show_end,
    show_measures,
    show_question,
    show_sql,
    show_studio,
)
from pgrerank.errors import PgrerankError, WorkerError, extra
from pgrerank.evaluation.orders import measure_orders
from pgrerank.evaluation.traces import Trace, ask_one
from pgrerank.evaluation.variant import Variant
from pgrerank.install import schema
from pgrerank.judgements import Judgements, save_set
from pgrerank.terminal import document_progress, note
from pgrerank.worker.backfill import backfill
from pgrerank.worker.child import worker_process

SHOWN_STAGES = ("dense", "lexical", "maxsim", "cross_encoder")
SEARCH = "SELECT * FROM pgrerank.stdlib_search(%s)"
SHOWN = 5
BEGINNING = """
Encoding {pending} entries, once; that takes a minute or two. Each becomes
  one vector, for recall by pgvector          a vector a token, for MaxSim
  its words with their weights, for BM25      (the cross-encoder reads at search time)
Then come the first five answers to a dozen questions after each of these stages, side by side,
and what each stage brings on {questions} questions that were judged by hand, with its milliseconds.
"""


def run_demo(data: Path, *, keep: bool, studio: bool = False, limit: int | None = None) -> None:
    """Set up what is missing below `data`, ask the questions, print orders and measures.

    `limit` takes only so many entries of the corpus, and only the questions that are shown, for a
    quick look. With `studio` the page is served in place of asking, until Ctrl-C. With `keep` the
    server and the worker stay up, until the next run or `stop_demo`.
    Raises PgrerankError for what stands in the way.
    """
    with contextlib.ExitStack() as running:
        running.enter_context(_alone(data))
        stop_demo(data)
        server = embedded.start(data / "postgres", detach=keep)
        if not keep:
            running.enter_context(server)
        connection = running.enter_context(psycopg.connect(server.dsn, autocommit=True))
        _set_up(connection, limit)
        why = f": {server.without_kernel}" if server.without_kernel else ""
        note(f"MaxSim by {schema.maxsim_engine(connection)}{why}")
        _encode(connection, server.dsn)
        with worker_process(server.dsn, data / "worker.log", "--preload", keep=keep) as worker:
            (data / "worker.pid").write_text(str(worker.pid), "utf-8")
            if studio:
                _serve_studio(server.dsn)
            else:
                _ask(connection, brief=limit is not None)
            if keep or not studio:
                show_end(server.dsn, kept=keep)


@contextlib.contextmanager
def _alone(data: Path) -> Iterator[None]:
    """Hold a folder, so that no second run stops the server of this one."""
    data.mkdir(parents=True, exist_ok=True)
    with open(data / "demo.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PgrerankError(
                f"a demo is running on {data}: end it by Ctrl-C there, or give another --data"
            ) from error
        yield


def _serve_studio(dsn: str) -> None:
    with extra("studio", "pgrerank studio"):
        from pgrerank.studio.serving import has_desktop, run_studio
    run_studio(dsn, None, open_browser=has_desktop(), on_ready=show_studio)


def stop_demo(data: Path) -> bool:
    """Stop what a run with `keep` left running; returns whether there was anything."""
    server = embedded.running(data / "postgres")
    if server is None:
        return False
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        worker = connection.execute(
            "SELECT 1 FROM pg_stat_activity WHERE application_name = 'pgrerank heartbeat'"
        ).fetchone()
    if worker is not None:  # so the process of that id is still the worker
        os.kill(int((data / "worker.pid").read_text("utf-8")), signal.SIGTERM)
    server.stop()
    return True


def _set_up(connection: psycopg.Connection[Any], limit: int | None) -> None:
    """Set up schema, corpus, models and reranker, each where it is missing."""
    schema.install(connection)
    entries = _corpus(limit)
    version = hashlib.sha256(repr(entries).encode()).hexdigest()
    there = connection.execute("SELECT obj_description(to_regclass('stdlib'))").fetchone()
    if there != (version,):
        _load(connection, entries, version)
    connection.execute(
        "CREATE TABLE IF NOT EXISTS stdlib_measures"
        " (questions int, orders json, day date DEFAULT now())"
    )
    registered = {name for (name,) in connection.execute("SELECT name FROM pgrerank.models")}
    for model in MODELS:
        if model["name"] not in registered:
            register_model(connection, **model)
    if not connection.execute("SELECT 1 FROM pgrerank.rerankers").fetchone():
        connection.execute(
            "SELECT pgrerank.create_reranker('stdlib', 'stdlib', '{title,text}',"
            " embedding_model => 'minilm', late_interaction_model => 'minilm-tokens',"
            " cross_encoder_model => 'ms-marco', candidates => 100, maxsim_top => 7,"
            " timeout => '30 s')"
        )
    asked = {question.id: question.text for question in load_questions()}
    save_set(connection, "stdlib", Judgements(asked, load_qrels()), replace=True)


def _corpus(limit: int | None) -> list[Entry]:
    """Take the whole corpus, or a number of entries with the judged ones first."""
    entries = read_corpus()
    if limit:
        judged = {key for relevant in load_qrels().values() for key in relevant}
        entries = sorted(entries, key=lambda entry: entry.id not in judged)[:limit]
    return entries


def _load(connection: psycopg.Connection[Any], entries: list[Entry], version: str) -> None:
    python = sys.version.split()[0]
    note(f"reading the documentation of Python {python}: {len(entries)} entries")
    with connection.transaction():
        connection.execute(
            "DO $$ BEGIN PERFORM pgrerank.drop_reranker(name) FROM pgrerank.rerankers; END $$"
        )
        connection.execute("DROP TABLE IF EXISTS stdlib, stdlib_measures")
        connection.execute(
            "CREATE TABLE stdlib (id text PRIMARY KEY, module text, kind text, title text,"
            " text text)"
        )
        with connection.cursor().copy("COPY stdlib FROM STDIN") as copy:
            for entry in entries:
                copy.write_row((entry.id, entry.module, entry.kind, entry.title, entry.text))
        connection.execute(
            psycopg.sql.SQL("COMMENT ON TABLE stdlib IS {}").format(psycopg.sql.Literal(version))
        )


def _encode(connection: psycopg.Connection[Any], dsn: str) -> None:
    [pending] = fetch_one(connection.execute("SELECT count(*) FROM pgrerank.pending"))
    if pending:
        note(BEGINNING.format(pending=pending, questions=len(load_questions())))
    started = time.monotonic()
    with document_progress("encoding") as progress:
        total = asyncio.run(backfill(dsn, "stdlib", on_progress=progress))
    if total:
        seconds = time.monotonic() - started
        note(f"encoded {total} documents in {seconds:.0f} s: {total / seconds:.0f} documents/s")


def _ask(connection: psycopg.Connection[Any], *, brief: bool) -> None:
    """Ask each question by one call; print those that are shown, and what the first run measured.

    The first run asks all of them, or with `brief` those that are shown, and measures.
    """
    measures = connection.execute("SELECT questions, orders, day FROM stdlib_measures").fetchone()
    known = brief or measures is not None
    questions = [question for question in load_questions() if question.show or not known]
    qrels = {question.id: load_qrels()[question.id] for question in questions}
    variant = Variant("stdlib")
    show_sql(SEARCH)
    ask_one(connection, variant, questions[0].text)  # the session's first call connects
    traces: dict[str, Trace] = {}
    for question in questions:
        trace = traces[question.id] = ask_one(connection, variant, question.text)
        if trace.reason:
            raise WorkerError(f"the demo's worker did not answer as it should: {trace.reason}")
        if question.show:
            orders = [trace.order(stage)[:SHOWN] for stage in SHOWN_STAGES]
            show_question(question.text, SHOWN_STAGES, orders, qrels[question.id])
    if measures is not None:
        show_measures(*measures)
        return
    measured = measure_orders(qrels, traces, measures=["nDCG@10", "RR@10"])[0]
    connection.execute(
        "INSERT INTO stdlib_measures (questions, orders) VALUES (%s, %s)",
        (len(questions), Json(measured)),
    )
    show_measures(len(questions), measured)
