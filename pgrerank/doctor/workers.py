"""Workers: whether any is known, lives, answers, and is of this version."""

from __future__ import annotations

import psycopg
from psycopg import errors

from pgrerank.doctor.finding import Connection, Found, Severity, ask
from pgrerank.install.schema import VERSION

START = "pgrerank worker --register"


def known_workers(connection: Connection) -> Found:
    """The workers that have announced themselves."""
    rows = ask(
        connection,
        "SELECT w.worker, w.host || ':' || w.port AS address, w.version, w.waiting, w.capacity,"
        " w.is_alive, clock_timestamp() - w.alive_at AS silent_for"
        " FROM pgrerank.workers w",
    )
    for row in rows:
        about = f"worker {row.worker} at {row.address}"
        if not row.is_alive:
            seconds = row.silent_for.total_seconds()
            message = f"has given no sign of life for {seconds:.0f} s"
            yield Severity.WARNING, about, message, START
        elif row.version not in (VERSION, None):
            message = f"is of version {row.version}, this package is {VERSION}"
            yield Severity.WARNING, about, message, f"pip install 'pgrerank[worker]=={VERSION}'"
        if row.waiting >= row.capacity:
            message = f"has as many requests waiting as it takes: {row.waiting}"
            yield Severity.WARNING, about, message, f"{START} --listen HOST:PORT  # one more"


def answering(connection: Connection) -> Found:
    """Whether a search would reach a worker, if any needs one."""
    [row] = ask(
        connection,
        "SELECT EXISTS (SELECT FROM pgrerank.rerankers r JOIN pgrerank.generations g"
        " ON (g.reranker, g.number) = (r.name, r.generation) WHERE coalesce(g.embedding_model,"
        " g.late_interaction_model, r.cross_encoder_model, r.listwise_model) IS NOT NULL)"
        " AS is_wanted",
    )
    if not row.is_wanted:
        return
    try:
        with connection.transaction():
            connection.execute("SELECT pgrerank.ping_worker()")
    except errors.QueryCanceled:
        raise
    except psycopg.Error as error:
        if connection.broken:
            raise
        said = error.diag.message_primary or str(error)
        yield Severity.ERROR, "searches", f"reach no worker: {said}", START
