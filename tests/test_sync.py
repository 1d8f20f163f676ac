from __future__ import annotations

import psycopg
import pytest
from psycopg.conninfo import make_conninfo


def pending(db) -> set[str]:
    return {key for (key,) in db.execute("SELECT key FROM pgrerank.pending").fetchall()}


@pytest.fixture
def encoded(source):
    """The reranker with nothing pending."""
    source.create()
    source.encode_by_hand()
    assert pending(source.connection) == set()
    return source


def test_insert_update_of_text_and_delete_are_followed(db, encoded):
    db.execute("INSERT INTO documents (title, body) VALUES ('new', 'one'), ('new', 'two')")
    assert pending(db) == {"4", "5"}
    db.execute("UPDATE documents SET body = body || '!' WHERE id IN (1, 4)")
    assert pending(db) == {"1", "4", "5"}
    db.execute("DELETE FROM documents WHERE id IN (1, 5)")
    assert pending(db) == {"4"}
    assert db.execute(
        "SELECT array_agg(key ORDER BY key) FROM pgrerank.documents_1"
    ).fetchone() == ([2, 3],)


def test_update_of_other_columns_enqueues_nothing(db, encoded):
    db.execute("UPDATE documents SET tenant = tenant + 1, extra = '{}', lang = 'en'")
    db.execute("UPDATE documents SET body = body")
    assert pending(db) == set()


def test_a_changed_key_moves_the_document(db, encoded):
    db.execute("ALTER TABLE documents ALTER COLUMN id DROP IDENTITY")
    db.execute("UPDATE documents SET id = 20 WHERE id = 2")
    assert pending(db) == {"20"}
    assert db.execute(
        "SELECT array_agg(key ORDER BY key) FROM pgrerank.documents_1"
    ).fetchone() == ([1, 3],)


def test_truncate_empties_side_table_and_queue(db, encoded):
    db.execute("INSERT INTO documents (title) VALUES ('x')")
    db.execute("TRUNCATE documents")
    assert pending(db) == set()
    assert db.execute("SELECT count(*) FROM pgrerank.documents_1").fetchone() == (0,)


def test_upsert_and_merge_are_followed(db, encoded):
    db.execute("ALTER TABLE documents ALTER COLUMN id DROP IDENTITY")
    db.execute(
        "INSERT INTO documents (id, title, body) VALUES (1, 'Pools', 'changed'), (9, 'n', 'new')"
        " ON CONFLICT (id) DO UPDATE SET body = excluded.body"
    )
    db.execute(
        "MERGE INTO documents d USING (VALUES (2), (10)) v (id) ON d.id = v.id"
        " WHEN MATCHED THEN UPDATE SET title = 'Dogs'"
        " WHEN NOT MATCHED THEN INSERT (id, title) VALUES (v.id, 'm')"
    )
    assert pending(db) == {"1", "9", "2", "10"}


def test_a_rolled_back_change_leaves_no_trace(db, encoded):
    with db.transaction(force_rollback=True):
        db.execute("INSERT INTO documents (title) VALUES ('gone')")
        db.execute("DELETE FROM documents WHERE id = 1")
    assert pending(db) == set()
    assert db.execute("SELECT count(*) FROM pgrerank.documents_1").fetchone() == (3,)


def test_a_bulk_insert_of_100000_rows_costs_one_statement(db, source):
    source.create()
    with db.transaction():
        db.execute("SET LOCAL track_functions = 'all'")
        db.execute(
            "INSERT INTO documents (title, body)"
            " SELECT 't' || i, 'b' FROM generate_series(1, 100000) i"
        )
        calls = db.execute(
            "SELECT calls FROM pg_stat_xact_user_functions WHERE funcname = '_sync'"
        ).fetchone()
    assert calls == (1,)
    assert db.execute("SELECT count(*) FROM pgrerank.pending").fetchone() == (100_003,)


def test_who_may_only_write_the_source_needs_no_right_on_the_queue(dsn, db, source, make_role):
    source.create()
    writer = make_role()
    db.execute(f"GRANT INSERT, UPDATE, DELETE, SELECT ON documents TO {writer}")
    with psycopg.connect(make_conninfo(dsn, user=writer, password=writer), autocommit=True) as w:
        w.execute("INSERT INTO documents (title) VALUES ('by a writer')")
        w.execute("DELETE FROM documents WHERE id = 1")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            w.execute("SELECT * FROM pgrerank.pending")
    assert pending(db) == {"2", "3", "4"}


