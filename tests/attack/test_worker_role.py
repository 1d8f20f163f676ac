"""A worker whose role owns nothing of pgrerank and is no superuser: it does all that workers do."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.helpers.sources import Source
from tests.helpers.workers import wait_for, worker


@pytest.fixture
def working(db, dsn, make_role, source) -> str:
    """The connection string of a worker's role, which has been granted what it needs."""
    role = make_role("BYPASSRLS")
    db.execute(f"SELECT pgrerank.grant_worker('{role}')")
    db.execute(f"GRANT USAGE ON FOREIGN DATA WRAPPER dblink_fdw TO {role}")
    db.execute(f"GRANT SELECT, UPDATE (id) ON documents TO {role}")
    return make_conninfo(dsn, user=role, password=role)


def test_it_encodes_serves_and_registers(db, working, source, tiny_models, tmp_path):
    source.models(**tiny_models)
    source.create(grace_period="0 s", log_sample=1)
    db.execute("ALTER TABLE documents ENABLE ROW LEVEL SECURITY")
    with worker(working, tmp_path) as process:
        wait_for(db, "(SELECT encoded = 3 AND pending = 0 FROM pgrerank.status)")
        found = db.execute(
            "SELECT DISTINCT degraded FROM pgrerank.documents_search('bread', strict => true,"
            " timeout => '30 s')"
        ).fetchall()
        assert found == [(False,)]
        db.execute("SELECT pgrerank.alter_reranker('documents', token_dims => 16)")
        wait_for(db, "to_regclass('pgrerank.documents_1') IS NULL")
        db.execute("DELETE FROM documents WHERE id = 1")
        wait_for(db, "(SELECT encoded = 2 AND pending = 0 FROM pgrerank.status)")
        log = process.log.read_text("utf-8")
    assert "permission denied" not in log
    assert "must be owner" not in log
    assert db.execute("SELECT count(*) FROM pgrerank.workers").fetchone() == (0,)
    assert db.execute("SELECT last_error FROM pgrerank.status").fetchone() == (None,)


def test_it_sums_checks_and_reconciles(db, working, source):
    source.create()
    with psycopg.connect(working, autocommit=True) as connection:
        Source.of(connection).encode_by_hand()
        db.execute("SELECT * FROM pgrerank.documents_search('bread', stages => '{lexical}')")
        for statement in (
            "SELECT pgrerank.reconcile('documents')",
            "SELECT pgrerank.enqueue('documents', retry_failed => true)",
            "SELECT * FROM pgrerank.status",
            "SELECT * FROM pgrerank.stats",
            "SELECT * FROM pgrerank.tenant_index_changes()",
            "SELECT pgrerank.forget_searches()",
            "SELECT pgrerank.sum_searches()",
            "SELECT * FROM pgrerank.next_check()",
            "SELECT pgrerank.check_search('documents', 'bread')",
        ):
            connection.execute(statement)
    assert db.execute("SELECT encoded, pending FROM pgrerank.status").fetchone() == (3, 0)


def test_it_may_do_no_more(working, source):
    source.create()
    with psycopg.connect(working, autocommit=True) as connection:
        for statement in (
            "SELECT pgrerank.create_reranker('mine', 'documents', '{body}')",
            "SELECT pgrerank.alter_reranker('documents', candidates => 1)",
            "SELECT pgrerank.drop_reranker('documents')",
            "SELECT pgrerank.register_model('m', 'embedding', '/nowhere', 3)",
            "UPDATE pgrerank.generations SET text_expression = 'body'",
            "UPDATE pgrerank.rerankers SET source = 'pg_authid'",
            "DELETE FROM documents",
            "UPDATE documents SET body = ''",
            "DROP TABLE pgrerank.documents_1",
            "CREATE TABLE pgrerank.mine (id int)",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


def test_who_does_not_see_all_rows_is_no_worker(db, make_role):
    role = make_role()
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="subject to row-level") as error:
        db.execute(f"SELECT pgrerank.grant_worker('{role}')")
    assert error.value.diag.message_hint.endswith(f"ALTER ROLE {role} BYPASSRLS;")
