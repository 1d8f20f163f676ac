from __future__ import annotations

import hashlib
import time
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

import pgrerank
from pgrerank import embedded
from pgrerank.errors import InstallError
from pgrerank.install import extension, schema
from tests.helpers.sources import Source
from tests.helpers.versions import dump, install_release, restore
from tests.helpers.workers import wait_for, worker

UPGRADES = Path(__file__).parents[1] / "sql" / "upgrades"
OLD = "0.1.0"
VECTOR = "[" + ",".join(["0.1"] * 32) + "]"
BY_VECTOR = "SELECT id FROM pgrerank.{}(NULL, query_embedding => %s) ORDER BY id"


def connect(dsn: str) -> psycopg.Connection:
    return psycopg.connect(dsn, autocommit=True)


def by_vector(connection: psycopg.Connection, reranker: str = "documents") -> list[int]:
    query = sql.SQL(BY_VECTOR).format(sql.Identifier(f"{reranker}_search"))
    return [key for (key,) in connection.execute(query, (VECTOR,)).fetchall()]


def status(connection: psycopg.Connection) -> list[tuple]:
    return connection.execute(
        "SELECT reranker, generation, next_generation, source_rows, encoded, pending, failed"
        " FROM pgrerank.status"
    ).fetchall()


def populate(connection: psycopg.Connection) -> None:
    """Three rerankers: one encoded with more to do, one in its next generation, one untouched."""
    source = Source(connection)
    connection.execute('ALTER TABLE documents ADD COLUMN "Odd, ""name" text')
    source.create()
    source.encode_by_hand()
    source.create("odd", text_columns=["title", 'Odd, "name'], late_interaction_model=None)
    source.encode_by_hand("odd")
    connection.execute("SELECT pgrerank.alter_reranker('odd', text_columns => '{body}')")
    source.create("written", text_columns=None, text_expression="title || ' ' || lower(body)")
    connection.execute("INSERT INTO documents (title) VALUES ('late')")


def check_alive(connection: psycopg.Connection) -> None:
    """Whatever `populate` made goes on as if nothing had happened."""
    source = Source.__new__(Source)
    source.connection = connection
    assert by_vector(connection) == [1, 2, 3]
    connection.execute("INSERT INTO documents (title) VALUES ('later')")
    connection.execute("DELETE FROM documents WHERE id = 1")
    assert by_vector(connection) == [2, 3]
    for name in ("documents", "odd", "written"):
        source.encode_by_hand(name)
    assert [row[1:] for row in status(connection)] == [
        (1, None, 4, 4, 0, 0),
        (2, None, 4, 4, 0, 0),
        (1, None, 4, 4, 0, 0),
    ]
    for name in ("documents", "odd", "written"):
        assert by_vector(connection, name) == [2, 3, 4, 5]


def test_released_files_are_frozen():
    frozen = dict(
        reversed(line.split()) for line in (UPGRADES / "SHA256SUMS").read_text().splitlines()
    )
    unreleased = {path.name for path in UPGRADES.glob(f"*--{schema.VERSION}.sql")}
    assert {path.name for path in UPGRADES.glob("*.sql")} - unreleased == set(frozen) - unreleased
    for name, digest in frozen.items():
        assert hashlib.sha256((UPGRADES / name).read_bytes()).hexdigest() == digest, (
            f"{name} is released and must not change: write an upgrade"
        )


def test_the_package_and_its_schema_have_one_version(db):
    [(version,)] = db.execute("SELECT pgrerank.schema_version()").fetchall()
    assert version == schema.VERSION == pgrerank.__version__
    assert f"default_version = '{version}'" in extension.scripts()["pgrerank.control"]


def test_upgraded_equals_fresh(make_database):
    fresh, upgraded = make_database(), make_database()
    with connect(fresh) as connection:
        schema.install(connection)
        populate(connection)
    with connect(upgraded) as connection:
        install_release(connection, OLD)
        assert schema.installed_version(connection) == OLD
        populate(connection)
        assert schema.install(connection) == schema.VERSION
        schema.install(connection)
    assert dump(upgraded, "--schema-only") == dump(fresh, "--schema-only")


