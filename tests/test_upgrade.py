from __future__ import annotations

import hashlib
import re
import time
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

import pgrerank
from pgrerank import embedded
from pgrerank.errors import InstallError
from pgrerank.install import extension, schema
from pgrerank.install.scripts import SCRIPTS, Scripts, freeze
from tests.helpers.sources import Source
from tests.helpers.versions import NEXT, dump, next_release, restore
from tests.helpers.workers import wait_for, worker

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
    source = Source.of(connection)
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


@pytest.fixture(scope="module")
def following(tmp_path_factory) -> Scripts:
    return next_release(tmp_path_factory.mktemp("next") / "sql")


def test_released_files_are_frozen():
    releases = Path(str(SCRIPTS.folder)) / "releases"
    sums = releases / "SHA256SUMS"
    frozen = dict(
        reversed(line.split()) for line in (sums.read_text().splitlines() if sums.exists() else ())
    )
    assert {path.name for path in releases.glob("*.sql")} == set(frozen)
    for name, digest in frozen.items():
        assert hashlib.sha256((releases / name).read_bytes()).hexdigest() == digest, (
            f"{name} is released and must not change: write an upgrade"
        )


def test_a_release_is_frozen_once_and_makes_what_its_files_made(tmp_path, make_database):
    path = freeze(SCRIPTS, tmp_path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (tmp_path / "SHA256SUMS").read_text() == f"{digest}  {path.name}\n"
    with pytest.raises(InstallError, match="must not change"):
        freeze(SCRIPTS, tmp_path)
    first, second = make_database(), make_database()
    with connect(first) as connection, connection.transaction():
        for file in SCRIPTS.wrapped([path]):
            connection.execute(file.read_bytes())
    with connect(second) as connection:
        schema.install(connection)
    assert dump(first, "--schema-only") == dump(second, "--schema-only")


def test_the_package_and_its_schema_have_one_version(db):
    [(version,)] = db.execute("SELECT pgrerank.schema_version()").fetchall()
    assert version == schema.VERSION == pgrerank.__version__
    assert f"default_version = '{version}'" in extension.extension_files()["pgrerank.control"]


def test_upgraded_equals_fresh(make_database, following):
    fresh, upgraded = make_database(), make_database()
    with connect(fresh) as connection:
        schema.install(connection, following)
        populate(connection)
    with connect(upgraded) as connection:
        schema.install(connection)
        populate(connection)
        assert schema.install(connection, following) == NEXT
        assert schema.installed_version(connection) == NEXT
        schema.install(connection, following)
    assert dump(upgraded, "--schema-only") == dump(fresh, "--schema-only")


def test_an_upgrade_loses_nothing_and_is_run_once(empty_dsn, following):
    with connect(empty_dsn) as connection:
        schema.install(connection)
        populate(connection)
        connection.execute("SELECT pgrerank.claim(1)")
        before = status(connection)
        for _ in range(2):
            schema.install(connection, following)
            assert status(connection) == before
            assert connection.execute(
                "SELECT count(*) FROM pgrerank.pending WHERE claimed_by IS NOT NULL"
            ).fetchone() == (1,)
        tops = connection.execute("SELECT DISTINCT maxsim_top, mood FROM pgrerank.rerankers")
        assert tops.fetchall() == [(31, 7)]
        connection.execute("SELECT pgrerank.release()")
        check_alive(connection)


def test_what_an_upgrade_brings_is_there_for_rerankers_of_before(empty_dsn, following):
    """A setting and a stage, each declared in one place."""
    with connect(empty_dsn) as connection:
        schema.install(connection)
        source = Source(connection)
        source.create(late_interaction_model=None, cross_encoder_model=None)
        source.encode_by_hand()
        schema.install(connection, following)
        keys = "SELECT id, stage, backwards_rank FROM pgrerank.documents_search('x', {})"
        overruling = "keys => '{1,2,3}', blend => '{}'"
        rows = connection.execute(keys.format(f"{overruling}, mood => 3")).fetchall()
        assert rows == [(3, "backwards", 1), (2, "backwards", 2), (1, "backwards", 3)]
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="mood is '10', expected 1"):
            connection.execute(keys.format("mood => 10"))
        connection.execute("SELECT pgrerank.alter_reranker('documents', mood => 4)")
        settings = "SELECT pgrerank.settings('documents') -> 'mood'"
        assert connection.execute(settings).fetchone() == (4,)
        [(trace,)] = connection.execute(
            f"SELECT pgrerank.trace('documents', 'x', {overruling})"
        ).fetchall()
        assert trace["scores"]["backwards"] == [3, 2, 1]


def test_views_over_a_search_survive_another_installation(db, source):
    source.create()
    db.execute("CREATE VIEW mine AS SELECT id, rank FROM pgrerank.documents_search('x')")
    schema.install(db)
    assert db.execute("SELECT count(*) FROM pg_views WHERE viewname = 'mine'").fetchone() == (1,)


