"""Dumps that are restored under another owner, or without pgrerank."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgrerank.install import schema
from tests.helpers.searching import use_engine
from tests.helpers.versions import dump, restore
from tests.helpers.workers import settle, wait_for, worker


@pytest.fixture
def lines(db):
    """A source with a key of two columns, whose words are stored."""
    db.execute(
        "CREATE TABLE lines (letter text, line int, body text, PRIMARY KEY (letter, line));"
        "INSERT INTO lines VALUES ('a', 1, 'a pool'), ('a', 2, 'a cat'), ('b', 1, 'bread')"
    )
    db.execute("SELECT pgrerank.create_reranker('lines', 'lines', '{body}')")
    settle(db)


def test_a_dump_is_restored_under_another_owner(
    dsn, source, lines, make_database, make_role, tiny_models, tmp_path
):
    use_engine(source.connection, "worker")  # the kernel is a superuser's
    source.models(**tiny_models)
    source.create()
    source.connection.execute("SELECT pgrerank.set_worker('127.0.0.1', 9, 'secret')")
    with worker(dsn, tmp_path):
        wait_for(source.connection, "pending = 0")
        # Comments on extensions are their owner's to write.
        dumped = dump(dsn, "--no-owner", "--no-acl", "--no-comments")
    owner, reader, copy = make_role("BYPASSRLS"), make_role(), make_database()
    with psycopg.connect(copy, autocommit=True) as administrator:
        [name] = administrator.execute("SELECT current_database()").fetchone()
        administrator.execute(f"GRANT CREATE ON DATABASE {name} TO {owner}")
        administrator.execute(f"GRANT CREATE ON SCHEMA public TO {owner}")
        administrator.execute("CREATE EXTENSION vector; CREATE EXTENSION dblink")
        administrator.execute(f"GRANT USAGE ON FOREIGN DATA WRAPPER dblink_fdw TO {owner}")
    owners = make_conninfo(copy, user=owner, password=owner)
    restore(dumped, owners)
    with psycopg.connect(owners, autocommit=True) as connection:
        schema.install(connection)  # gives the rights that --no-acl left out
        connection.execute(f"GRANT SELECT ON lines, documents TO {reader}")
        connection.execute("INSERT INTO lines VALUES ('c', 7, 'another pool')")
        connection.execute("UPDATE documents SET body = 'A pool, new.' WHERE id = 2")
        assert connection.execute("SELECT count(*) FROM pgrerank.pending").fetchone() == (2,)
        [reasons] = connection.execute(
            "SELECT array_agg(DISTINCT reason) FROM pgrerank.documents_search('pool')"
        ).fetchone()
        assert f"have no user mapping for {owner}" in reasons[0]
        with worker(owners, tmp_path):
            wait_for(connection, "pending = 0 AND failed = 0")
            readers = make_conninfo(copy, user=reader, password=reader)
            with psycopg.connect(readers, autocommit=True) as other:
                assert other.execute(
                    "SELECT letter, line FROM pgrerank.lines_search('pool') ORDER BY 1"
                ).fetchall() == [("a", 1), ("c", 7)]
                assert other.execute(
                    "SELECT id, stage FROM pgrerank.documents_search('new', strict => true)"
                    " ORDER BY 1"
                ).fetchall() == [(key, "cross_encoder") for key in (1, 2, 3)]


def test_sources_alone_are_restored_and_can_be_written_to(db, dsn, lines, make_database):
    copy = make_database()
    complaints = restore(dump(dsn, "--schema=public"), copy, stop=False)
    assert set(complaints.splitlines()) == {
        'ERROR:  schema "public" already exists',
        'ERROR:  schema "pgrerank" does not exist',  # where triggers would be created
    }
    with psycopg.connect(copy, autocommit=True) as connection:
        connection.execute("INSERT INTO lines VALUES ('c', 7, 'another pool')")
        connection.execute("DELETE FROM lines WHERE letter = 'a'; UPDATE lines SET body = 'pool'")
        schema.install(connection)
        connection.execute("SELECT pgrerank.create_reranker('lines', 'lines', '{body}')")
        settle(connection)
        assert connection.execute("SELECT encoded FROM pgrerank.status").fetchone() == (2,)