def test_an_upgrade_loses_nothing(empty_dsn):
    with connect(empty_dsn) as connection:
        install_release(connection, OLD)
        populate(connection)
        claimed = connection.execute("SELECT key FROM pgrerank.claim(1)").fetchall()
        before = status(connection)
        schema.install(connection)
        assert status(connection) == before
        assert (
            len(claimed)
            == connection.execute(
                "SELECT count(*) FROM pgrerank.pending WHERE claimed_by IS NOT NULL"
            ).fetchone()[0]
        )
        connection.execute("SELECT pgrerank.release()")
        check_alive(connection)


def test_an_upgrade_reads_back_which_columns_a_text_was_made_of(empty_dsn):
    with connect(empty_dsn) as connection:
        install_release(connection, OLD)
        populate(connection)
        schema.install(connection)
        made_of = connection.execute(
            "SELECT reranker, number, text_columns FROM pgrerank.generations ORDER BY 1, 2"
        ).fetchall()
        assert made_of == [
            ("documents", 1, ["title", "body"]),
            ("odd", 1, ["title", 'Odd, "name']),
            ("odd", 2, ["body"]),
            ("written", 1, None),
        ]
        connection.execute("SELECT pgrerank.alter_reranker('odd', text_columns => '{body}')")
        assert [row[:3] for row in status(connection)][1] == ("odd", 1, 2)


def test_a_failed_upgrade_leaves_the_old_version(empty_dsn):
    with connect(empty_dsn) as connection:
        install_release(connection, OLD)
        connection.execute("ALTER TABLE pgrerank.generations ADD COLUMN text_columns int")
        with pytest.raises(InstallError, match=r"text_columns.*already exists"):
            schema.install(connection)
        assert schema.installed_version(connection) == OLD


def test_a_newer_schema_is_left_alone(db):
    _pretend(db, "9.1.0")
    with pytest.raises(InstallError, match=r"has pgrerank 9\.1\.0, newer .* 'pgrerank>=9\.1\.0'"):
        schema.install(db)


def _pretend(connection: psycopg.Connection, version: str) -> None:
    connection.execute(
        "CREATE OR REPLACE FUNCTION pgrerank.schema_version() RETURNS text LANGUAGE sql"
        f" AS $$ SELECT '{version}' $$"
    )


def test_a_worker_refuses_an_older_schema(empty_dsn, tmp_path):
    with connect(empty_dsn) as connection:
        install_release(connection, OLD)
    with (
        pytest.raises(AssertionError, match=r"(?s)has pgrerank 0\.1\.0, this .*pgrerank install"),
        worker(empty_dsn, tmp_path),
    ):
        pass


def test_a_running_worker_waits_while_the_schema_is_newer_and_answers_meanwhile(
    dsn, db, source, tiny_models, tmp_path
):
    source.models(**tiny_models)
    source.create()
    with worker(dsn, tmp_path) as process:
        wait_for(db, "s.encoded = 3")
        _pretend(db, "9.1.0")
        db.execute("INSERT INTO documents (title) VALUES ('waits')")
        found = db.execute("SELECT degraded FROM pgrerank.documents_search('a pool')").fetchall()
        assert found == [(False,)] * 3
        while "has pgrerank 9.1.0" not in process.log.read_text("utf-8"):
            assert process.process.is_alive()
            time.sleep(0.05)
        assert "'pgrerank[worker]==9.1.*'" in process.log.read_text("utf-8")
        _pretend(db, schema.VERSION)
        wait_for(db, "s.encoded = 4")


@pytest.fixture
def extended(server_dsn):
    with connect(server_dsn) as connection:
        found = connection.execute(
            "SELECT count(*) FROM pg_available_extension_versions"
            " WHERE name = 'pgrerank' AND version = %s",
            (schema.VERSION,),
        ).fetchone()
    if not found[0]:
        pytest.skip("this server has no extension pgrerank: pgrerank extension install")


def test_the_extension_upgraded_equals_the_extension_fresh(extended, make_database):
    fresh, upgraded = make_database(), make_database()
    with connect(fresh) as connection:
        connection.execute("CREATE EXTENSION pgrerank CASCADE")
        populate(connection)
    with connect(upgraded) as connection:
        connection.execute("CREATE EXTENSION vector; CREATE EXTENSION dblink")
        connection.execute(f"CREATE EXTENSION pgrerank VERSION '{OLD}'")
        populate(connection)
        before = status(connection)
        connection.execute("ALTER EXTENSION pgrerank UPDATE")
        assert status(connection) == before
    assert _members(upgraded) == _members(fresh)
    assert dump(upgraded, "--schema-only") == dump(fresh, "--schema-only")
    with connect(upgraded) as connection:
        check_alive(connection)


