"""Judgements in the database, by the name of a set; and those of what users clicked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from psycopg import sql
from psycopg.types.multirange import Multirange
from psycopg.types.range import Range

from pgrerank.catalog import read_reranker
from pgrerank.errors import EvaluationError
from pgrerank.judgements.files import read
from pgrerank.judgements.lines import normal
from pgrerank.judgements.types import Judgements

_EXAMPLES = 5
Connection = psycopg.Connection[Any]


class QrelsSet(NamedTuple):
    """A set of judgements in the database: its name, and counts; `relevant` of those above 0."""

    name: str
    queries: int
    judgements: int
    relevant: int


class Missing(NamedTuple):
    """Judged keys that a reranker's source lacks: how many of how many, and a few of them."""

    missing: int
    judged: int
    examples: list[str]


def save_set(
    connection: Connection, name: str, judgements: Judgements, *, replace: bool = False
) -> None:
    """Write a set, in one transaction.

    Raises EvaluationError for a set that is there, unless it is to be replaced, and psycopg.Error
    for what the database refuses.
    """
    with connection.transaction():
        for present in _sets(connection, name):
            if not replace:
                raise EvaluationError(
                    f"qrels set {name!r} is there already, with {present.queries} queries: give"
                    " another name, or replace it by --replace"
                )
        connection.execute("DELETE FROM pgrerank.queries WHERE qrels_set = %s", (name,))
        with (
            connection.cursor() as cursor,
            cursor.copy("COPY pgrerank.queries (qrels_set, id, query) FROM STDIN") as copy,
        ):
            for query, text in judgements.queries.items():
                copy.write_row((name, query, text))
        with (
            connection.cursor() as cursor,
            cursor.copy(
                "COPY pgrerank.qrels (qrels_set, query_id, key, relevance, passages) FROM STDIN"
            ) as copy,
        ):
            for query, documents in judgements.qrels.items():
                for key, relevance in documents.items():
                    stretches = judgements.passages.get(query, {}).get(key)
                    copy.write_row((name, query, key, relevance, _multirange(stretches)))


def load_set(connection: Connection, name: str) -> Judgements:
    """The judged queries of a set; raises EvaluationError for one that isn't there."""
    rows = connection.execute(
        "SELECT q.id, q.query, r.key, r.relevance, r.passages"
        " FROM pgrerank.queries q JOIN pgrerank.qrels r"
        " ON (r.qrels_set, r.query_id) = (q.qrels_set, q.id) WHERE q.qrels_set = %s"
        " ORDER BY q.id, r.key",
        (name,),
    ).fetchall()
    if not rows:
        raise _unknown(connection, name)
    qrels: dict[str, dict[str, int]] = {}
    passages: dict[str, dict[str, list[tuple[int, int]]]] = {}
    for query, _, key, relevance, stretches in rows:
        qrels.setdefault(query, {})[key] = relevance
        if stretches is not None:
            passages.setdefault(query, {})[key] = [(one.lower, one.upper) for one in stretches]
    return Judgements({query: text for query, text, _, _, _ in rows}, qrels, passages)


def _multirange(stretches: Sequence[tuple[int, int]] | None) -> Multirange[int] | None:
    return Multirange([Range(*one) for one in stretches]) if stretches else None


def judge(connection: Connection, name: str, query: str, key: str, relevance: int | None) -> None:
    """Write how relevant a document is to a query, into a set that is made if it isn't there.

    A relevance of None takes the judgement back, and with its last one the query. Raises
    psycopg.Error for what the database refuses.
    """
    identifier = _query_id(connection, name, query)
    of_query = {"set": name, "id": identifier, "query": query, "key": key, "relevance": relevance}
    with connection.transaction():
        if relevance is None:
            connection.execute(
                "DELETE FROM pgrerank.qrels"
                " WHERE (qrels_set, query_id, key) = (%(set)s, %(id)s, %(key)s)",
                of_query,
            )
            connection.execute(
                "DELETE FROM pgrerank.queries q WHERE (q.qrels_set, q.id) = (%(set)s, %(id)s)"
                " AND NOT EXISTS (SELECT FROM pgrerank.qrels r"
                " WHERE (r.qrels_set, r.query_id) = (q.qrels_set, q.id))",
                of_query,
            )
            return
        connection.execute(
            "INSERT INTO pgrerank.queries (qrels_set, id, query)"
            " VALUES (%(set)s, %(id)s, %(query)s) ON CONFLICT DO NOTHING",
            of_query,
        )
        connection.execute(
            "INSERT INTO pgrerank.qrels (qrels_set, query_id, key, relevance)"
            " VALUES (%(set)s, %(id)s, %(key)s, %(relevance)s)"
            " ON CONFLICT (qrels_set, query_id, key) DO UPDATE SET relevance = EXCLUDED.relevance",
            of_query,
        )


def judged_documents(connection: Connection, name: str, query: str) -> dict[str, int]:
    """The relevance of a query's documents in a set, by key; nothing for what isn't there."""
    return dict(
        connection.execute(
            "SELECT key, relevance FROM pgrerank.qrels WHERE (qrels_set, query_id) = (%s, %s)",
            (name, _query_id(connection, name, query)),
        ).fetchall()
    )


