"""The tools: search, explain and status, over one database."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import psycopg
from mcp.server.mcpserver.exceptions import ToolError
from psycopg.rows import dict_row
from pydantic import Field

from pgrerank.catalog import call_statement, take
from pgrerank.errors import PgrerankError
from pgrerank.explain import ExplainedDocument, Explanation, explanation
from pgrerank.explain.explanation import stages_of, steps
from pgrerank.explain.stretches import answers
from pgrerank.install.schema import connect
from pgrerank.mcp.shapes import Answer, Document, Searchable, Status, Step, Way, Why
from pgrerank.retrieval import Found, retrieve

_BEGINNING = 500

_UNKNOWN = (
    "Relevance is not calibrated here: scores say which document is better than which, not whether"
    " any answers the query. Read the texts; the best one may be beside the point."
)
_NOTHING = "No document was found: this collection has no answer to it, as far as the filter goes."
_DEGRADED = "The answer is degraded, and its order worse than usual: {}"

RERANKERS = """
SELECT r.name, r.source::text AS source, d.description,
  (SELECT jsonb_object_agg(a.attname, format_type(a.atttypid, a.atttypmod)) FROM pg_attribute a
   WHERE a.attrelid = r.source AND a.attnum > 0 AND NOT a.attisdropped
     AND has_column_privilege(a.attrelid, a.attnum, 'SELECT')) AS columns,
  jsonb_strip_nulls(jsonb_build_object('embedding', g.embedding_model, 'late_interaction',
    g.late_interaction_model, 'cross_encoder', r.cross_encoder_model)) AS models,
  EXISTS (SELECT FROM pgrerank.calibrations c
    WHERE c.reranker = r.name AND c.generation = r.generation) AS calibrated
FROM pgrerank.rerankers r
JOIN pgrerank.generations g ON g.reranker = r.name AND g.number = r.generation
LEFT JOIN pg_description d ON d.objoid = r.source AND d.objsubid = 0
  AND d.classoid = 'pg_class'::regclass