def test_a_failed_upgrade_leaves_the_old_version(empty_dsn, following):
    with connect(empty_dsn) as connection:
        schema.install(connection)
        connection.execute("ALTER TABLE pgrerank.feedback ADD COLUMN note int")
        with pytest.raises(InstallError, match=r"note.*already exists"):
            schema.install(connection, following)
        assert schema.installed_version(connection) == schema.VERSION


def test_no_upgrade_leads_from_an_unknown_version(db):
    _pretend(db, "0.0.3")
    with pytest.raises(InstallError, match=r"no upgrade leads from pgrerank 0\.0\.3 to"):
        schema.install(db)


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
        schema.install(connection)
        _pretend(connection, "0.0.9")
    with (
        pytest.raises(AssertionError, match=r"(?s)has pgrerank 0\.0\.9, this .*pgrerank install"),
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
        while "has pgrerank 9.1.0" not in process.log.read_text("utf-8"):
            assert process.process.is_alive()
            time.sleep(0.05)
        db.execute("INSERT INTO documents (title) VALUES ('waits')")
        found = db.execute("SELECT degraded FROM pgrerank.documents_search('a pool')").fetchall()
        assert found == [(False,)] * 3
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


def test_the_extension_upgraded_equals_the_extension_fresh(following):
    with embedded.start(kernel=False) as server:
        with connect(server.dsn) as connection:
            [(folders,)] = connection.execute("SHOW extension_control_path").fetchall()
        own = next(path for path in folders.split(":") if path != "$system")
        extension.write(Path(own) / "extension", following)
        fresh, upgraded = server.create_database("fresh"), server.create_database("upgraded")
        with connect(fresh) as connection:
            connection.execute("CREATE EXTENSION pgrerank CASCADE")
            populate(connection)
        with connect(upgraded) as connection:
            connection.execute("CREATE EXTENSION vector; CREATE EXTENSION dblink")
            connection.execute(f"CREATE EXTENSION pgrerank VERSION '{schema.VERSION}'")
            populate(connection)
            before = status(connection)
            connection.execute("ALTER EXTENSION pgrerank UPDATE")
            assert status(connection) == before
            assert schema.installed_version(connection) == NEXT
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


def _plain_owner(dsn: str, role: str) -> str:
    """How a role connects that may install pgrerank into a database, and is no superuser."""
    with connect(dsn) as admin:
        admin.execute("CREATE EXTENSION vector; CREATE EXTENSION dblink")
        admin.execute(f"GRANT CREATE ON DATABASE {admin.info.dbname} TO {role}")
        admin.execute(f"GRANT CREATE ON SCHEMA public TO {role}")
    return make_conninfo(dsn, user=role, password=role)


def test_a_dump_is_restored_under_another_owner_and_followed_on(make_database, make_role):
    before = _plain_owner(make_database(), make_role())
    after = _plain_owner(make_database(), make_role())

    def settle(connection) -> list[tuple]:
        while connection.execute("SELECT FROM pgrerank.claim()").fetchone() is not None:
            pass
        return connection.execute(
            "SELECT reranker, encoded, pending, last_error FROM pgrerank.status"
        ).fetchall()

    with connect(before) as connection:
        schema.install(connection)
        connection.execute("CREATE TABLE docs (gone int, body text, id int PRIMARY KEY)")
        connection.execute("ALTER TABLE docs DROP COLUMN gone")
        connection.execute("INSERT INTO docs VALUES ('some words', 1), ('other words', 2)")
        connection.execute("SELECT pgrerank.create_reranker('docs', 'docs', '{body}')")
        assert settle(connection) == [("docs", 2, 0, None)]
    extensions = re.compile(r"^(CREATE|COMMENT ON) EXTENSION .*\n", re.MULTILINE)
    restore(extensions.sub("", dump(before, "--no-owner")), after)
    with connect(after) as connection:
        assert settle(connection) == [("docs", 2, 0, None)]
        connection.execute("ALTER TABLE docs RENAME body TO content")
        connection.execute("INSERT INTO docs VALUES ('more words', 3)")
        assert settle(connection) == [("docs", 3, 0, None)]
        found = connection.execute("SELECT count(*) FROM pgrerank.docs_search('words')")
        assert found.fetchone() == (3,)


def test_uninstall_removes_the_extension_too(extended, empty_dsn):
    with connect(empty_dsn) as connection:
        connection.execute("CREATE EXTENSION pgrerank CASCADE")
        Source(connection).create()
        schema.uninstall(connection)
        assert schema.installed_version(connection) is None
        connection.execute("INSERT INTO documents (title) VALUES ('no trigger')")
        connection.execute("CREATE EXTENSION pgrerank")
        assert status(connection) == []
