from __future__ import annotations

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgrerank.errors import InstallError
from pgrerank.install import schema


def _objects(connection) -> list[tuple]:
    """Everything in the schema, by definition; stable between two installs."""
    return connection.execute(
        """
        SELECT 'function', p.oid::regprocedure::text, md5(pg_get_functiondef(p.oid))
        FROM pg_proc p WHERE p.pronamespace = 'pgrerank'::regnamespace AND p.prokind = 'f'
        UNION ALL
        SELECT 'column', c.oid::regclass || '.' || a.attname, format_type(a.atttypid, a.atttypmod)
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
        WHERE c.relnamespace = 'pgrerank'::regnamespace ORDER BY 1, 2"""
    ).fetchall()


def test_install_twice_changes_nothing(empty_dsn):
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        assert schema.installed_version(connection) is None
        version = schema.install(connection)
        before = _objects(connection)
        assert schema.install(connection) == version == schema.installed_version(connection)
        assert _objects(connection) == before


def test_install_keeps_rerankers_and_queue(db, source):
    source.create()
    schema.install(db)
    assert db.execute("SELECT pending FROM pgrerank.status").fetchone() == (3,)


def test_uninstall_leaves_the_source_and_nothing_else(db, source):
    source.create()
    schema.uninstall(db)
    assert schema.installed_version(db) is None
    db.execute("INSERT INTO documents (title, body) VALUES ('no', 'trigger')")
    assert db.execute("SELECT count(*) FROM documents").fetchone() == (4,)
    assert db.execute("SELECT count(*) FROM pg_foreign_server").fetchone() == (0,)


def test_plain_owner_of_the_database_installs_and_uses_it(
    server_dsn, empty_dsn, make_role, source_of
):
    owner = make_role()
    with psycopg.connect(empty_dsn, autocommit=True) as admin:
        admin.execute("CREATE EXTENSION vector; CREATE EXTENSION dblink")
        admin.execute(f"GRANT CREATE ON DATABASE {admin.info.dbname} TO {owner}")
        admin.execute(f"GRANT USAGE ON FOREIGN DATA WRAPPER dblink_fdw TO {owner}")
        admin.execute(f"GRANT CREATE ON SCHEMA public TO {owner}")
    with psycopg.connect(
        make_conninfo(empty_dsn, user=owner, password=owner), autocommit=True
    ) as connection:
        assert connection.execute(
            "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"
        ).fetchone() == (False,)
        schema.install(connection)
        source_of(connection).create()
        assert connection.execute("SELECT pending FROM pgrerank.status").fetchone() == (3,)
        connection.execute("SELECT pgrerank.set_worker('127.0.0.1', 1, 'secret')")
        schema.uninstall(connection)


def test_install_without_rights_says_what_an_administrator_must_do(empty_dsn, make_role):
    role = make_role()
    with psycopg.connect(empty_dsn, autocommit=True) as admin:
        admin.execute(f"GRANT CREATE ON DATABASE {admin.info.dbname} TO {role}")
    with psycopg.connect(
        make_conninfo(empty_dsn, user=role, password=role), autocommit=True
    ) as connection:
        with pytest.raises(InstallError, match=r"(?s)permission denied.*CREATE EXTENSION vector"):
            schema.install(connection)
        assert schema.installed_version(connection) is None
        found = connection.execute("SELECT to_regnamespace('pgrerank')").fetchone()
        assert found == (None,)


def test_every_function_pins_its_search_path_but_those_that_are_taken_apart(db, source):
    source.create()
    unpinned = db.execute(
        """
        SELECT p.oid::regprocedure FROM pg_proc p
        WHERE p.pronamespace = 'pgrerank'::regnamespace AND p.prolang <> 13
          AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
          AND NOT EXISTS (SELECT FROM unnest(p.proconfig) c
                          WHERE c ~ '^search_path=pgrerank,.*pg_temp$')"""
    ).fetchall()
    assert unpinned == [("pgrerank.documents_1_source()",)]


def test_only_the_five_that_must_are_security_definer(db):
    definers = db.execute(
        """
        SELECT p.proname FROM pg_proc p
        WHERE p.pronamespace = 'pgrerank'::regnamespace AND p.prosecdef
          AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
        ORDER BY 1"""
    ).fetchall()
    expected = ["_connect", "_drop_retired", "_follow_partitions", "_followed", "_sync"]
    assert [name for (name,) in definers] == expected


def test_sql_bodies_hold_against_plpgsql_check(db, source):
    """Nothing to complain of but what is only known at run time: temporary tables, records."""
    if not db.execute(
        "SELECT count(*) FROM pg_available_extensions WHERE name = 'plpgsql_check'"
    ).fetchone()[0]:
        pytest.skip("extension plpgsql_check is not available on this server")
    source.create()
    db.execute("CREATE EXTENSION plpgsql_check")
    complaints = db.execute(
        """
        SELECT p.proname, c.lineno, c.message FROM pg_proc p
        CROSS JOIN LATERAL plpgsql_check_function_tb(p.oid, fatal_errors => false) c
        JOIN pg_language l ON l.oid = p.prolang AND l.lanname = 'plpgsql'
        WHERE p.pronamespace = 'pgrerank'::regnamespace AND p.prorettype <> 'trigger'::regtype
          AND c.level = 'error' AND c.message !~ 'schema "pg_temp"|is not assigned yet'"""
    ).fetchall()
    assert complaints == []