def find(connection: Connection, name: str, split: str = "test") -> Judgements:
    """Find judgements by a path, as `read` takes it, or by the name of a set.

    Raises EvaluationError for a name that is neither, FileError for a malformed file.
    """
    path = Path(name)
    if path.exists():
        return read(path, split)
    try:
        return load_set(connection, name)
    except EvaluationError as error:
        raise EvaluationError(f"there is no file {name!r}, and {error}") from error


def list_sets(connection: Connection) -> list[QrelsSet]:
    """The sets in the database, by name."""
    return _sets(connection)


def drop_set(connection: Connection, name: str) -> QrelsSet:
    """Forget a set, and say what was in it; raises EvaluationError for one that isn't there."""
    with connection.transaction():
        present = _sets(connection, name)
        if not present:
            raise _unknown(connection, name)
        connection.execute("DELETE FROM pgrerank.queries WHERE qrels_set = %s", (name,))
    return present[0]


def from_feedback(
    connection: Connection, reranker: str, *, relevant_from: float = 0.5
) -> Judgements:
    """Judgements of what `pgrerank.feedback` collected on a reranker's documents.

    A document whose mean relevance to a query, whatever that's case and spaces, is `relevant_from`
    or more is relevant (1), any other not (0). Left out are documents that are gone, and queries
    without a relevant one, which no order can answer. A query's id is made of its text, and so
    stays. Raises EvaluationError where nothing is left, psycopg.Error as `pgrerank.judged` does.
    """
    texts: dict[str, str] = {}
    given: dict[str, dict[str, list[float]]] = {}
    for query, key, relevance in connection.execute(
        "SELECT query, key, relevance FROM pgrerank.judged(%s) WHERE content ~ '\\S'", (reranker,)
    ):
        identifier = _identifier(query)
        texts.setdefault(identifier, query)
        given.setdefault(identifier, {}).setdefault(key, []).append(relevance)
    qrels = {
        identifier: {
            key: int(sum(values) / len(values) >= relevant_from)
            for key, values in documents.items()
        }
        for identifier, documents in given.items()
    }
    answered = {query: documents for query, documents in qrels.items() if any(documents.values())}
    if not answered:
        raise EvaluationError(
            f"reranker {reranker}: of {len(qrels)} queries with feedback none has a document of"
            f" relevance {relevant_from:g} or more: collect some by pgrerank.feedback"
        )
    return Judgements({query: texts[query] for query in answered}, answered)


def missing_keys(connection: Connection, reranker: str, judgements: Judgements) -> Missing:
    """Judged documents that a reranker's source has no row for, as far as the role sees.

    Raises psycopg.Error for a reranker that doesn't exist.
    """
    keys = sorted({key for documents in judgements.qrels.values() for key in documents})
    judged = read_reranker(connection, reranker)
    missing = connection.execute(
        sql.SQL(
            "SELECT k FROM unnest(%s::text[]) WITH ORDINALITY u (k, place)"
            " WHERE NOT EXISTS (SELECT FROM {table} d WHERE {key}::text = k) ORDER BY place"
        ).format(table=sql.SQL(judged.table), key=judged.key_of_source("d")),
        (keys,),
    ).fetchall()
    return Missing(len(missing), len(keys), [key for (key,) in missing[:_EXAMPLES]])


def _query_id(connection: Connection, name: str, query: str) -> str:
    """The id that a set has for a query, or would give it."""
    made = _identifier(query)
    row = connection.execute(
        "SELECT id FROM pgrerank.queries WHERE qrels_set = %(set)s"
        " AND (query = %(query)s OR id = %(id)s) ORDER BY query <> %(query)s LIMIT 1",
        {"set": name, "query": query, "id": made},
    ).fetchone()
    return made if row is None else str(row[0])


def _identifier(query: str) -> str:
    """An id made of a query's text, whatever that's case and spaces."""
    return hashlib.blake2b(normal(query).encode(), digest_size=6).hexdigest()


def _sets(connection: Connection, name: str | None = None) -> list[QrelsSet]:
    rows = connection.execute(
        "SELECT q.qrels_set, count(DISTINCT q.id), count(r.key),"
        " count(r.key) FILTER (WHERE r.relevance > 0) FROM pgrerank.queries q"
        " LEFT JOIN pgrerank.qrels r ON (r.qrels_set, r.query_id) = (q.qrels_set, q.id)"
        " WHERE %(name)s::text IS NULL OR q.qrels_set = %(name)s GROUP BY 1 ORDER BY 1",
        {"name": name},
    ).fetchall()
    return [QrelsSet(*row) for row in rows]


def _unknown(connection: Connection, name: str) -> EvaluationError:
    names = ", ".join(repr(qrels_set.name) for qrels_set in _sets(connection))
    others = f"; there are {names}" if names else ", nor any others: pgrerank qrels load reads some"
    return EvaluationError(f"there are no judgements named {name!r}{others}")