def test_enqueue_finds_what_triggers_missed(db, encoded):
    db.execute("ALTER TABLE documents DISABLE TRIGGER USER")
    db.execute("UPDATE documents SET body = 'unseen' WHERE id = 1")
    db.execute("DELETE FROM documents WHERE id = 2")
    db.execute("INSERT INTO documents (title) VALUES ('unseen')")
    db.execute("ALTER TABLE documents ENABLE TRIGGER USER")
    assert db.execute("SELECT pgrerank.enqueue('documents')").fetchone() == (2,)
    assert pending(db) == {"1", "4"}
    assert db.execute(
        "SELECT array_agg(key ORDER BY key) FROM pgrerank.documents_1"
    ).fetchone() == ([1, 3],)


def test_a_renamed_column_and_table_are_followed(db, encoded):
    db.execute("ALTER TABLE documents RENAME COLUMN body TO content")
    db.execute("ALTER TABLE documents RENAME TO papers")
    db.execute("INSERT INTO papers (title, content) VALUES ('New', 'of late')")
    assert db.execute("SELECT pgrerank.enqueue('documents')").fetchone() == (1,)
    encoded.encode_by_hand()
    assert db.execute("SELECT encoded, pending FROM pgrerank.status").fetchone() == (4, 0)
    texts = db.execute("SELECT content FROM pgrerank.texts('documents', '{4}')").fetchall()
    assert texts == [("New\nof late",)]
    db.execute("SELECT pgrerank.drop_reranker('documents')")
    left = "SELECT count(*) FROM pg_proc WHERE proname = 'documents_1_source'"
    assert db.execute(left).fetchone() == (0,)


def test_null_text_is_stored_without_vectors(db, source):
    db.execute("INSERT INTO documents DEFAULT VALUES")
    source.create(text_columns=["title"])
    source.encode_by_hand()
    assert db.execute("SELECT encoded, pending FROM pgrerank.status").fetchone() == (4, 0)


def test_a_document_deleted_while_it_is_encoded_is_not_stored(db, source):
    source.create()
    keys, tickets, hashes = db.execute(
        "SELECT keys, tickets, content_hashes FROM pgrerank.claim()"
    ).fetchone()
    db.execute("DELETE FROM documents WHERE id = 1")
    db.execute("SELECT pgrerank.store('documents', 1, %s, %s, %s)", (keys, tickets, hashes))
    assert db.execute(
        "SELECT array_agg(key ORDER BY key) FROM pgrerank.documents_1"
    ).fetchone() == ([2, 3],)
    assert pending(db) == set()


def test_a_document_changed_while_it_is_encoded_stays_pending(db, source):
    source.create()
    keys, tickets, hashes = db.execute(
        "SELECT keys, tickets, content_hashes FROM pgrerank.claim()"
    ).fetchone()
    db.execute("UPDATE documents SET body = 'newer' WHERE id = 1")
    db.execute("SELECT pgrerank.store('documents', 1, %s, %s, %s)", (keys, tickets, hashes))
    assert pending(db) == {"1"}


def test_a_partitioned_source_is_followed(db, source):
    source.models()
    db.execute("CREATE TABLE parts (id int PRIMARY KEY, body text) PARTITION BY RANGE (id)")
    db.execute("CREATE TABLE part1 PARTITION OF parts FOR VALUES FROM (0) TO (10)")
    db.execute("CREATE TABLE part2 PARTITION OF parts FOR VALUES FROM (10) TO (20)")
    db.execute(
        "SELECT pgrerank.create_reranker('parts', 'parts', '{body}',"
        " embedding_model => 'embedding')"
    )
    db.execute("INSERT INTO parts SELECT i, 'text ' || i FROM generate_series(1, 15) i")
    db.execute("UPDATE parts SET id = id + 10 WHERE id = 9")
    assert pending(db) == {str(i) for i in (*range(1, 9), *range(10, 16), 19)}


def test_a_role_that_row_level_security_blinds_can_neither_enqueue_nor_claim(
    dsn, db, encoded, make_role
):
    """It would take what it can't see for gone."""
    blind = make_role()
    db.execute(f"GRANT SELECT ON documents TO {blind}")
    db.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA pgrerank TO {blind}")
    db.execute(f"GRANT USAGE ON SEQUENCE pgrerank.ticket TO {blind}")
    db.execute("ALTER TABLE documents ENABLE ROW LEVEL SECURITY")
    db.execute("UPDATE documents SET body = 'changed'")
    with psycopg.connect(make_conninfo(dsn, user=blind, password=blind), autocommit=True) as role:
        for call in ("enqueue('documents')", "claim(reranker => 'documents')"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
                role.execute(f"SELECT pgrerank.{call}")
        assert role.execute("SELECT pgrerank.claim()").fetchone() is None
    [error] = db.execute("SELECT last_error FROM pgrerank.status").fetchone()
    assert "row-level security" in error
    assert pending(db) == {"1", "2", "3"}
    assert db.execute("SELECT count(*) FROM pgrerank.documents_1").fetchone() == (3,)