def _members(dsn: str) -> list[tuple]:
    with connect(dsn) as connection:
        return connection.execute(
            """
            SELECT pg_describe_object(d.classid, d.objid, 0), md5(p.prosrc)
            FROM pg_extension e JOIN pg_depend d ON d.refobjid = e.oid AND d.deptype = 'e'
            LEFT JOIN pg_proc p ON p.oid = d.objid
            WHERE e.extname = 'pgrerank' ORDER BY 1"""
        ).fetchall()


def test_the_extension_is_the_plain_schema(extended, dsn, db, make_database):
    other = make_database()
    with connect(other) as connection:
        connection.execute("CREATE SCHEMA pgrerank")
        connection.execute("CREATE EXTENSION dblink SCHEMA pgrerank; CREATE EXTENSION vector")
        connection.execute("CREATE EXTENSION pgrerank")
        Source(connection).create()
        members = dict(_members(other))
        with pytest.raises(InstallError, match=r"(?s)as an extension.*ALTER EXTENSION pgrerank"):
            schema.install(connection)
    plain = dict(
        db.execute(
            """
            SELECT pg_describe_object('pg_proc'::regclass, p.oid, 0), md5(p.prosrc)
            FROM pg_proc p WHERE p.pronamespace = 'pgrerank'::regnamespace AND p.prokind = 'f'
            AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')"""
        ).fetchall()
    )
    assert plain
    assert plain.items() <= members.items()


def test_the_kernel_comes_before_or_after_the_extension(extended, make_database):
    for order in (("pgrerank", "pgrerank_native"), ("pgrerank_native", "pgrerank")):
        with connect(make_database()) as connection:
            if not connection.execute(
                "SELECT count(*) FROM pg_available_extensions WHERE name = 'pgrerank_native'"
            ).fetchone()[0]:
                pytest.skip("this server has no kernel")
            for name in order:
                connection.execute(
                    sql.SQL("CREATE EXTENSION {} CASCADE").format(sql.Identifier(name))
                )
            assert schema.maxsim_engine(connection).startswith("native")
            [(score,)] = connection.execute(
                "SELECT pgrerank.maxsim('{\"[1,0]\"}'::vector[], '{\"[2,0]\"}'::vector[])"
            ).fetchall()
            assert score == 2.0


@pytest.mark.parametrize("as_extension", [False, True])
def test_dump_and_restore_into_a_new_server_keeps_everything(
    request, make_database, tmp_path, tiny_models, as_extension
):
    dsn = make_database()
    with connect(dsn) as connection:
        if as_extension:
            request.getfixturevalue("extended")
            connection.execute("CREATE EXTENSION pgrerank CASCADE")
        else:
            schema.install(connection)
        Source(connection).models(**tiny_models)
        connection.execute("DROP TABLE documents")
        populate(connection)
        before = status(connection)
    with embedded.start() as server:
        copy = server.create_database("copy")
        restore(dump(dsn), copy)
        with connect(copy) as connection, connect(dsn) as original:
            if connection.info.server_version == original.info.server_version:
                assert dump(copy, "--schema-only") == dump(dsn, "--schema-only")
            assert status(connection) == before
            check_alive(connection)
            connection.execute("INSERT INTO documents (title) VALUES ('last')")
            with worker(copy, tmp_path):
                wait_for(connection, "s.pending = 0")
                found = connection.execute(
                    "SELECT stage, degraded FROM pgrerank.documents_search('pool', strict => true)"
                ).fetchall()
                assert found[0] == ("cross_encoder", False)


def test_uninstall_removes_the_extension_too(extended, empty_dsn):
    with connect(empty_dsn) as connection:
        connection.execute("CREATE EXTENSION pgrerank CASCADE")
        Source(connection).create()
        schema.uninstall(connection)
        assert schema.installed_version(connection) is None
        connection.execute("INSERT INTO documents (title) VALUES ('no trigger')")
        connection.execute("CREATE EXTENSION pgrerank")
        assert status(connection) == []
