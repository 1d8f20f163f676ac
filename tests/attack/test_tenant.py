"""A hostile tenant: row-level security lets it see one row, and it may call functions."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

SECRET = "zanzibar"
SEARCHES = [
    "SELECT * FROM pgrerank.documents_search('zanzibar salary', keys => '{1,2,3,4}')",
    'SELECT * FROM pgrerank.documents_search(\'zanzibar\', filter => \'{"title": {"like": "%"}}\')',
    "SELECT * FROM pgrerank.documents_search('zanzibar', filter => '{\"not\": {\"id\": 1}}')",
    "SELECT * FROM pgrerank.documents_search('zanzibar', recall => 'exact', top_k => 100)",
    "SELECT * FROM pgrerank.documents_search_many('{zanzibar}')",
    "SELECT * FROM pgrerank.documents_search('zanzibar', passages => 5)",
    "SELECT * FROM pgrerank.explain_search('documents', 'zanzibar', alignments => false)",
    "SELECT pgrerank.trace('documents', 'zanzibar', keys => '{1,2,3,4}')",
    "SELECT * FROM pgrerank.texts('documents', '{1,2,3,4}')",
    "SELECT content FROM pgrerank.documents_1_source()",
    "SELECT key, lexemes FROM pgrerank.documents_1_words",
    "SELECT * FROM pgrerank.documents_1",
    "SELECT key, hash FROM pgrerank.documents_1_passages",
    "SELECT key, tokens FROM pgrerank.documents_1_tokens",
    "SELECT * FROM pgrerank.documents_1_terms",
]
CLOSED = [
    *("projections", "pending", "setbacks", "reconciliations", "stats", "checks", "searches"),
    *("feedback", "queries", "qrels", "checked_queries", "summed_searches", "counted_searches"),
    "status",
]

REFUSALS = ("22023", "22003", "22P02", "42703", "54001", "PGR01")
"""With which huge arguments are refused; PGR01 where no word is found, and no worker is there."""
HUGE = [
    "filter => (repeat('{\"not\":', 5000) || '{}' || repeat('}', 5000))::jsonb",
    "filter => jsonb_build_object('id', (SELECT jsonb_agg(n) FROM generate_series(1, 20000) n))",
    "filter => '{\"title); DROP TABLE documents; --\": 1}'",
    'filter => \'{"id": "1; SELECT lair.evil(1)"}\'',
    "keys => (SELECT array_agg(n::bigint) FROM generate_series(1, 200000) n)",
    "top_k => 2147483647",
    "candidates => 2147483647",
    "timeout => '1000 years'",
    "blend => '{\"dense\": 1e308}'",
]
REFUSED = [
    "SELECT pgrerank.create_reranker('mine', 'documents', '{body}')",
    "SELECT pgrerank.alter_reranker('documents', candidates => 1)",
    "SELECT pgrerank.drop_reranker('documents')",
    "SELECT pgrerank.rollback_reranker('documents')",
    "SELECT * FROM pgrerank.claim()",
    "SELECT pgrerank.enqueue('documents')",
    "SELECT pgrerank.finish('documents', 1, '{1}', '{1}')",
    "SELECT pgrerank.store('documents', 1, '{1}', '{1}', '{x}')",
    "SELECT pgrerank.fail('documents', 1, '1', 1, 'x')",
    "SELECT * FROM pgrerank.sample_texts('documents', 1)",
    "SELECT pgrerank.set_worker('127.0.0.1', 1, 'x')",
    "SELECT pgrerank.announce_worker('127.0.0.1', 1, 1)",
    "SELECT pgrerank.dismiss_worker(1)",
    "SELECT pgrerank.register_model('m', 'embedding', '/etc/passwd', 3)",
    "SELECT pgrerank._drop_retired('documents')",
    "SELECT pgrerank.grant_worker(current_user::regrole)",
    "DELETE FROM pgrerank.documents_1",
    "UPDATE pgrerank.generations SET text_expression = 'lair.evil(body)'",
    "INSERT INTO pgrerank.models SELECT * FROM pgrerank.models",
]


@pytest.fixture
def tenant(db, hostile, source) -> psycopg.Connection[Any]:
    """The hostile role sees row 1 of four; the last has a word that no other has."""
    source.create()
    db.execute(
        "INSERT INTO documents (title, body, tenant) VALUES ('Salaries', 'zanzibar salary', 2)"
    )
    source.encode_by_hand()
    role = hostile.info.user
    db.execute(f"GRANT SELECT ON documents TO {role}")
    db.execute("ALTER TABLE documents ENABLE ROW LEVEL SECURITY")
    db.execute(f"CREATE POLICY own ON documents TO {role} USING (id = 1)")
    db.execute("ANALYZE")
    return hostile


def told(connection: psycopg.Connection[Any], statement: str) -> tuple[str, set[Any]]:
    """All that a statement tells, errors included, as one text; and the keys in its rows."""
    try:
        cursor = connection.execute(statement)
        rows = cursor.fetchall()
        assert cursor.description is not None
        names = [column.name for column in cursor.description]
    except psycopg.Error as error:
        diag = error.diag
        return " ".join(map(str, (diag.message_primary, diag.message_detail, diag.context))), set()
    keys = {row[names.index(n)] for row in rows for n in ("id", "key") if n in names}
    return json.dumps(rows, default=str), keys


def test_rows_of_others_come_by_no_door(db, tenant):
    for statement in SEARCHES:
        db.execute(statement)  # it is one
        text, keys = told(tenant, statement)
        assert keys <= {1, "1"}, statement
        assert "salaries" not in text.lower(), statement
        assert "flour" not in text.lower(), statement


def test_tables_of_the_owner_are_closed(tenant):
    for relation in CLOSED:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            tenant.execute(f"SELECT * FROM pgrerank.{relation}").fetchall()


def test_statistics_of_side_tables_are_hidden(tenant):
    seen = tenant.execute(
        "SELECT tablename, attname FROM pg_stats WHERE schemaname = 'pgrerank'"
        " AND tablename LIKE 'documents%'"
    ).fetchall()
    assert seen == []


def test_a_leaky_function_is_given_no_row_of_others(tenant):
    tenant.execute(
        "CREATE FUNCTION lair.leak(anyelement) RETURNS boolean LANGUAGE plpgsql COST 0.0001"
        " AS 'BEGIN RAISE NOTICE ''%'', $1; RETURN true; END'"
    )
    heard: list[str] = []
    tenant.add_notice_handler(lambda notice: heard.append(notice.message_primary))
    for column, table in (
        ("key", "documents_1"),
        ("key", "documents_1_words"),
        ("key", "documents_1_passages"),
        ("key", "documents_1_tokens"),
        ("content", "documents_1_source()"),
    ):
        heard.clear()
        tenant.execute(f"SELECT FROM pgrerank.{table} WHERE lair.leak({column})")
        assert len(heard) <= 1, (table, heard)


def test_a_type_of_the_tenants_own_makes_no_policy_see_more(db, hostile):
    """Keys are compared in the types of the system, whatever the reader's search_path."""
    db.execute("CREATE TABLE notes (slug text PRIMARY KEY, body text)")
    db.execute("INSERT INTO notes VALUES ('mine', 'bread'), ('yours', 'zanzibar')")
    db.execute("SELECT pgrerank.create_reranker('notes', 'notes', '{body}')")
    db.execute("SELECT * FROM pgrerank.claim()")
    role = hostile.info.user
    db.execute(f"GRANT SELECT ON notes TO {role}")
    db.execute("ALTER TABLE notes ENABLE ROW LEVEL SECURITY")
    db.execute(f"CREATE POLICY own ON notes TO {role} USING (slug = 'mine')")
    hostile.execute(
        """
        CREATE TYPE lair.text AS (t pg_catalog.text);
        CREATE FUNCTION lair.take(pg_catalog.text) RETURNS lair.text
            LANGUAGE sql IMMUTABLE AS $$ SELECT row('yours')::lair.text $$;
        CREATE FUNCTION lair.give(lair.text) RETURNS pg_catalog.text
            LANGUAGE sql IMMUTABLE AS $$ SELECT ($1).t $$;
        CREATE CAST (pg_catalog.text AS lair.text) WITH FUNCTION lair.take;
        CREATE CAST (lair.text AS pg_catalog.text) WITH FUNCTION lair.give AS ASSIGNMENT;
        SET search_path = lair, pg_catalog"""
    )
    assert hostile.execute("SELECT key FROM pgrerank.notes_1").fetchall() == [("mine",)]
    assert hostile.execute("SELECT key FROM pgrerank.notes_1_words").fetchall() == [("mine",)]


def test_what_is_the_owners_and_the_workers_is_refused(db, tenant):
    before = db.execute("SELECT * FROM pgrerank.rerankers").fetchall()
    for statement in REFUSED:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            tenant.execute(statement)
    assert db.execute("SELECT * FROM pgrerank.rerankers").fetchall() == before
    assert db.execute("SELECT count(*) FROM pgrerank.documents_1").fetchone() == (4,)


def test_what_is_deep_or_huge_is_refused_or_answered_soon(db, tenant):
    tenant.execute("SET statement_timeout = '10 s'")
    for arguments in HUGE:
        search = f"SELECT id FROM pgrerank.documents_search('zanzibar', {arguments})"
        try:
            ended = {key for (key,) in tenant.execute(search).fetchall()}
        except psycopg.Error as error:
            ended = {error.sqlstate}
        assert ended <= {1, *REFUSALS}, arguments
    assert db.execute("SELECT count(*) FROM documents").fetchone() == (4,)