WHERE has_any_column_privilege(r.source, 'SELECT') ORDER BY r.name"""

_WAITING = """
SELECT reranker, count(*) FILTER (WHERE failed_at IS NULL) AS pending, count(failed_at) AS failed
FROM pgrerank.pending GROUP BY reranker"""

_ALIVE = "SELECT count(*) AS alive FROM pgrerank.workers WHERE is_registered AND is_alive"

Query = Annotated[str, Field(description="What to look for, as a question or in words.")]
Reranker = Annotated[
    str | None, Field(description="Name of the reranker; needed where there are several.")
]
Filter = Annotated[
    dict[str, Any] | None,
    Field(
        description='Only documents for which this holds: {"lang": "en", "year": {">=": 2020}}.'
        " The tool status lists the columns."
    ),
]


class Tools:
    """The tools over one database; each call has a read-only transaction of its own."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def search(
        self,
        query: Query,
        reranker: Reranker = None,
        top_k: Annotated[int, Field(ge=1, le=50, description="Documents to return.")] = 5,
        filter: Filter = None,
        min_relevance: Annotated[
            float | None,
            Field(ge=0, le=1, description="Leave out what is less relevant, where calibrated."),
        ] = None,
        after: Annotated[
            list[str] | None, Field(description="The next page: keys of all pages before.")
        ] = None,
        max_characters: Annotated[
            int, Field(ge=100, le=100_000, description="Where longer texts are cut.")
        ] = 2000,
    ) -> Answer:
        """Search a table by meaning and by words; returns the best documents with their texts.

        Read `notes`: they say where nothing is relevant, and where the order is worse than usual.
        """
        with self._connected() as (connection, notes):
            name = _name(connection, reranker)
            asked = dict(query=query, top_k=top_k, filter=filter, min_relevance=min_relevance)
            found = take(connection, retrieve(name, asked | {"after": after}))
            first = found[0].metadata if found else {}
            _judge(notes, [one.said["relevance"] for one in found], first.get("reason"))
            return Answer(name, [_document(one, max_characters) for one in found], notes)

    def explain(
        self,
        query: Query,
        reranker: Reranker = None,
        keys: Annotated[
            list[str] | None, Field(description="Documents to look at, even if they aren't found.")
        ] = None,
        top_k: Annotated[int, Field(ge=1, le=20, description="Documents to explain.")] = 3,
        filter: Filter = None,
    ) -> Why:
        """Say why documents have their ranks: their places after each stage, and what matched."""
        with self._connected() as (connection, notes):
            name = _name(connection, reranker)
            asked = dict(reranker=name, query=query, keys=keys, top_k=top_k, filter=filter)
            statement = call_statement("explain_search", asked)
            rows = connection.cursor(row_factory=dict_row).execute(*statement).fetchall()
            explained = explanation(connection, name, query, None, rows)
            documents = explained["documents"]
            _judge(notes, [one["relevance"] for one in documents], explained["reason"])
            ways = [_way(one, explained) for one in documents]
            return Why(name, ways, explained["times"], notes)

    def status(self) -> Status:
        """Say what can be searched: rerankers, their columns, and whether workers are alive."""
        with self._connected() as (connection, _):
            cursor = connection.cursor(row_factory=dict_row)
            role = connection.info.user
            privilege = "SELECT has_table_privilege('pgrerank.pending', 'SELECT') AS known"
            [row] = cursor.execute(privilege).fetchall()
            waiting = cursor.execute(_WAITING).fetchall() if row["known"] else []
            counts = {one.pop("reranker"): one for one in waiting}
            least = dict.fromkeys(("pending", "failed"), 0 if row["known"] else None)
            rerankers = [
                Searchable(**one, **counts.get(one["name"], least))
                for one in cursor.execute(RERANKERS).fetchall()
            ]
            [alive] = cursor.execute(_ALIVE).fetchall()
            return Status(connection.info.dbname, role, alive["alive"], rerankers)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[tuple[psycopg.Connection[Any], list[str]]]:
        """A connection that can't write, and what the database has to say."""
        notes: list[str] = []
        try:
            with connect(self._dsn, fallback_application_name="pgrerank mcp") as connection:
                connection.autocommit = False
                connection.read_only = True
                connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                connection.add_notice_handler(
                    lambda told: notes.append(str(told.message_primary).removeprefix("pgrerank: "))
                )
                yield connection, notes
        except psycopg.Error as error:
            told = [error.diag.message_primary or str(error).strip(), error.diag.message_hint]
            raise ToolError("\n".join(filter(None, told))) from error
        except PgrerankError as error:
            raise ToolError(str(error)) from error


def _name(connection: psycopg.Connection[Any], given: str | None) -> str:
    if given is not None:
        return given
    names = [row["name"] for row in connection.cursor(row_factory=dict_row).execute(RERANKERS)]
    if len(names) != 1:
        there = f"name one of {', '.join(names)}" if names else "this role may search by none"
        raise ToolError(f"there are {len(names)} rerankers: {there}")
    name: str = names[0]
    return name


def _judge(notes: list[str], relevance: Sequence[float | None], reason: str | None) -> None:
    """Add what the answer is worth to what the database said."""
    if reason:
        notes.append(_DEGRADED.format(reason))
    if None in relevance:
        notes.append(_UNKNOWN)
    if not relevance and not notes:
        notes.append(_NOTHING)


def _document(one: Found, most: int) -> Document:
    text = one.text[:most]
    return Document(
        key=one.key,
        text=text,
        start=one.said["passage_start"],
        end=one.said["passage_end"],
        is_cut=text != one.text,
        rank=one.said["rank"],
        score=one.said["score"],
        relevance=one.said["relevance"],
        stage=one.said["stage"],
        columns=one.columns,
    )


def _way(one: ExplainedDocument, explained: Explanation) -> Way:
    stages = stages_of(explained)
    alignment = one["alignment"]
    matched = [] if alignment is None else answers(alignment)
    return Way(
        key=one["key"],
        text=one["text"][:_BEGINNING],
        rank=one["rank"],
        relevance=one["relevance"],
        steps=[Step(stages[s.stage], s.rank, s.change, s.score) for s in steps(one, stages)],
        answers=[f"{a.asked}: {a.token} ({a.score:.2f})" for a in matched],
    )
